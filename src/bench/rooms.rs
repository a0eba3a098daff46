//! Join and leave: each socket asks, waits for the answer, and asks again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::future::{join, try_join_all};

use super::figures::{Latency, Report};
use super::{Client, Common, PROGRESS_EVERY, progress};
use crate::cli::Failure;

/// Rooms that a socket goes through in turn.
const ROOMS: usize = 16;

#[derive(Args)]
pub struct Rooms {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 32)]
    sockets: usize,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

impl Rooms {
    pub async fn run(&self) -> Result<Report, Failure> {
        let clients = self.common.connect(self.sockets).await?;
        let servers = self.common.servers();
        let (latency, done) = (Latency::new(), AtomicU64::new(0));
        let (begun, cpu) = (Instant::now(), servers.cpu_seconds());
        let end = begun + Duration::from_secs(self.seconds);
        let work = try_join_all(clients.into_iter().map(|client| ask(client, end, &latency, &done)));
        let (worked, ()) = join(work, tell(end, &done)).await;
        worked?;
        let (took, cpu) = (begun.elapsed().as_secs_f64(), servers.cpu_seconds() - cpu);
        let requests = done.into_inner() as f64;
        let mut report = Report::new("rooms");
        report.add("sockets", self.sockets as f64);
        report.add("requests_per_second", requests / took);
        report.add_latency("", &latency);
        if !servers.is_empty() {
            report.add("cpu_seconds_per_1000_requests", cpu * 1000.0 / requests);
        }
        Ok(report)
    }
}

/// Joins and leaves in turn until the end.
async fn ask(mut client: Client, end: Instant, latency: &Latency, done: &AtomicU64) -> Result<(), Failure> {
    let mut latency = latency.recorder();
    for room in (0..ROOMS).cycle() {
        // A room of one's own: this measures requests, not the spread of what they tell others.
        let room = format!("\"{}-{room}\"", client.target.user);
        for event in ["join", "leave"] {
            let begun = Instant::now();
            if begun >= end {
                return Ok(());
            }
            client.request(event, &room).await?;
            latency.record(begun.elapsed());
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn tell(end: Instant, done: &AtomicU64) {
    let mut before = 0;
    while Instant::now() + PROGRESS_EVERY < end {
        tokio::time::sleep(PROGRESS_EVERY).await;
        let now = done.load(Ordering::Relaxed);
        progress(&format!("{} requests in the last second", now - before));
        before = now;
    }
}
