//! One room: messages at a steady rate, each to all of its members.
//!
//! The rate is kept whatever the server does (an open loop), and a latency counts from the moment at which a message was
//! due, so a server that is behind cannot hide it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{
    task::JoinSet,
    time::{Instant as At, Interval, MissedTickBehavior, interval_at, sleep, sleep_until},
};

use super::client::Packet;
use super::figures::{Latency, Recorder, Report};
use super::{Client, Common, PROGRESS_EVERY, progress};
use crate::cli::Failure;

/// Sockets that send; each of the others only receives.
const SENDERS: usize = 10;
/// What is on its way at the end gets so long to arrive.
const GRACE: Duration = Duration::from_secs(2);
/// Stands around the time in a text.
const MARK: char = '~';

#[derive(Args)]
pub struct Fanout {
    #[command(flatten)]
    pub common: Common,
    /// Members of the room
    #[arg(long, default_value_t = 300)]
    sockets: usize,
    /// Messages a second
    #[arg(long, default_value_t = 400)]
    rate: u64,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Characters of a message's text
    #[arg(long, default_value_t = 100)]
    text: usize,
}

/// What all sockets of a run share.
struct Run {
    room: String,
    start: Instant,
    end: Instant,
    text: usize,
    latency: Latency,
    sent: AtomicU64,
    acked: AtomicU64,
    received: AtomicU64,
}

impl Fanout {
    pub async fn run(&self) -> Result<Report, Failure> {
        let room = format!("bench-{}", std::process::id());
        let mut clients = self.common.connect(self.sockets).await?;
        for client in &mut clients {
            client.request("join", &format!("\"{room}\"")).await?;
        }
        let servers = self.common.servers();
        let start = Instant::now();
        let run = Arc::new(Run {
            room,
            start,
            end: start + Duration::from_secs(self.seconds),
            text: self.text,
            latency: Latency::new(),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let cpu = servers.cpu_seconds();
        let mut tasks = JoinSet::new();
        let senders = SENDERS.min(self.sockets);
        for (number, client) in clients.into_iter().enumerate() {
            let timer = (number < senders).then(|| self.timer(start, number, senders));
            tasks.spawn(run.clone().socket(client, timer));
        }
        run.tell().await;
        let (received, cpu) = (run.received.load(Ordering::Relaxed), servers.cpu_seconds() - cpu);
        let in_time = received as f64 / start.elapsed().as_secs_f64();
        while let Some(done) = tasks.join_next().await {
            done.map_err(Failure::failed)??;
        }
        let sent = run.sent.load(Ordering::Relaxed);
        let arrived = run.received.load(Ordering::Relaxed);
        let mut report = Report::new("fanout");
        report.add("sockets", self.sockets as f64);
        report.add("messages_per_second", sent as f64 / self.seconds as f64);
        report.add("deliveries_per_second", in_time);
        report.add_latency("", &run.latency);
        report.add("acked", run.acked.load(Ordering::Relaxed) as f64 / sent as f64);
        report.add("missing", (sent * self.sockets as u64).saturating_sub(arrived) as f64);
        if !servers.is_empty() {
            report.add("cpu_seconds_per_1000_deliveries", cpu * 1000.0 / received as f64);
        }
        Ok(report)
    }

    /// When a sender is due: all together keep the rate, evenly spread.
    fn timer(&self, start: Instant, number: usize, senders: usize) -> Interval {
        let every = Duration::from_secs_f64(senders as f64 / self.rate.max(1) as f64);
        let first = start + every * number as u32 / senders as u32;
        let mut timer = interval_at(first.into(), every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Burst);
        timer
    }
}

impl Run {
    async fn socket(self: Arc<Self>, mut client: Client, mut timer: Option<Interval>) -> Result<(), Failure> {
        let mut latency = self.latency.recorder();
        let over = sleep_until((self.end + GRACE).into());
        tokio::pin!(over);
        loop {
            tokio::select! {
                packet = client.next() => self.count(&packet?, &mut latency),
                due = due(&mut timer) => {
                    if due.into_std() >= self.end {
                        timer = None;
                        continue;
                    }
                    client.emit("message", &self.message(due)).await?;
                    self.sent.fetch_add(1, Ordering::Relaxed);
                }
                () = &mut over => return Ok(()),
            }
        }
    }

    fn message(&self, due: At) -> String {
        let stamp = format!("{MARK}{}{MARK}", due.into_std().duration_since(self.start).as_micros());
        format!("{{\"room\":\"{}\",\"text\":\"{stamp:x<width$}\"}}", self.room, width = self.text)
    }

    fn count(&self, packet: &Packet, latency: &mut Recorder) {
        match packet {
            Packet::Ack { body, .. } if body.contains("\"ok\":true") => _ = self.acked.fetch_add(1, Ordering::Relaxed),
            Packet::Ack { .. } => {}
            Packet::Event(body) => {
                let Some(due) = stamp(body) else { return };
                latency.record(self.start.elapsed().saturating_sub(due));
                self.received.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Says how it goes until the end.
    async fn tell(&self) {
        let mut before = 0;
        while Instant::now() < self.end {
            sleep(PROGRESS_EVERY.min(self.end - Instant::now())).await;
            let now = self.received.load(Ordering::Relaxed);
            progress(&format!("{} deliveries in the last second", now - before));
            before = now;
        }
    }
}

async fn due(timer: &mut Option<Interval>) -> At {
    match timer {
        Some(timer) => timer.tick().await,
        None => std::future::pending().await,
    }
}

/// The time that a message was due, since the start, if the event is one of this bench's messages.
fn stamp(body: &str) -> Option<Duration> {
    let (_, rest) = body.split_once(MARK)?;
    Some(Duration::from_micros(rest.split_once(MARK)?.0.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_bears_the_time_at_which_it_was_due() {
        let start = Instant::now();
        let zero = || AtomicU64::new(0);
        let (latency, room) = (Latency::new(), "r".to_owned());
        let run = Run { room, start, end: start, text: 40, latency, sent: zero(), acked: zero(), received: zero() };
        let message = run.message((start + Duration::from_micros(1_234_567)).into());
        assert_eq!(stamp(&message), Some(Duration::from_micros(1_234_567)));
        let text = serde_json::from_str::<serde_json::Value>(&message).unwrap()["text"].as_str().unwrap().len();
        assert_eq!(text, 40);
        assert_eq!(stamp("[\"joined\",{\"user\":\"a\"}]"), None);
    }
}
