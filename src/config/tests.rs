use super::*;
use crate::config::keys::{KEYS, Key};

/// A value for each key that differs from its default and keeps every relation.
fn other(key: &Key) -> &'static str {
    match key.name {
        "client" | "admin" | "peer" => "127.0.0.1:4",
        "advertise-peer" => "node1:3200",
        "join" => "a:1,b:2",
        "expect" => "1",
        "auth" => "open",
        "namespaces" => "/a,/t/{tenant}/chat",
        "session.ttl" => "300s",
        "node.timeout" => "4s",
        "drain.deadline" => "99s",
        "log.format" => "json",
        _ => match key.kind {
            "TIME" => "9s",
            "SIZE" => "72KiB",
            "N" => "77",
            _ => "word",
        },
    }
}

/// The value of `key` in a file.
fn toml(key: &Key, text: &str) -> String {
    let value = match key.many {
        true => format!("[{}]", text.split(',').map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")),
        false => format!("\"{text}\""),
    };
    match key.name.split_once('.') {
        Some((section, name)) => format!("[{section}]\n{name} = {value}\n"),
        None => format!("{} = {value}\n", key.name),
    }
}

fn key(name: &str) -> &'static Key {
    keys::find(name).unwrap_or_else(|_| panic!("{name} is a key"))
}

fn flags<const N: usize>(given: [(&str, &str); N]) -> Result<Config, Problem> {
    Settings::default().flags(given.map(|(name, text)| (key(name), text.to_string())))?.finish()
}

fn refused<const N: usize>(given: [(&str, &str); N]) -> String {
    flags(given).expect_err("must be refused").to_string()
}

#[test]
fn defaults_are_complete_and_keep_every_relation() {
    let config = Settings::default().finish().expect("defaults are a valid configuration");
    assert_eq!(config.session.ttl, Duration::from_secs(120));
    assert_eq!(config.expect, Some(1));
    assert!(!config.name.is_empty());
    assert_eq!(config.limits.queue_bytes, 1 << 20);
}

#[test]
fn every_key_can_be_set_from_every_source_and_the_stronger_wins() {
    for key in KEYS {
        let (text, default) = (other(key), (key.show)(&Config::default()));
        assert_ne!(text, default, "{}", key.name);
        let file = || Settings::default().file("moim.toml", &toml(key, text)).expect(key.name);
        let variable = |text: &str| [(key.variable(), text.to_string())];
        let shown = |settings: Settings| {
            let (config, origins) = settings.explain().expect(key.name);
            let origin = origins.into_iter().find(|(k, _)| k.name == key.name).expect("every key has an origin").1;
            ((key.show)(&config), origin)
        };

        let mut set = Config::default();
        (key.set)(&mut set, text).expect(key.name);
        let wanted = (key.show)(&set);
        // `--peer` off loopback, `--join` and the like are relations of their own; every value here keeps them.
        assert_eq!(shown(file()).0, wanted, "file: {}", key.name);
        let by_environment = Settings::default().environment(variable(text)).expect(key.name);
        assert_eq!(shown(by_environment), (wanted.clone(), Origin::Variable(key.variable())));
        let by_flag = Settings::default().flags([(key, text.to_string())]).expect(key.name);
        assert_eq!(shown(by_flag).0, wanted);

        if default.is_empty() {
            continue; // Nothing to go back to.
        }
        let over_file = file().environment(variable(&default)).expect(key.name);
        assert_eq!(shown(over_file).0, default, "environment over file: {}", key.name);
        let over_environment = file().environment(variable(text)).expect(key.name);
        let over_environment = over_environment.flags([(key, default.clone())]).expect(key.name);
        assert_eq!(shown(over_environment), (default, Origin::Flag(format!("--{}", key.flag()))));
    }
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest_one() {
    let wrong = |text: &str| Settings::default().file("moim.toml", text).err().expect("must be refused").to_string();
    let error = wrong("name = \"a\"\n\n[drain]\n  windw = \"3s\"\n");
    assert_eq!(error, "moim.toml:4:3: unknown setting \"drain.windw\"; did you mean \"drain.window\"?");
    let error = wrong("[drains]\nwindow = \"3s\"\n");
    assert!(error.contains("did you mean \"drain.window\""), "{error}");
    let error = wrong("[drain]\nwindow = \"soon\"\n");
    assert!(error.starts_with("moim.toml:2:10: drain.window: \"soon\" is no duration"), "{error}");
    let error = wrong("[drain\n");
    assert!(error.starts_with("moim.toml:1:"), "{error}");
    assert!(wrong("expect = true").contains("expected N, found boolean"));
}

#[test]
fn an_unknown_variable_names_the_nearest_and_strangers_are_left_alone() {
    let environment = |name: &str| Settings::default().environment([(name.to_string(), "1".to_string())]);
    let error = environment("MOIM_SESION_TTL").err().expect("must be refused").to_string();
    assert!(error.contains("MOIM_SESSION_TTL"), "{error}");
    for stranger in ["HOME", "MOIM_SERVICE_HOST", "MOIM_PORT", "MOIM_PORT_3000_TCP_ADDR", "MOIM_CONFIG", "MOIM_BIN"] {
        assert!(environment(stranger).is_ok(), "{stranger}");
    }
}

#[test]
fn relations_are_checked_and_say_what_to_do() {
    assert!(refused([("session.ttl", "29s")]).contains("set it to 30s or more"));
    assert!(flags([("session.ttl", "30s")]).is_ok());
    assert!(refused([("node.timeout", "10s")]).contains("node.isolation"));
    assert!(refused([("drain.window", "29s")]).contains("shorter than drain.deadline"));
    assert!(flags([("drain.window", "28s")]).is_ok());
    assert!(refused([("peer", "10.0.0.1:3200")]).contains("--cluster-secret-file"));
    assert!(flags([("peer", "10.0.0.1:3200"), ("cluster-secret-file", "secret")]).is_ok());
    assert!(refused([("peer", "0.0.0.0:3200"), ("cluster-secret-file", "secret")]).contains("--advertise-peer"));
    assert!(refused([("expect", "3")]).contains("--join"));
    assert!(refused([("expect", "0")]).contains("leave it out"));
    assert!(refused([("expect", "3"), ("join", "a:1")]).contains("name them all"));
    assert!(flags([("expect", "3"), ("join", "a:1,b:1")]).is_ok());
    assert!(refused([("admin", "127.0.0.1:3200")]).contains("port 3200"));
    assert!(refused([("admin", "0.0.0.0:3100")]).contains("loopback"));
    assert!(flags([("admin", "[::1]:3100")]).is_ok());
    assert!(refused([("limits.queue-bytes", "1KiB")]).contains("limits.text"));
    assert!(refused([("namespaces", "chat")]).contains("beginning with"));
}

#[test]
fn what_a_node_cannot_serve_is_refused() {
    let text = |size| [("limits.text", size), ("limits.queue-bytes", "4MiB")];
    let longest = value::bytes::show(&moim_raft::propose::TEXT_BYTES_MAX);
    assert!(flags(text(&longest)).is_ok());
    assert!(refused(text("1MiB")).contains(&longest));
    for key in ["node.timeout", "ping.interval", "ping.timeout"] {
        assert!(refused([(key, "0s")]).contains(&format!("{key} must be longer than 0s")), "{key}");
        assert!(flags([(key, "1ms")]).is_ok(), "{key}");
    }
    assert!(refused([("limits.sessions-per-user", "0")]).contains("nobody could connect"));
}

#[test]
fn events_that_moim_or_socket_io_sends_are_not_relayed() {
    assert!(flags([("relay", "cursor,reaction")]).is_ok());
    for taken in ["ready", "joined", "moim:drain", "disconnect", "message", "history", "typing"] {
        assert!(refused([("relay", &format!("cursor,{taken}"))]).contains(&format!("\"{taken}\"")), "{taken}");
    }
}

#[test]
fn an_empty_list_of_nodes_to_join_is_no_wish_to_be_alone() {
    for nobody in ["", " ", ","] {
        assert!(refused([("join", nobody)]).starts_with("--join names nobody to join: "), "{nobody:?}");
    }
    let file = || Settings::default().file("moim.toml", "join = [\"a:1\"]").expect("valid");
    let variable = |text: &str| [("MOIM_JOIN".to_owned(), text.to_owned())];
    let unset = file().environment(variable("")).expect("as if it were not there").finish().expect("valid");
    assert_eq!(unset.join, ["a:1"]);
    let error = file().environment(variable(",")).expect("a list").finish().expect_err("must be refused").to_string();
    assert!(error.starts_with("environment MOIM_JOIN names nobody"), "{error}");
    // A file that was written for all machines says that there is nobody.
    assert_eq!(
        Settings::default().file("moim.toml", "join = []").expect("valid").finish().expect("valid").expect,
        Some(1)
    );
}

#[test]
fn a_node_that_joins_and_expects_nobody_never_forms_a_cluster() {
    assert_eq!(flags([("join", "a:1")]).expect("valid").expect, None);
}

#[test]
fn values_are_shown_as_they_are_read() {
    for (text, ms) in [("500ms", 500), ("2m", 120_000), ("7d", 604_800_000), ("0s", 0)] {
        let value = value::duration::parse(text).expect(text);
        assert_eq!(value, Duration::from_millis(ms));
        assert_eq!(value::duration::show(&value), text);
    }
    for wrong in ["", "5", "5 s", "-1s", "1.5s", "s", "99999999999999999999s", "18446744073709551615d"] {
        assert!(value::duration::parse(wrong).is_err(), "{wrong}");
    }
    for (text, bytes) in [("4MiB", 4 << 20), ("64KiB", 64 << 10), ("7B", 7)] {
        assert_eq!(value::bytes::parse(text), Ok(bytes));
        assert_eq!(value::bytes::show(&bytes), text);
    }
    for wrong in ["", "4MB", "MiB", "-1", "99999999999GiB"] {
        assert!(value::bytes::parse(wrong).is_err(), "{wrong}");
    }
    for wrong in ["a;b", "-a", "a b", "$(x)"] {
        assert!(value::name::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn nodes_of_one_host_have_names_of_their_own() {
    let name = |client: &str| flags([("client", client)]).unwrap().name;
    assert_eq!(name("127.0.0.1:3001"), format!("{}-3001", name("0.0.0.0:3000")));
    assert_eq!(flags([("name", "a"), ("client", "127.0.0.1:3001")]).unwrap().name, "a");
}
