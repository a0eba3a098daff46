//! Connects one after another: what a single client waits for, and what an idle connection costs.

use std::time::{Duration, Instant};

use clap::Args;

use super::figures::{Latency, Report};
use super::{Client, Common, PROGRESS_EVERY, progress};
use crate::cli::Failure;

/// What a server frees and fills again by itself settles in so long.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Connect {
    #[command(flatten)]
    pub common: Common,
    /// Connections, all of them kept open to the end
    #[arg(long, default_value_t = 1000)]
    sockets: usize,
}

impl Connect {
    pub async fn run(&self) -> Result<Report, Failure> {
        let servers = self.common.servers();
        // The first of a process pays for what all of them use.
        drop(Client::connect(self.common.target(self.sockets), None).await?);
        tokio::time::sleep(SETTLE).await;
        let (resident, cpu) = (servers.resident_kib(), servers.cpu_seconds());
        let (whole, tcp, upgrade, ready) = (Latency::new(), Latency::new(), Latency::new(), Latency::new());
        let mut held = Vec::with_capacity(self.sockets);
        let mut told = Instant::now();
        for number in 0..self.sockets {
            let (client, timing) = Client::connect(self.common.target(number), None).await?;
            held.push(client);
            whole.record(timing.whole());
            tcp.record(timing.tcp);
            upgrade.record(timing.upgrade);
            ready.record(timing.ready);
            if told.elapsed() >= PROGRESS_EVERY {
                progress(&format!("{} of {} connected", held.len(), self.sockets));
                told = Instant::now();
            }
        }
        let cpu = servers.cpu_seconds() - cpu;
        tokio::time::sleep(SETTLE).await;
        let mut report = Report::new("connect");
        report.add("sockets", self.sockets as f64);
        report.add_latency("", &whole);
        report.add_latency("tcp_", &tcp);
        report.add_latency("upgrade_", &upgrade);
        report.add_latency("ready_", &ready);
        if !servers.is_empty() {
            let kib = servers.resident_kib().saturating_sub(resident) as f64;
            report.add("kib_per_socket", kib / self.sockets as f64);
            report.add("cpu_seconds_per_1000_connects", cpu * 1000.0 / self.sockets as f64);
        }
        Ok(report)
    }
}
