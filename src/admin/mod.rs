//! Admin HTTP: what an operator, a script or a balancer asks of a node, and what they tell it to do.
//!
//! ```text
//! request ─▶ access (who may ask) ─▶ route ─▶ answer (state, other nodes) ─▶ JSON
//! ```
//!
//! Any node answers for the whole cluster: from its own state, and by asking the others what only they know. What changes
//! something is a POST or a DELETE.

mod access;
mod act;
mod answer;
mod emit;
mod inspect;
mod nodes;
mod peer;
mod query;
mod serve;
mod status;
mod who;
mod whole;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::from_fn,
    routing::{delete, get, post},
};

pub use self::{peer::answer_peer, serve::serve};
use crate::node::Node;

fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/livez", get(status::livez))
        .route("/readyz", get(status::readyz))
        .route("/metrics", get(status::metrics))
        .route("/v1/cluster", get(status::cluster))
        .route("/v1/gaps", get(status::gaps))
        .route("/v1/namespaces", get(inspect::namespaces))
        .route("/v1/rooms", get(inspect::rooms))
        .route("/v1/rooms/{room}", get(inspect::room))
        .route("/v1/rooms/{room}/messages", get(inspect::messages))
        .route("/v1/sids", get(who::sids))
        .route("/v1/sids/{sid}", get(who::sid))
        .route("/v1/users", get(who::users))
        .route("/v1/users/{user}", get(who::user))
        .route("/v1/state", get(whole::state))
        .route("/v1/state/hash", get(whole::hash))
        .route("/v1/emit", post(emit::emit).layer(DefaultBodyLimit::max(emit::BODY_BYTES_MAX)))
        .route("/v1/drain", post(act::drain))
        .route("/v1/undrain", post(act::undrain))
        .route("/v1/nodes", get(nodes::list).post(nodes::post))
        .route("/v1/nodes/{name}", delete(nodes::remove))
        .route("/v1/nodes/{name}/drain", post(act::drain_node))
        .route("/v1/nodes/{name}/undrain", post(act::undrain_node))
        .route("/v1/cluster/leader", post(act::hand_over))
        .route_layer(from_fn(query::guard))
        .fallback(async || answer::Failure::not_found("there is no such route"))
        .method_not_allowed_fallback(async || {
            answer::Failure::new(
                http::StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route is not asked so",
            )
        })
        // Last, so that it stands in front of all of them.
        .layer(from_fn(access::guard))
        .with_state(node)
}
