//! All connections are cut at once and come back at once, as when a balancer or a node goes.

use std::time::Instant;

use clap::Args;
use futures_util::{FutureExt, future::join_all};
use tokio::task::unconstrained;

use super::client::{Packet, Recovery, offset};
use super::figures::{Latency, Report};
use super::{Client, Common, Target, progress};
use crate::cli::Failure;

/// Members of a room: so many hear of each join.
const ROOM: usize = 20;

#[derive(Args)]
pub struct Storm {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 1000)]
    sockets: usize,
    /// How often; the figures are of all rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// A client that is away.
struct Away {
    target: Target,
    recovery: Option<Recovery>,
}

impl Storm {
    pub async fn run(&self) -> Result<Report, Failure> {
        let mut clients = self.common.connect(self.sockets).await?;
        for (number, client) in clients.iter_mut().enumerate() {
            client.request("join", &format!("\"bench-{}-{}\"", std::process::id(), number / ROOM)).await?;
        }
        let servers = self.common.servers();
        let cpu = servers.cpu_seconds();
        let (latency, last, mut recovered) = (Latency::new(), Latency::new(), 0);
        let mut offsets: Vec<Option<String>> = vec![None; self.sockets];
        for round in 1..=self.rounds {
            let away = leave(std::mem::take(&mut clients), &mut offsets).await;
            let begun = Instant::now();
            let back = away.into_iter().map(|away| tokio::spawn(come_back(away, begun, latency.clone())));
            for client in join_all(back).await {
                let (client, again) = client.map_err(Failure::failed)??;
                recovered += usize::from(again);
                clients.push(client);
            }
            last.record(begun.elapsed());
            progress(&format!("round {round}: all back after {} ms", begun.elapsed().as_millis()));
        }
        let connects = (self.sockets * self.rounds) as f64;
        let mut report = Report::new("storm");
        report.add("sockets", self.sockets as f64);
        report.add_latency("", &latency);
        report.add_latency("all_", &last);
        report.add("recovered", recovered as f64 / connects);
        if !servers.is_empty() {
            report.add("cpu_seconds_per_1000_connects", (servers.cpu_seconds() - cpu) * 1000.0 / connects);
        }
        Ok(report)
    }
}

/// Cuts all of them, after what has come by then was read for its offset.
async fn leave(clients: Vec<Client>, offsets: &mut [Option<String>]) -> Vec<Away> {
    let mut away = Vec::with_capacity(clients.len());
    for (mut client, seen) in clients.into_iter().zip(offsets) {
        // What tokio lets a task read in one go is not all that is there.
        while let Some(Ok(packet)) = unconstrained(client.next()).now_or_never() {
            if let Packet::Event(body) = packet {
                *seen = offset(&body).or(seen.take());
            }
        }
        away.push(Away { target: client.target.clone(), recovery: client.recovery(seen.clone()) });
        // Without a word: the server learns of it as of a cut link.
        drop(client);
    }
    away
}

async fn come_back(away: Away, begun: Instant, latency: Latency) -> Result<(Client, bool), Failure> {
    let (client, timing) = Client::connect(away.target, away.recovery).await?;
    latency.record(begun.elapsed());
    Ok((client, timing.recovered))
}
