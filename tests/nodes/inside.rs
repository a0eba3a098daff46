//! A node inside of the test's own process.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod ports;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use moim::{
    config::{Auth, Config},
    handlers::Handlers,
    node::{self, ExitReason},
};
pub use ports::addresses;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

/// Of a node that is alone, lets everybody in, and drains in no time.
pub fn config(name: &str, data: PathBuf, [client, admin, peer]: [SocketAddr; 3]) -> Config {
    let auth = Some(Auth::Open);
    let mut config =
        Config { name: name.to_owned(), data, client, admin, peer, expect: Some(1), auth, ..Config::default() };
    config.drain.delay = Duration::from_millis(50);
    config.drain.window = Duration::from_millis(50);
    config
}

/// Dropped, it goes on until the runtime ends.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<moim_raft::Result<ExitReason>>,
}

impl Running {
    pub fn start(config: Config) -> Self {
        Self::with(config, Handlers::default())
    }

    pub fn with(config: Config, handlers: Handlers) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(node::run(config, handlers, async move { _ = stopped.await }));
        Self { stop: Some(stop), ended }
    }

    /// As a signal would; the first time.
    pub fn tell_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).expect("it runs");
        }
    }

    /// Waits until it has ended, by itself or because it was told to.
    pub async fn ended(self, within: Duration) -> moim_raft::Result<ExitReason> {
        timeout(within, self.ended).await.expect("it ends").expect("no panic")
    }
}
