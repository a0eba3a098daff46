//! The state as a whole: both maps of a namespace, and the hash that is equal on all nodes.
//!
//! What always holds: however large it is, nobody but who asked for it waits.

use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::answer::{Answer, Failure, Read};

/// `GET /v1/state?ns=`: what the copied rows mean is worked out, and written, by a thread of its own.
pub async fn state(read: Read) -> Result<Response, Failure> {
    let relation = read.node.store.relation(&read.ns()?).await;
    let (applied, relation) = relation.map_err(|e| Failure::unavailable(e.why()))?;
    let work = move || read.at(applied, relation.views()).into_response();
    tokio::task::spawn_blocking(work).await.map_err(|_| Failure::unavailable("the answer could not be worked out"))
}

#[derive(Serialize)]
pub struct Hash {
    index: u64,
    hash: String,
}

/// `GET /v1/state/hash?index=`: 404 says of which indexes it is known.
pub async fn hash(read: Read) -> Result<Answer<Hash>, Failure> {
    let index = read.params.parsed("index", |text| text.parse().ok())?;
    let Answer { applied, consistency, data } = read.state(|state| state.hash());
    let (index, hash) = match index {
        Some(index) if index != applied => read.node.store.hash_at(Some(index)).map_err(|(oldest, newest)| {
            Failure::not_found(format!("the hash is known from index {oldest} to index {newest}"))
        })?,
        _ => (applied, data),
    };
    Ok(Answer { applied, consistency, data: Hash { index, hash: format!("{hash:032x}") } })
}
