//! What the measured servers spend: CPU and resident memory of their processes, from Linux' `/proc`.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
};

/// `/proc/PID/stat` counts in units that Linux fixes at 100 a second for user space.
const TICKS_PER_SECOND: f64 = 100.0;
/// `/proc/net/tcp`'s word for a socket that listens.
const LISTENING: &str = "0A";

/// The processes that are measured; none where they run elsewhere.
pub struct Servers(BTreeSet<u32>);

impl Servers {
    /// The processes of this machine that listen on these ports, and those that were named.
    pub fn find(ports: impl Iterator<Item = u16>, named: &[u32]) -> Self {
        let ports: HashSet<u16> = ports.collect();
        let inodes: HashSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|table| fs::read_to_string(table).ok())
            .flat_map(|table| table.lines().filter_map(|line| listener(line, &ports)).collect::<Vec<_>>())
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        let mut found: BTreeSet<u32> = named.iter().copied().collect();
        found.extend(processes().filter(|pid| !inodes.is_empty() && holds_one_of(*pid, &inodes)));
        Self(found)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// CPU seconds that they have used since they were started.
    pub fn cpu_seconds(&self) -> f64 {
        self.0.iter().filter_map(|pid| cpu_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).sum::<u64>()
            as f64
            / TICKS_PER_SECOND
    }

    /// Resident memory of all of them, in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.0.iter().filter_map(|pid| resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)).sum()
    }
}

/// The inode of the socket that a line of `/proc/net/tcp` describes, if it listens on one of the ports.
fn listener(line: &str, ports: &HashSet<u16>) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    (*state == LISTENING && ports.contains(&port)).then(|| (*inode).to_owned())
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn holds_one_of(pid: u32, inodes: &HashSet<String>) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|link| link.to_str().is_some_and(|link| inodes.contains(link)))
}

/// User and system time. The command's name, in parentheses, may hold anything, so fields are counted behind it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_the_port_on_which_it_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let servers = Servers::find(std::iter::once(port), &[]);
        assert_eq!(servers.0, BTreeSet::from([std::process::id()]));
        assert!(servers.resident_kib() > 100);
        drop(listener);
        assert!(Servers::find(std::iter::once(port), &[]).is_empty());
    }

    #[test]
    fn times_are_counted_behind_the_name() {
        let stat = "77 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0";
        assert_eq!(cpu_ticks(stat), Some(175));
    }
}
