//! How long the player waits for the writers of its sockets.
//!
//! Why: the player writes into queues, and each socket has a task that empties its own. A burst of large entries fills
//! them before those tasks have a turn, and clients that do read would be let go for the server's own haste. So after an
//! entry that made queues half full the player waits until they are below that again.
//!
//! What always holds:
//! - A client that does not read costs the others [`ONCE`] at most when it fills its queue, and all such clients together
//!   a [`SHARE`] of the player's time, besides what was saved up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use crate::seat::Seat;

/// The longest wait: many turns of a busy machine's tasks, and no latency that anybody sees.
const ONCE: Duration = Duration::from_millis(10);
/// One part in so many of the player's time may be spent on waiting.
const SHARE: u32 = 4;
/// What may be saved up.
const SAVED_MAX: Duration = Duration::from_millis(100);

/// The time that may be waited.
pub struct Pace {
    saved: Duration,
    since: Instant,
}

impl Pace {
    pub fn new() -> Self {
        Self { saved: SAVED_MAX, since: Instant::now() }
    }

    /// Waits until each of these seats has half of its queue free, has ended, or the time is up.
    pub async fn ease(&mut self, half_full: &[Arc<Seat>]) {
        if half_full.is_empty() {
            return;
        }
        self.save();
        let all = async {
            for seat in half_full {
                seat.eased().await;
            }
        };
        // Whoever is not done by then does not read.
        timeout(ONCE.min(self.saved), all).await.ok();
        self.spend();
    }

    fn save(&mut self) {
        self.saved = (self.saved + self.since.elapsed() / SHARE).min(SAVED_MAX);
        self.since = Instant::now();
    }

    fn spend(&mut self) {
        self.saved = self.saved.saturating_sub(self.since.elapsed());
        self.since = Instant::now();
    }
}
