//! The admin listener: bounded, and gone when it is told to go.
//!
//! What always holds: each connection belongs to a task that `serve` waits for; nobody holds one without speaking; and no
//! caller, however slow, holds up the end of the node by more than [`LAST_ANSWERS`].

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::routes;
use crate::node::Node;

/// Connections at once; one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// From the start of a connection, or an answer's end, to the end of the next request's header.
const HEADER: Duration = Duration::from_secs(10);
/// How long answers that were begun may still take at the node's end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves until `token` is cancelled.
pub async fn serve(listener: TcpListener, node: Arc<Node>, token: CancellationToken) {
    let routes = routes(node);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    while let Some((tcp, slot)) = token.run_until_cancelled(accept(&listener, &slots)).await {
        tasks.spawn(connection(tcp, routes.clone(), slot, token.clone()));
    }
    tasks.close();
    tasks.wait().await;
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = slots.clone().acquire_owned().await.expect("nobody closes it");
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => return (tcp, slot),
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(tcp: TcpStream, routes: Router, _slot: OwnedSemaphorePermit, token: CancellationToken) {
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .serve_connection(TokioIo::new(tcp), TowerToHyperService::new(routes));
    let mut http = std::pin::pin!(http);
    let ended = tokio::select! {
        ended = &mut http => ended,
        () = token.cancelled() => {
            http.as_mut().graceful_shutdown();
            timeout(LAST_ANSWERS, http).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection ended");
    }
}
