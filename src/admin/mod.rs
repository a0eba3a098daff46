//! Admin HTTP. (Routes follow.)

use std::sync::Arc;

use axum::{Json, Router, extract::State, routing::get};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Serves until `token` is cancelled.
pub async fn serve(listener: TcpListener, node: Arc<Node>, token: CancellationToken) {
    let routes = Router::new().route("/v1/cluster", get(cluster)).with_state(node);
    let server = axum::serve(listener, routes).with_graceful_shutdown(token.cancelled_owned());
    if let Err(e) = server.await {
        tracing::error!("admin HTTP ended: {e}");
    }
}

async fn cluster(State(node): State<Arc<Node>>) -> Json<serde_json::Value> {
    let status = node.store.status();
    Json(serde_json::json!({ "applied": status.applied, "leader": status.leader, "term": status.term }))
}

/// Answers what the admin of another node asks of this one.
pub async fn answer_peer(_node: Arc<Node>, _question: Bytes) -> Bytes {
    Bytes::from_static(b"{}")
}
