//! STAND-IN: a node that only answers that it is ready, so that the commands around it can be tried. To be replaced.

use axum::{Router, routing::get};
use moim_raft::error::Result;

use crate::config::Config;

/// Why a node ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    Shutdown,
}

pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<ExitReason> {
    let listener = tokio::net::TcpListener::bind(config.client).await;
    let listener = listener.map_err(|error| {
        moim_raft::error::Error::refused(format!(
            "--client {}: {error}; stop what listens there or choose another",
            config.client
        ))
    })?;
    let routes = Router::new().route("/readyz", get(async || "ready")).merge(crate::web::routes());
    let server = std::future::IntoFuture::into_future(axum::serve(listener, routes));
    tokio::select! {
        _ = server => {}
        () = shutdown => {}
    }
    Ok(ExitReason::Shutdown)
}
