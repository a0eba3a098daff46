//! What a browser gets from a node: the chat page at `/` and the official Socket.IO client beside it.
//!
//! Both are in the binary; the page loads nothing from anywhere else. `socket.io.min.js` is `dist/socket.io.min.js` of the
//! npm package `socket.io-client` 4.8.4, unchanged (MIT, © Guillermo Rauch; see `LICENSE-socket.io-client`). A test holds
//! it to that version.

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

const PAGE: &str = include_str!("index.html");
const CLIENT: &[u8] = include_bytes!("socket.io.min.js");
const CLIENT_VERSION: &str = "4.8.4";

/// `GET /`, `GET /socket.io/socket.io.js` and its `.min.js`. The last two have to be routed before the path `/socket.io/` of
/// the protocol itself.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(page))
        .route("/socket.io/socket.io.js", get(client))
        .route("/socket.io/socket.io.min.js", get(client))
}

/// Never cached: a page of an old version must not outlive its server.
async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self' ws: wss:; frame-ancestors 'self'; base-uri 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE)
}

/// As Socket.IO's own server does: a strong validator, and the browser asks each time.
async fn client(request: Request) -> Response {
    let tag = format!("\"{CLIENT_VERSION}\"");
    let same = request.headers().get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let headers = [
        (header::CONTENT_TYPE, "application/javascript; charset=utf-8".to_string()),
        (header::CACHE_CONTROL, "public, max-age=0".to_string()),
        (header::ETAG, tag),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_string()),
    ];
    if same { (StatusCode::NOT_MODIFIED, headers).into_response() } else { (headers, CLIENT).into_response() }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn fetch(path: &str, known: Option<&str>) -> (StatusCode, String, Vec<u8>) {
        let mut request = Request::builder().uri(path);
        if let Some(known) = known {
            request = request.header(header::IF_NONE_MATCH, known);
        }
        let request = request.body(Body::empty()).expect("a request");
        let response = routes::<()>().oneshot(request).await.expect("routes cannot fail");
        let kind = response.headers()[header::CONTENT_TYPE].to_str().expect("ascii").to_string();
        let status = response.status();
        (status, kind, response.into_body().collect().await.expect("a body").to_bytes().to_vec())
    }

    #[tokio::test]
    async fn the_official_client_is_served_as_it_was_published() {
        for path in ["/socket.io/socket.io.js", "/socket.io/socket.io.min.js"] {
            let (status, kind, body) = fetch(path, None).await;
            assert_eq!((status, kind.as_str()), (StatusCode::OK, "application/javascript; charset=utf-8"));
            assert_eq!(body, CLIENT);
            assert_eq!(fetch(path, Some("\"4.8.4\"")).await.0, StatusCode::NOT_MODIFIED);
        }
        let head = String::from_utf8_lossy(&CLIENT[..100]);
        assert!(head.contains(&format!("Socket.IO v{CLIENT_VERSION}")), "{head}");
        let digest = <sha2::Sha256 as sha2::Digest>::digest(CLIENT);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, "d5d79a35039e860b32bdef4795528b05c2f788d4b2d9dacc913120e2878f7b3f");
    }

    #[tokio::test]
    async fn the_page_loads_nothing_from_elsewhere() {
        let (status, kind, body) = fetch("/", None).await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, "text/html; charset=utf-8"));
        let page = String::from_utf8(body).expect("text");
        assert!(page.contains("src=\"/socket.io/socket.io.js\""));
        assert!(!page.contains("https://") && !page.contains("src=\"http") && !page.contains("@import"));
    }
}
