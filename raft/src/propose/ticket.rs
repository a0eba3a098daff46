//! Who waits for a command.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{error::Error, state::Applied};

/// Called with what became of a command.
type Answer = Box<dyn FnOnce(Result<&Applied, Error>) + Send>;

/// The one who waits for a command. Dropped without an answer, it says `unavailable`.
pub struct Ticket(Option<Answer>);

impl Ticket {
    pub fn new(answer: impl FnOnce(Result<&Applied, Error>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// For a command whose outcome nobody waits for.
    pub fn nobody() -> Self {
        Self(None)
    }

    pub fn answer(mut self, result: Result<&Applied, Error>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(Error::unavailable("the outcome is not known; try again")));
        }
    }
}

/// Commands of which it is not known yet what became of them.
#[derive(Default)]
pub struct Pending {
    /// Each of their tickets has one more.
    count: Arc<()>,
    answered: Arc<Notify>,
}

impl Pending {
    /// For one more.
    pub fn ticket(&self) -> Ticket {
        let (one, answered) = (self.count.clone(), self.answered.clone());
        Ticket::new(move |_| {
            drop(one);
            answered.notify_one();
        })
    }

    pub fn is_none(&self) -> bool {
        Arc::strong_count(&self.count) == 1
    }

    /// Waits until one was answered since the last call.
    pub async fn answered(&self) {
        self.answered.notified().await;
    }
}
