//! Losses: sessions of this node whose transport is gone, until the log says so.
//!
//! What always holds: a loss that was reported is proposed until the log has it or the session has moved on. A loss that
//! was forgotten would be a ghost: attached to a live node, with no socket, for ever.
//!
//! Losses that come while others are on their way go together in one command, so that a storm of them is a few writes.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use moim_raft::{
    Store,
    command::{Command, Holder},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Holders in one command.
const SLICE: usize = 1000;
/// Pause before a refused proposal is made again.
const RETRY: Duration = Duration::from_millis(200);

/// What has to be reported. Bounded by the sessions of this node.
pub struct Losses {
    waiting: Mutex<HashSet<Holder>>,
    news: Notify,
    open: watch::Sender<usize>,
}

impl Default for Losses {
    fn default() -> Self {
        Self { waiting: Mutex::default(), news: Notify::new(), open: watch::channel(0).0 }
    }
}

impl Losses {
    /// Reports a loss. Reporting it again is harmless.
    pub fn report(&self, holder: Holder) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(holder);
        self.open.send_replace(waiting.len());
        drop(waiting);
        self.news.notify_one();
    }

    /// Waits until all reported losses are in the log.
    pub async fn settled(&self) {
        // The sender lives as long as `self`.
        _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Proposes what is reported until the token ends it.
    pub async fn run(&self, store: &Store, token: &CancellationToken) {
        let work = async {
            loop {
                let slice = self.slice();
                if slice.is_empty() {
                    self.news.notified().await;
                    continue;
                }
                match store.call(Command::Lost(slice.clone())).await {
                    Ok(_) => self.done(&slice),
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        };
        token.run_until_cancelled(work).await;
    }

    fn slice(&self) -> Vec<Holder> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter().take(SLICE).cloned().collect()
    }

    fn done(&self, slice: &[Holder]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for holder in slice {
            waiting.remove(holder);
        }
        self.open.send_replace(waiting.len());
    }
}
