//! The command line: what was said, who does it, and how it ended.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused as unsafe. Each failure is one text that ends in
//! what to do next. Nothing here knows how a node works: commands speak to nodes over the admin listener.

mod admin;
mod config;
mod drain;
mod node;
mod rolling_restart;
mod serve;
mod settings;
mod status;

pub use admin::AdminArgs;
pub use rolling_restart::restart_all;

use std::{fmt, io::Write, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use moim::config::Problem;

#[derive(Parser)]
#[command(name = "moim", version, about = "A Socket.IO chat server that is deployed without downtime", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  moim dev                            a cluster and a chat page on this machine
  moim serve --auth open              one node, alone
  moim status --admin 127.0.0.1:3101  how a cluster is

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 refused as unsafe";

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, with a chat page
    Dev(crate::dev::Dev),
    /// Run one node
    Serve(serve::Serve),
    /// Show the nodes of a cluster
    Status(status::Status),
    /// Take a node out of service without stopping it
    Drain(drain::Drain),
    /// Put a drained node back into service
    Undrain(drain::Undrain),
    /// Show, add, promote, replace or remove nodes
    Node(node::NodeCommand),
    /// Restart node after node and measure what clients saw
    RollingRestart(rolling_restart::RollingRestart),
    /// Measure a running cluster with real connections
    Bench(crate::bench::Bench),
    /// Check, show or write a configuration
    Config(config::ConfigCommand),
    /// Write shell completions to standard output
    Completions { shell: clap_complete::Shell },
}

/// Why a command did not do what it was asked, by exit code.
#[derive(Debug)]
pub enum Failure {
    /// It was tried and did not work.
    Failed(String),
    /// It was asked for in a way that cannot work.
    Usage(String),
    /// It could have been done, and would have been unsafe.
    Unsafe(String),
}

impl Failure {
    pub fn failed(why: impl fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unsafe(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) | Self::Usage(why) => f.write_str(why),
            Self::Unsafe(why) => write!(f, "refused: {why}"),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Usage(problem.to_string())
    }
}

/// Parses, runs, and turns the end into an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("moim: cannot start: {error}; see the limits on threads and open files of this user");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("moim: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(dev) => dev.run().await,
        Command::Serve(serve) => serve.run().await,
        Command::Status(status) => status.run().await,
        Command::Drain(drain) => drain.run().await,
        Command::Undrain(undrain) => undrain.run().await,
        Command::Node(node) => node.run().await,
        Command::RollingRestart(restart) => restart.run().await,
        Command::Bench(bench) => bench.run().await,
        Command::Config(config) => config.run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "moim", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) or a closed terminal is no failure.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Columns as wide as what is in them.
fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let headings = headings.map(str::to_string);
    let all = || std::iter::once(&headings).chain(rows);
    let widths: Vec<usize> = (0..N).map(|i| all().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in all() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_first_help_screen_fits_a_terminal() {
        let help = Cli::command().term_width(80).render_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
        assert!(help.lines().count() <= 30, "{help}");
    }
}
