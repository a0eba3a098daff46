//! What the store has to tell those who count: durations and sizes, one at a time, where they arise.
//!
//! Counting itself is the business of the layers above. Until somebody listens, and for what nobody counts, an observation
//! costs one load.

use std::{
    fs::File,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use crate::wal;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observation {
    /// A batch of this node was sent off with so many commands.
    Batch(usize),
    /// So long after that it had been committed by a quorum and applied here.
    Commit(Duration),
    /// One sync of the log took so long.
    Sync(Duration),
}

/// Called by whichever thread sees it; must not block.
pub type Observer = Box<dyn Fn(Observation) + Send + Sync>;

/// The way to the one observer, once there is one. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Observed(Arc<OnceLock<Observer>>);

impl Observed {
    pub fn by(&self, observer: Observer) {
        if self.0.set(observer).is_err() {
            tracing::error!("a second observer was ignored");
        }
    }

    pub fn tell(&self, observation: Observation) {
        if let Some(observer) = self.0.get() {
            observer(observation);
        }
    }

    /// The log's options, with each sync measured.
    pub fn syncs(&self, options: wal::Options) -> wal::Options {
        let (observed, sync) = (self.clone(), options.sync);
        let timed = move |file: &File| {
            let began = Instant::now();
            let done = sync(file);
            observed.tell(Observation::Sync(began.elapsed()));
            done
        };
        wal::Options { sync: Arc::new(timed), ..options }
    }
}
