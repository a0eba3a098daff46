//! `moim bench`: measures a running cluster, or any Socket.IO server that speaks the same events, with real connections.
//!
//! One process holds thousands of cheap clients ([`client`]) and says what they saw as histograms, beside what the servers
//! spent on it ([`servers`]). It drives by events of the chat alone (`join`, `leave`, `message`, `ready`), so that servers
//! of other makes can be measured in the same run. Figures have names that limits can be put on; a limit that is not kept
//! makes it exit 1.

mod client;
mod connect;
mod fanout;
mod figures;
mod rolling_restart;
mod rooms;
mod servers;
mod storm;

use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::cli::{Failure, print};
use client::{Client, Target};
use figures::{Limit, Report};
use servers::Servers;

/// Connections that are being made at once while a run is set up.
const CONNECTING_MAX: usize = 64;
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// Connect one after another: time to `ready`, memory of an idle connection
    Connect(connect::Connect),
    /// One room: messages at a steady rate to all of its members
    Fanout(fanout::Fanout),
    /// Join and leave, one request at a time on each socket
    Rooms(rooms::Rooms),
    /// Cut all connections at once and come back at once
    Storm(storm::Storm),
    /// Clients that come back again and again while node after node is restarted
    RollingRestart(rolling_restart::RollingRestart),
}

/// What every kind needs to know.
#[derive(Args)]
struct Common {
    /// Where to connect; sockets are dealt out to them in turn
    #[arg(long, value_name = "URL,…", value_delimiter = ',', default_value = "http://127.0.0.1:3000", value_parser = client::parse_url)]
    url: Vec<client::Url>,
    /// The namespace
    #[arg(long, default_value = "/")]
    ns: String,
    /// Processes whose CPU and memory count, besides those that listen at the URLs on this machine
    #[arg(long, value_name = "PID,…", value_delimiter = ',')]
    pid: Vec<u32>,
    /// The figures as JSON
    #[arg(long)]
    json: bool,
    /// Exit 1 when a figure is larger, such as p99_ms=10
    #[arg(long, value_name = "FIGURE=VALUE")]
    max: Vec<Limit>,
    /// Exit 1 when a figure is smaller, such as deliveries_per_second=100000
    #[arg(long, value_name = "FIGURE=VALUE")]
    min: Vec<Limit>,
}

impl Bench {
    pub async fn run(self) -> Result<(), Failure> {
        match self.kind {
            Kind::Connect(kind) => finish(kind.run().await?, &kind.common),
            Kind::Fanout(kind) => finish(kind.run().await?, &kind.common),
            Kind::Rooms(kind) => finish(kind.run().await?, &kind.common),
            Kind::Storm(kind) => finish(kind.run().await?, &kind.common),
            Kind::RollingRestart(kind) => finish(kind.run().await?, &kind.common),
        }
    }
}

fn finish(report: Report, common: &Common) -> Result<(), Failure> {
    print(&if common.json { report.json() } else { report.table() });
    report.check(&common.max, &common.min)
}

impl Common {
    fn servers(&self) -> Servers {
        Servers::find(self.url.iter().filter(|url| url.is_local()).map(|url| url.port), &self.pid)
    }

    /// The target of the socket with this number, as a user of its own.
    fn target(&self, number: usize) -> Target {
        let user = format!("bench-{}-{number}", std::process::id());
        Target { url: self.url[number % self.url.len()].clone(), ns: self.ns.clone(), user }
    }

    /// So many sockets, connected and `ready`.
    async fn connect(&self, count: usize) -> Result<Vec<Client>, Failure> {
        let each = stream::iter(0..count).map(|number| async move {
            let (client, _) = Client::connect(self.target(number), None).await?;
            Ok::<_, Failure>(client)
        });
        each.buffered(CONNECTING_MAX).try_collect().await
    }
}

/// A line of progress; on standard error, so that the figures can go elsewhere.
fn progress(line: &str) {
    eprintln!("{line}");
}
