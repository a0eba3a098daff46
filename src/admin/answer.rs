//! What every route has in common: how a question is read, and what an answer looks like.
//!
//! What always holds: an answer to a read carries the index up to which its data is current at least, taken together with the
//! data, and how it was read; and whatever goes wrong is `{ error: { code, message } }`.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{FromRequestParts, Path, Query},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use moim_raft::{command::Namespace, state::State};
use serde::{Serialize, de::DeserializeOwned};

use crate::node::Node;

/// Rows of a page, unless the caller asks for another number.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;
/// Rows that are looked at in one go, while apply waits. Past it a page is short, and `next` goes on.
pub const SCANNED_MAX: usize = 10_000;

/// An answer that is not ok.
#[derive(Debug)]
pub struct Failure {
    pub status: StatusCode,
    /// A stable word.
    pub code: &'static str,
    pub message: String,
}

impl Failure {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    pub fn no_leader() -> Self {
        Self::unavailable(
            "there is no leader with a quorum now: bring the nodes back that are down, and say this again",
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": { "code": self.code, "message": self.message } });
        (self.status, Json(body)).into_response()
    }
}

/// The query of a request; [`super::query`] has looked at its keys.
pub struct Params(HashMap<String, String>);

impl Params {
    fn of(parts: &Parts) -> Result<Self, Failure> {
        let Query(pairs) = Query::try_from_uri(&parts.uri).map_err(|e| Failure::bad_request(e.body_text()))?;
        Ok(Self(pairs))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The value under a key, read by `parse`.
    pub fn parsed<T>(&self, key: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Failure> {
        let read = |text| parse(text).ok_or_else(|| Failure::bad_request(format!("{key}={text} cannot be read")));
        self.get(key).map(read).transpose()
    }

    /// The namespace, `/` unless given.
    pub fn ns(&self) -> Result<Namespace, Failure> {
        Ok(self.parsed("ns", |text| Namespace::new(text))?.unwrap_or_else(main_namespace))
    }

    pub fn limit(&self) -> Result<usize, Failure> {
        match self.get("limit").map(str::parse) {
            None => Ok(PAGE_DEFAULT),
            Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
            Some(_) => Err(Failure::bad_request(format!("limit is a number from 1 to {PAGE_MAX}"))),
        }
    }

    /// Whether a flag is set: `?verbose`, `?force=true`.
    pub fn flag(&self, key: &str) -> Result<bool, Failure> {
        let flag = |text: &str| match text {
            "" | "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        Ok(self.parsed(key, flag)?.unwrap_or(false))
    }
}

pub fn main_namespace() -> Namespace {
    Namespace::new("/").expect("it is a name")
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Self::of(parts)
    }
}

/// A name in the path.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name)).map_err(|e| Failure::bad_request(e.body_text()))
    }
}

/// A read: its query, and the freshness that it asked for and has by now.
pub struct Read {
    pub params: Params,
    pub node: Arc<Node>,
    consistency: &'static str,
}

impl FromRequestParts<Arc<Node>> for Read {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Failure> {
        let params = Params::of(parts)?;
        let consistency = match params.get("consistency") {
            None | Some("local") => "local",
            Some("linearizable") => {
                node.store.linearizable().await.map_err(|e| Failure::unavailable(e.why()))?;
                "linearizable"
            }
            Some(_) => return Err(Failure::bad_request("consistency is local or linearizable")),
        };
        Ok(Self { params, node: node.clone(), consistency })
    }
}

/// Refuses a namespace that clients cannot be in.
pub fn must_be_served(node: &Node, ns: &Namespace) -> Result<(), Failure> {
    let config = &node.config.namespaces;
    let served = |known: &str| match known.split_once('{') {
        // Which of a pattern's there are is the clients' word.
        Some((start, _)) => ns.as_str().starts_with(start),
        None => known == ns.as_str(),
    };
    let own = || node.chat.handlers.namespaces().any(served);
    // Or it was served before, and has left something.
    let is_known = config.iter().any(|known| served(known)) || own();
    if is_known || node.store.read(|state| state.namespaces().contains(ns)) {
        return Ok(());
    }
    Err(Failure::not_found(format!("there is no namespace {:?}; served are {}", ns.as_str(), config.join(", "))))
}

/// The answer to a read.
#[derive(Serialize)]
pub struct Answer<T> {
    pub applied: u64,
    pub consistency: &'static str,
    #[serde(flatten)]
    pub data: T,
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

impl Read {
    /// Copies what is needed out of the state. The closure must be short: apply waits for it.
    pub fn state<T>(&self, read: impl FnOnce(&State) -> T) -> Answer<T> {
        let (applied, data) = self.node.store.read_at(|state, applied| (applied, read(state)));
        self.at(applied, data)
    }

    /// The answer with data that is of this index.
    pub fn at<T>(&self, applied: u64, data: T) -> Answer<T> {
        Answer { applied, consistency: self.consistency, data }
    }

    /// The namespace that is asked for, `/` unless given.
    pub fn ns(&self) -> Result<Namespace, Failure> {
        let ns = self.params.ns()?;
        must_be_served(&self.node, &ns).map(|()| ns)
    }

    /// As [`Read::state`], for what may not be there.
    pub fn found<T>(&self, what: &str, read: impl FnOnce(&State) -> Option<T>) -> Result<Answer<T>, Failure> {
        let Answer { applied, consistency, data } = self.state(read);
        let data = data.ok_or_else(|| Failure::not_found(format!("there is no such {what}")))?;
        Ok(Answer { applied, consistency, data })
    }
}

impl<T> Answer<T> {
    /// The same index and consistency with other data.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { applied: self.applied, consistency: self.consistency, data: change(self.data) }
    }
}

/// The first `limit` wanted rows, and the candidate after which the next page begins, if there is one.
pub fn page<C, R>(
    candidates: impl Iterator<Item = C>,
    limit: usize,
    mut wanted: impl FnMut(&C) -> Option<R>,
) -> (Vec<R>, Option<C>) {
    let (mut rows, mut last) = (Vec::new(), None);
    for (seen, candidate) in candidates.enumerate() {
        if seen == SCANNED_MAX {
            return (rows, last);
        }
        if let Some(row) = wanted(&candidate) {
            if rows.len() == limit {
                return (rows, last);
            }
            rows.push(row);
        }
        last = Some(candidate);
    }
    (rows, None)
}

/// JSON that another node sent; one of another version may say what this one does not know.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_at_its_limit_and_says_where_the_next_begins() {
        let even = |n: &u64| n.is_multiple_of(2).then_some(*n);
        assert_eq!(page(1..=6, 2, even), (vec![2, 4], Some(5)));
        assert_eq!(page(6..=6, 2, even), (vec![6], None));
        assert_eq!(page(1..=4, 2, even), (vec![2, 4], None), "nothing is left, so there is no next page");
        assert_eq!(page([].into_iter(), 2, even), (vec![], None));
    }

    #[test]
    fn a_page_that_finds_little_is_short_and_goes_on() {
        let far = SCANNED_MAX as u64 * 2;
        let (rows, next) = page(1..=far, 5, |n| (*n == far).then_some(*n));
        assert_eq!((rows, next), (vec![], Some(SCANNED_MAX as u64)));
    }
}
