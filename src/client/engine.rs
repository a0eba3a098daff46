//! The request layer in front of socketioxide, and one record per Engine.IO session.
//!
//! Why: a session's transport is found by the Engine.IO id, not by `SocketRef::req_parts`, which stay those of the request
//! that *opened* the session; after an upgrade that was another connection, perhaps a proxy's, shared by strangers.
//! A request that names a session shows its id in the query (`sid`); for a WebSocket that is opened directly the id
//! exists only inside of socketioxide, and there `req_parts` do hold the right connection: the connect middleware
//! *adopts* it.
//!
//! What always holds: a record ends with its connection, so there are never more records than connections.
//!
//! WebSocket is the only transport that is offered for now. Long-polling adds to this file: a poll or post finds its
//! record here by `sid`, an upgrade replaces the record's connection, and a closed session ends the record.

use std::{
    collections::{HashMap, hash_map::Entry},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use http::{Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use socketioxide::socket::Sid;
use tower::Service;

use super::{connection::Connection, socketio::PATH};

/// The Engine.IO sessions of this node and the connection that each lives on. Cheap to clone.
#[derive(Clone, Default)]
pub struct Records(Arc<Mutex<HashMap<Sid, Connection>>>);

impl Records {
    /// The live connection of an Engine.IO session: after an upgrade the WebSocket's.
    pub fn connection(&self, eio_sid: Sid) -> Option<Connection> {
        self.lock().get(&eio_sid).cloned()
    }

    /// Names the connection of a session that was opened by WebSocket. To be called in the connect middleware of each
    /// namespace; only the first call of a session does something.
    pub fn adopt(&self, eio_sid: Sid, connection: &Connection) {
        match self.lock().entry(eio_sid) {
            Entry::Occupied(_) => return,
            Entry::Vacant(vacant) => vacant.insert(connection.clone()),
        };
        // Weak, because the connection is held by the map.
        let records = Arc::downgrade(&self.0);
        let of = connection.clone();
        connection.on_close(move || remove(&records, eio_sid, &of));
    }

    /// All live connections, for a drain.
    pub fn connections(&self) -> Vec<Connection> {
        self.lock().values().cloned().collect()
    }

    /// The number of Engine.IO sessions that CONNECTed to a namespace and still have their connection.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Sid, Connection>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

fn remove(records: &Weak<Mutex<HashMap<Sid, Connection>>>, eio_sid: Sid, connection: &Connection) {
    let Some(records) = records.upgrade() else { return };
    let mut records = records.lock().expect("nothing panics under this lock");
    if records.get(&eio_sid).is_some_and(|current| current.same(connection)) {
        records.remove(&eio_sid);
    }
}

/// Whether a request asks for a *new* Engine.IO session. All others belong to a session, or are not Engine.IO's.
pub fn is_handshake(uri: &Uri) -> bool {
    is_engine(uri) && query(uri, "sid").is_none()
}

fn is_engine(uri: &Uri) -> bool {
    uri.path().strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest == "/")
}

fn query<'a>(uri: &'a Uri, key: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(k, _)| *k == key).map(|(_, value)| value).next()
}

/// The layer: see the module. `S` is socketioxide's service; what is not Engine.IO's goes to `pages`, which socketioxide
/// itself would not do for paths below its own.
#[derive(Clone)]
pub struct Engine<S> {
    inner: S,
    pages: Router,
    records: Records,
}

impl<S> Engine<S> {
    pub fn new(inner: S, pages: Router, records: Records) -> Self {
        Self { inner, pages, records }
    }

    /// Why an Engine.IO request is not handed on. Codes and messages are those of Socket.IO's own server
    /// (engine.io, `Server.errorMessages`).
    fn refuse(&self, uri: &Uri) -> Option<&'static str> {
        match (query(uri, "transport"), query(uri, "sid")) {
            (Some("websocket"), None) => None,
            // A session that has its WebSocket is not upgraded again, and there is no other to upgrade from.
            (Some("websocket"), Some(sid)) => match sid.parse().ok().and_then(|sid| self.records.connection(sid)) {
                Some(_) => Some(r#"{"code":3,"message":"Bad request"}"#),
                None => Some(r#"{"code":1,"message":"Session ID unknown"}"#),
            },
            _ => Some(r#"{"code":0,"message":"Transport unknown"}"#),
        }
    }
}

impl<S, R, B> Service<Request<R>> for Engine<S>
where
    S: Service<Request<R>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<axum::BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        if !is_engine(request.uri()) {
            return self.pages.call(request).boxed();
        }
        if let Some(error) = self.refuse(request.uri()) {
            return std::future::ready(Ok(bad_request(error))).boxed();
        }
        let connection = request.extensions().get::<Connection>().cloned();
        let response = self.inner.call(request);
        async move {
            let response = response.await?;
            if let Some(connection) = connection
                && response.status() == StatusCode::SWITCHING_PROTOCOLS
            {
                connection.upgraded();
            }
            Ok(response.map(Body::new))
        }
        .boxed()
    }
}

fn bad_request(error: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(error));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
