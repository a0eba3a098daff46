//! Keys of the state in words.

use std::collections::BTreeMap;

use moim_raft::state::State;

/// A table's byte, its name, and the parts of its keys: `t`ext, `n`umber, the `r`est.
const TABLES: &[(u8, &str, &str)] = &[
    (0x01, "meta", "t"),
    (0x02, "nodes", "n"),
    (0x10, "sessions", "t"),
    (0x11, "pids", "r"),
    (0x12, "of user", "tt"),
    (0x13, "of node", "nnt"),
    (0x14, "lost", "t"),
    (0x15, "taken", "t"),
    (0x20, "members", "ttt"),
    (0x21, "left", "ttt"),
    (0x22, "past", "ttn"),
    (0x23, "rooms", "tt"),
    (0x24, "entered", "ttt"),
    (0x25, "dropped", "tt"),
    (0x26, "joined", "tt"),
    (0x30, "history", "ttn"),
    (0x40, "mids", "tr"),
    (0x41, "mid order", "tn"),
    (0x42, "mids of", "t"),
    (0x50, "present", "tt"),
];

/// A key as its table and its parts. The namespace is always the same one and left out.
pub fn in_words(key: &[u8]) -> String {
    let (table, mut rest) = key.split_first().expect("a table");
    let (_, name, parts) = TABLES.iter().find(|(byte, ..)| byte == table).expect("a table of this list");
    let mut words = vec![(*name).to_owned()];
    for part in parts.chars() {
        let length = match part {
            't' => rest.iter().position(|byte| *byte == 0).expect("a text ends"),
            'n' => 8,
            _ => rest.len(),
        };
        let (bytes, after) = rest.split_at(length);
        words.push(match part {
            'n' => u64::from_be_bytes(bytes.try_into().expect("eight bytes")).to_string(),
            _ => String::from_utf8_lossy(bytes).trim_matches(['_', '\0']).to_owned(),
        });
        rest = after.get(usize::from(part == 't')..).unwrap_or_default();
    }
    assert!(rest.is_empty(), "{key:?} has more parts than its table");
    words.retain(|word| word != "/");
    words.join(" ")
}

pub type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

pub fn pairs(state: &State) -> Pairs {
    state.pairs().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Which keys came, changed and went.
pub fn changes(before: &Pairs, after: &Pairs) -> Vec<String> {
    let mut changes = Vec::new();
    for (key, value) in after {
        match before.get(key) {
            None => changes.push(format!("+ {}", in_words(key))),
            Some(old) if old != value => changes.push(format!("~ {}", in_words(key))),
            Some(_) => {}
        }
    }
    changes.extend(before.keys().filter(|key| !after.contains_key(*key)).map(|key| format!("- {}", in_words(key))));
    changes
}
