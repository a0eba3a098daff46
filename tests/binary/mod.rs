//! The built binary, run to its end.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

pub fn moim(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moim"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MOIM_")) {
        command.env_remove(name);
    }
    command
}

/// Runs to the end and returns exit code and standard error.
pub fn end(mut command: Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().expect("the binary runs");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Whether `holds` within `seconds`.
pub fn within(seconds: u64, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
