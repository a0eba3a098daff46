//! Which keys a route has in its query. A misspelt one is refused: an answer to another question looks like an answer.
//!
//! Probes (`/livez`, `/readyz`, `/metrics`) take any: balancers and scrapers add what they like.

use axum::{
    extract::{MatchedPath, Query, Request},
    middleware::Next,
    response::Response,
};

use super::answer::Failure;

const ALL: &str = "/v1/";

fn keys(route: &str) -> &'static [&'static str] {
    match route {
        "/v1/cluster" | "/v1/namespaces" | "/v1/nodes" | "/v1/sids/{sid}" | "/v1/users/{user}" => &["consistency"],
        "/v1/gaps" => &["after", "consistency"],
        "/v1/rooms" | "/v1/users" => &["ns", "prefix", "limit", "after", "consistency"],
        "/v1/rooms/{room}" => &["ns", "limit", "after", "consistency"],
        "/v1/rooms/{room}/messages" => &["ns", "before", "after", "limit", "consistency"],
        "/v1/sids" => &["ns", "node", "user", "limit", "after", "consistency"],
        "/v1/state" => &["ns", "consistency"],
        "/v1/state/hash" => &["index", "consistency"],
        "/v1/drain" | "/v1/nodes/{name}/drain" => &["force"],
        _ => &[],
    }
}

/// Refuses a key that the route does not know, and names those that it does.
pub async fn guard(route: MatchedPath, request: Request, next: Next) -> Result<Response, Failure> {
    if route.as_str().starts_with(ALL) {
        let Query(pairs): Query<Vec<(String, String)>> =
            Query::try_from_uri(request.uri()).map_err(|e| Failure::bad_request(e.body_text()))?;
        known(keys(route.as_str()), pairs.iter().map(|(key, _)| key.as_str()))?;
    }
    Ok(next.run(request).await)
}

fn known<'a>(keys: &[&str], mut given: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    let Some(other) = given.find(|key| !keys.contains(key)) else { return Ok(()) };
    Err(Failure::bad_request(match keys {
        [] => format!("this route takes no query, and {other:?} was given"),
        keys => format!("this route does not know {other:?} in its query, but {}", keys.join(", ")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_refused_with_those_that_are_known() {
        let of = |route: &str, key: &str| known(keys(route), [key].into_iter()).map_err(|e| e.message);
        assert_eq!(of("/v1/rooms", "prefix"), Ok(()));
        let why = of("/v1/rooms", "prefx").unwrap_err();
        assert_eq!(why, "this route does not know \"prefx\" in its query, but ns, prefix, limit, after, consistency");
        assert_eq!(of("/v1/emit", "ns").unwrap_err(), "this route takes no query, and \"ns\" was given");
    }
}
