//! `moim serve`, as an operator meets it: what it refuses to start on, and what its log warns of.

mod binary;
#[path = "nodes/ports.rs"]
mod ports;

use std::{
    fs::Permissions,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use binary::{end, moim, within};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn serve_names_a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let data = tempfile::tempdir().expect("a folder");
    let mut command = moim(&["serve", "--auth", "open", "--client", &address, "--admin", "127.0.0.1:0"]);
    command.args(["--peer", "127.0.0.1:0", "--data"]).arg(data.path());
    let (code, error) = end(command);
    assert!(matches!(code, Some(1 | 2)), "{code:?} {error}");
    assert!(error.contains(&address), "{error}");
}

/// A supervisor can tell that from a wrong flag, and need not try again.
#[test]
fn serve_exits_3_on_a_data_folder_that_it_must_not_use() {
    for (file, why) in [("identity", "cannot be used"), ("letter", "it holds letter")] {
        let data = tempfile::tempdir().expect("a folder");
        std::fs::write(data.path().join(file), "dear").expect("written");
        let mut command = moim(&["serve", "--auth", "open", "--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.args(["--peer", "127.0.0.1:0", "--data"]).arg(data.path());
        let (code, error) = end(command);
        assert!(code == Some(3) && error.contains(why) && error.lines().count() == 1, "{code:?} {error}");
    }
}

/// A node that is a cluster by itself, or joins one, with its log.
struct Alone {
    process: Child,
    log: Receiver<String>,
}

impl Alone {
    fn start(data: &Path, peer: &str, args: &[&str]) -> Self {
        let mut command = moim(&["serve", "--auth", "open", "--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.args(["--peer", peer, "--data"]).arg(data).args(args);
        let mut process = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
        let lines = BufReader::new(process.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let (tell, log) = channel();
        // To its end, whoever listens: it must be able to write.
        std::thread::spawn(move || lines.for_each(|line| _ = tell.send(line)));
        Self { process, log }
    }

    /// The first line of the log with this in it.
    fn says(&self, what: &str) -> String {
        let mut lines = std::iter::from_fn(|| self.log.recv_timeout(PATIENCE).ok());
        lines.find(|line| line.contains(what)).unwrap_or_else(|| panic!("it did not say {what:?}"))
    }

    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        assert!(self.process.wait().expect("it ends").success());
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_settled_node_that_is_to_join_another_cluster_stays_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let free = ports::address().to_string();
    let one = Alone::start(&a, &free, &["--name", "a"]);
    one.says("forming the cluster");
    let other = Alone::start(&b, "127.0.0.1:0", &["--name", "b"]);
    other.says("forming the cluster");
    other.stop();
    let ids = [&a, &b].map(|data| std::fs::read_to_string(data.with_extension("cluster")).expect("a marker"));
    let [theirs, own] = ids.each_ref().map(|text| text.lines().next().expect("an id"));

    let other = Alone::start(&b, "127.0.0.1:0", &["--name", "b", "--join", &free]);
    let warning = other.says("--join leads to a node that refuses this one");
    assert!(warning.contains("WARN") && warning.contains(theirs) && warning.contains(own), "{warning}");
    assert!(warning.contains(&free) && warning.contains("an empty data folder"), "{warning}");
    other.stop();
    one.stop();
}

#[test]
fn a_node_whose_settings_are_not_the_clusters_says_so_once_for_each_difference() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let [free, learner] = [(); 2].map(|()| ports::address().to_string());
    let leads = Alone::start(&a, &free, &["--name", "a", "--history-ttl", "2d"]);
    // It learns, and never leads.
    let learns = ["--name", "b", "--join", &free, "--history-size", "10", "--history-ttl", "2d"];
    let other = Alone::start(&b, &learner, &learns);
    let warning = other.says("settings are not the cluster's");
    assert!(warning.contains("WARN") && warning.contains("history.size is 10 here and 1000 there"), "{warning}");
    assert!(!warning.contains("history.ttl"), "{warning}");
    leads.stop();
    let leads = Alone::start(&a, &free, &["--name", "a", "--history-size", "10", "--history-ttl", "3d"]);
    let warning = other.says("settings are not the cluster's");
    assert!(warning.contains("history.ttl is 2d here and 3d there") && !warning.contains("history.size"), "{warning}");
    leads.stop();
}

/// Nobody's, whom no file here belongs to.
const NOBODY: u32 = 65534;

/// `moim serve` on `data`, by a user who may write only where he is let.
fn serve_as_nobody(folder: &Path, data: &Path) -> Command {
    let binary = folder.join("binary");
    if !binary.exists() {
        // Where it was built nobody may look, perhaps. By another process: who has written a file may not run it at once, for
        // another test's child may hold it open still.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_moim")).arg(&binary).status();
        assert!(copied.expect("cp runs").success());
    }
    let built = moim(&["serve", "--auth", "open", "--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let mut command = Command::new(binary);
    command.args(built.get_args()).args(["--peer", "127.0.0.1:0", "--data"]).arg(data).stdin(Stdio::null());
    built.get_envs().for_each(|(name, _)| _ = command.env_remove(name));
    if is_root(folder) {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// What this user makes is root's.
fn is_root(folder: &Path) -> bool {
    folder.metadata().expect("it is there").uid() == 0
}

#[test]
fn a_data_folder_that_no_marker_can_lie_beside_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("moim");
    std::fs::create_dir(&data).expect("made");
    if is_root(folder.path()) {
        chown(&data, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    let copied = serve_as_nobody(folder.path(), &data);
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).expect("its owner may");
    let (code, error) = end(copied);
    assert!(code == Some(3) && error.lines().count() == 1, "{code:?} {error}");
    let (marker, better) = (folder.path().join("moim.cluster"), data.join("n1"));
    assert!(error.contains(&format!("goes its marker {}", marker.display())), "{error}");
    assert!(error.contains(&format!("--data {}", better.display())), "{error}");
    assert_eq!(std::fs::read_dir(&data).expect("a folder").count(), 0);

    let mut node = serve_as_nobody(folder.path(), &better).stderr(Stdio::null()).spawn().expect("the binary runs");
    assert!(within(20, || data.join("n1.cluster").exists()), "as it says");
    node.kill().expect("it runs");
    node.wait().expect("it ends");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("its owner may");
}

#[test]
fn a_node_that_is_stopped_before_it_served_speaks_of_no_lost_sessions() {
    let data = tempfile::tempdir().expect("a folder");
    let mut command = moim(&["serve", "--auth", "open", "--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command
        .args(["--peer", "127.0.0.1:0", "--join", "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "--expect", "3", "--data"])
        .arg(data.path());
    let mut node = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut lines = BufReader::new(node.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("waiting for 2 of 3 nodes")), "it says what it waits for");
    let pid = node.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    let rest = lines.collect::<Vec<_>>().join("\n");
    assert!(node.wait().expect("it ends").success());
    assert!(rest.contains("before this node has served anybody") && !rest.contains("lost"), "{rest}");
}
