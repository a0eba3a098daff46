//! What an Engine.IO request asks for, as far as its head tells.
//!
//! What always holds: what is refused here is refused in the words, and in the order, of Socket.IO's own server (engine.io,
//! `Server.verify` and `Server.errorMessages`); nothing that the rest relies on is taken from a head unread.

use axum::body::Body;
use http::{
    HeaderValue, Method, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, SEC_WEBSOCKET_KEY, UPGRADE},
    request::Parts,
};
use socketioxide::socket::Sid;

use super::{listener::Relayed, socketio::PATH, tag};

/// A request that is not carried out.
pub(super) struct Refusal(&'static str);

pub(super) const UNKNOWN_TRANSPORT: Refusal = Refusal(r#"{"code":0,"message":"Transport unknown"}"#);
/// Makes a stock client start afresh, and recover.
pub(super) const UNKNOWN_SID: Refusal = Refusal(r#"{"code":1,"message":"Session ID unknown"}"#);
pub(super) const BAD_METHOD: Refusal = Refusal(r#"{"code":2,"message":"Bad handshake method"}"#);
pub(super) const BAD_REQUEST: Refusal = Refusal(r#"{"code":3,"message":"Bad request"}"#);
pub(super) const BAD_PROTOCOL: Refusal = Refusal(r#"{"code":5,"message":"Unsupported protocol version"}"#);

impl Refusal {
    pub fn response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.0));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// What a request asks for.
pub(super) enum Ask<'a> {
    Open { websocket: bool },
    Of { id: &'a str, node: u64, sid: Sid, what: What },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Poll,
    Post,
    Upgrade,
    /// A node that passes this session's requests on is leaving: see [`Relay::leave`](super::relay::Relay::leave).
    Release,
}

/// Whether a request begins something that a node that is on its way out should not begin: a session, or a WebSocket.
/// A client whose upgrade is refused goes on polling.
pub(super) fn is_beginning(uri: &Uri) -> bool {
    is_engine(uri) && (query(uri, "sid").is_none() || query(uri, "transport") == Some("websocket"))
}

pub(super) fn is_engine(uri: &Uri) -> bool {
    uri.path().strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest == "/")
}

fn query<'a>(uri: &'a Uri, key: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(k, _)| *k == key).map(|(_, value)| value).next()
}

/// What is asked, or why not.
pub(super) fn parse(parts: &Parts) -> Result<Ask<'_>, Refusal> {
    let websocket = match query(&parts.uri, "transport") {
        Some("polling") => false,
        Some("websocket") => true,
        _ => return Err(UNKNOWN_TRANSPORT),
    };
    let Some(id) = query(&parts.uri, "sid") else { return parse_open(parts, websocket) };
    let (node, sid) = tag::parse(id).ok_or(UNKNOWN_SID)?;
    let what = match (websocket, &parts.method) {
        (_, &Method::DELETE) if parts.extensions.get::<Relayed>().is_some() => What::Release,
        (false, &Method::GET) => What::Poll,
        (false, &Method::POST) => What::Post,
        (true, &Method::GET) if is_upgrade(parts) => What::Upgrade,
        _ => return Err(BAD_REQUEST),
    };
    Ok(Ask::Of { id, node, sid, what })
}

fn parse_open(parts: &Parts, websocket: bool) -> Result<Ask<'_>, Refusal> {
    match () {
        () if parts.method != Method::GET => Err(BAD_METHOD),
        () if websocket && !is_upgrade(parts) => Err(BAD_REQUEST),
        // The one that stock clients have spoken since 2020.
        () if query(&parts.uri, "EIO") != Some("4") => Err(BAD_PROTOCOL),
        // Only requests of a session are passed on.
        () if parts.extensions.get::<Relayed>().is_some() => Err(BAD_REQUEST),
        () => Ok(Ask::Open { websocket }),
    }
}

fn is_upgrade(parts: &Parts) -> bool {
    parts.headers.contains_key(UPGRADE) && parts.headers.contains_key(SEC_WEBSOCKET_KEY)
}
