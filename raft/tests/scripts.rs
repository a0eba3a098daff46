//! Golden scripts: what each command does to the state, and what a snapshot is made of, told as stories.
//!
//! A script in `tests/scripts` is a list of commands, each block followed by what came of it. `UPDATE_GOLDENFILES=1 cargo test
//! -p moim-raft --test scripts` writes what comes of it now; the difference is for a person to read.

#[path = "disk/mod.rs"]
#[allow(dead_code, reason = "the model uses more of it")]
mod disk;
mod script;

use std::{fs, path::Path};

use script::{snapshot::SnapshotScript, state::StateScript};

fn run_all<R: goldenscript::Runner>(folder: &str, runner: impl Fn() -> R) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(folder);
    let mut scripts: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        goldenscript::run(&mut runner(), &script).unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    }
}

#[test]
fn what_each_command_does_is_what_the_scripts_say() {
    run_all("state", StateScript::default);
}

#[test]
fn what_a_snapshot_is_made_of_is_what_the_scripts_say() {
    run_all("snapshot", SnapshotScript::default);
}
