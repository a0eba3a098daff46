//! What this node counts, for Prometheus.
//!
//! Names are a contract (INTERFACES, section 3). Each is recorded where it happens; what is only a state (sockets, Raft's
//! indexes) is read when somebody asks. All are there from the start, at zero.

use std::time::Duration;

use moim_raft::{Observation, Status};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    core::Collector,
};

use crate::health;

/// From half a millisecond to half a minute.
const SECONDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Up to the largest batch.
const COMMANDS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Why a session was without a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its node was taken out of service. From the loss as the log has it.
    Drain,
    /// The transport was lost. The same.
    Lost,
    /// Its node died. From that node's last sign of life.
    Killed,
    /// Nobody knew: the client was back before its old connection was found dead. From the new connection's CONNECT on.
    Takeover,
}

impl Cause {
    const ALL: [Self; 4] = [Self::Drain, Self::Lost, Self::Killed, Self::Takeover];

    fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Lost => "lost",
            Self::Killed => "killed",
            Self::Takeover => "takeover",
        }
    }
}

/// Why a client was not given its session again (`chat/connect.rs`, `moim_raft::state::replay`).
const REFUSALS: [&str; 5] = ["foreign", "future", "trimmed", "too_long", "contested"];

pub struct Metrics {
    registry: Registry,
    gap: HistogramVec,
    resumed: IntCounter,
    refused: IntCounterVec,
    replayed: IntCounter,
    slow: IntCounter,
    commit: Histogram,
    sync: Histogram,
    batch: Histogram,
    states: States,
}

/// What is read when somebody asks.
struct States {
    sockets: IntGauge,
    term: IntGauge,
    leader: IntGauge,
    committed: IntGauge,
    applied: IntGauge,
    lag: IntGauge,
    log_bytes: IntGauge,
    bus_dropped: IntCounter,
}

/// Makes metrics and registers each.
struct Make(Registry);

impl Make {
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    fn add<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names, labels and buckets are constants");
        self.0.register(Box::new(metric.clone())).expect("each name is made once");
        metric
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let make = Make(Registry::new());
        let gap = HistogramOpts::new(
            "moim_session_gap_seconds",
            "From a transport's loss to the same session live again on this node, by cause.",
        );
        let gap: HistogramVec = make.add(HistogramVec::new(gap.buckets(SECONDS.to_vec()), &["cause"]));
        let refused = Opts::new(
            "moim_replays_refused_total",
            "Sessions begun anew, because what the client missed could not be replayed whole, or others kept taking its own.",
        );
        let refused: IntCounterVec = make.add(IntCounterVec::new(refused, &["cause"]));
        // A label's value that has not been seen yet would be missing from the answer.
        Cause::ALL.iter().for_each(|cause| _ = gap.with_label_values(&[cause.as_str()]));
        REFUSALS.iter().for_each(|cause| _ = refused.with_label_values(&[*cause]));
        Self {
            gap,
            refused,
            resumed: make
                .counter("moim_sessions_resumed_total", "Sessions that went on over a new connection on this node."),
            replayed: make.counter(
                "moim_messages_replayed_total",
                "Entries of rooms that were sent again to clients that had missed them.",
            ),
            slow: make.counter(
                "moim_slow_consumers_disconnected_total",
                "Connections cut because the client did not take what was sent to it.",
            ),
            commit: make.histogram(
                "moim_commit_seconds",
                "From a batch of this node leaving it to its being committed by a quorum and applied here.",
                &SECONDS,
            ),
            sync: make.histogram("moim_sync_seconds", "One sync of the log to disk.", &SECONDS),
            batch: make.histogram("moim_batch_commands", "Commands in one batch of this node.", &COMMANDS),
            states: States {
                sockets: make.gauge("moim_sockets", "Sessions that are attached to this node."),
                term: make.gauge("moim_raft_term", "Raft's term."),
                leader: make.gauge("moim_raft_leader", "1 on the node that leads."),
                committed: make.gauge("moim_raft_committed_index", "Index that this node knows to be committed."),
                applied: make.gauge("moim_raft_applied_index", "Index up to which this node's state is current."),
                lag: make.gauge("moim_raft_lag_entries", "Entries that are committed and not yet applied here."),
                log_bytes: make.gauge("moim_raft_log_bytes", "Size of the log's files."),
                bus_dropped: make.counter(
                    "moim_bus_frames_dropped_total",
                    "Ephemeral frames to other nodes that found no room or no connection.",
                ),
            },
            registry: make.0,
        }
    }
}

impl Metrics {
    /// A session is live again.
    pub fn resumed(&self, cause: Cause, gap: Duration, replayed: usize) {
        self.gap.with_label_values(&[cause.as_str()]).observe(gap.as_secs_f64());
        self.resumed.inc();
        self.replayed.inc_by(replayed as u64);
    }

    /// `why` is one of `REFUSALS`.
    pub fn replay_refused(&self, why: &str) {
        self.refused.with_label_values(&[why]).inc();
    }

    /// To be counted up by whoever cuts a slow consumer off.
    pub fn slow_consumers(&self) -> IntCounter {
        self.slow.clone()
    }

    pub fn observe(&self, observation: Observation) {
        match observation {
            Observation::Batch(commands) => self.batch.observe(commands as f64),
            Observation::Commit(took) => self.commit.observe(took.as_secs_f64()),
            Observation::Sync(took) => self.sync.observe(took.as_secs_f64()),
        }
    }

    /// All of it in Prometheus' text format.
    pub fn text(&self, status: &Status, sockets: usize, bus_dropped: u64) -> String {
        let States { sockets: attached, term, leader, committed, applied, lag, log_bytes, bus_dropped: dropped } =
            &self.states;
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(attached, sockets as u64);
        set(term, status.term);
        set(leader, u64::from(health::leader(status) == Some(status.node)));
        set(committed, status.committed);
        set(applied, status.applied);
        set(lag, status.committed.saturating_sub(status.applied));
        set(log_bytes, status.log_bytes);
        dropped.inc_by(bus_dropped.saturating_sub(dropped.get()));
        // An error would be a metric without a name.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
