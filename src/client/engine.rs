//! The request layer in front of socketioxide: whose request is it, may it be asked now, who answers.
//!
//! ```text
//! no sid    ─▶ a new session here; over long-polling its id is given this node's tag on its way out
//! sid, ours ─▶ poll, post or upgrade, under socketioxide's own id
//! sid of another node's tag ─▶ passed on to that node (`relay`), once
//! ```
//!
//! A transport is found by what the request that opened its session carries into socketioxide: a [`Transport`], not a
//! connection; after an upgrade that was another connection, perhaps a proxy's, shared by strangers.
//!
//! What always holds: socketioxide's own id of a session that began with long-polling is on no wire without its tag; and
//! refusals are in the words of Socket.IO's own server (engine.io, `Server.errorMessages`).
//!
//! Pages of other origins cannot poll: like Socket.IO's own server, this answers no CORS headers unless it is told to, and
//! it cannot be told yet.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
    request::Parts,
};
use http_body_util::{BodyExt, Full};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use socketioxide::socket::Sid;
use tower::Service;
use tungstenite::handshake::derive_accept_key;

use super::{
    ask::{Ask, BAD_REQUEST, UNKNOWN_SID, What, is_engine, parse},
    asked::head,
    connection::Connection,
    listener::Relayed,
    poll,
    relay::Relay,
    rewrite,
    socketio::PATH,
    tag,
    transport::{Hangup, NotNow, Opened, Transport},
    transports::Transports,
    upgrade::{self, Chosen},
};

/// A WebSocket that began elsewhere, with the request that it belongs to.
type WebSocket = (Chosen<TokioIo<Upgraded>>, Request<()>);

/// The layer: see the module. `S` is socketioxide's service; what is not Engine.IO's goes to `pages`, which socketioxide
/// itself would not do for paths below its own.
#[derive(Clone)]
pub struct Engine<S> {
    inner: S,
    pages: Router,
    transports: Transports,
    relay: Relay,
    max_payload: usize,
    hangup: Hangup,
}

impl<S, B> Engine<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    <S as Service<Request<Full<Bytes>>>>::Future: Send + 'static,
    S: Service<WebSocket, Response = ()>,
    <S as Service<WebSocket>>::Future: Send,
    <S as Service<WebSocket>>::Error: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    pub fn new(inner: S, pages: Router, transports: Transports, relay: Relay, max_payload: usize) -> Self {
        let closing = inner.clone();
        let hangup = Arc::new(move |sid| hang_up(closing.clone(), sid));
        Self { inner, pages, transports, relay, max_payload, hangup }
    }

    async fn answer<R>(mut self, request: Request<R>) -> Response<Body>
    where
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<axum::BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        // Every request comes through the listener, which says on what.
        let Some(connection) = parts.extensions.get::<Connection>().cloned() else { return BAD_REQUEST.response() };
        let (id, node, sid, what) = match parse(&parts) {
            Err(refusal) => return refusal.response(),
            Ok(Ask::Open { websocket }) => {
                own(&mut parts);
                return match websocket {
                    true => self.open_websocket(parts, &connection).await,
                    false => self.open_polling(parts, &connection).await,
                };
            }
            Ok(Ask::Of { id, node, sid, what }) => (id.to_owned(), node, sid, what),
        };
        let relayed = parts.extensions.get::<Relayed>().copied();
        let elsewhere = node != self.relay.me();
        let found = self.transports.get(sid).filter(|transport| !elsewhere && !transport.is_closed());
        // What was passed on is never passed on again.
        if found.is_none() && (!elsewhere || relayed.is_some()) {
            return UNKNOWN_SID.response();
        }
        // Until it is answered.
        let post =
            found.as_ref().filter(|_| what == What::Post).map(|transport| transport.begin_post().ok_or(transport));
        if let Some(Err(transport)) = post {
            transport.cut();
            return empty(StatusCode::BAD_REQUEST);
        }
        let body = match what {
            What::Post => match poll::read(body, self.max_payload).await {
                Ok(body) => body,
                Err(status) => {
                    // What it wanted to say is lost, and what it says next would follow a gap.
                    found.inspect(Transport::cut);
                    return empty(status);
                }
            },
            What::Poll | What::Upgrade | What::Release => Bytes::new(),
        };
        let Some(transport) = found else {
            return self.relay.pass_on(node, &id, Request::from_parts(parts, Full::new(body)), connection.peer()).await;
        };
        parts.uri = address(what, sid);
        match what {
            What::Poll => self.poll(transport, Request::from_parts(parts, Full::default()), &connection).await,
            What::Post => self.post(transport, parts, body).await,
            What::Upgrade => {
                self.offer(transport, Request::from_parts(parts, Full::default()), sid, connection, relayed)
            }
            What::Release => self.relay.release(transport).await,
        }
    }

    async fn open_websocket(&mut self, mut parts: Parts, connection: &Connection) -> Response<Body> {
        let transport = self.transports.open(connection.peer(), self.hangup.clone());
        transport.outgoing().arm_open(self.max_payload);
        parts.extensions.insert(Opened::new(transport.clone()));
        transport.upgraded(connection, None);
        let Ok(response) = self.inner.call(Request::from_parts(parts, Full::default())).await;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            transport.cut();
        }
        response.map(Body::new)
    }

    async fn open_polling(&mut self, mut parts: Parts, connection: &Connection) -> Response<Body> {
        let transport = self.transports.open(connection.peer(), self.hangup.clone());
        parts.extensions.insert(Opened::new(transport.clone()));
        let Ok(response) = self.inner.call(Request::from_parts(parts, Full::default())).await;
        let Ok(body) = response.into_body().collect().await.map(|body| body.to_bytes()) else {
            return BAD_REQUEST.response();
        };
        let me = self.relay.me();
        let Some((sid, open)) = rewrite::open(&body, self.max_payload, |sid| tag::tagged(me, sid)) else {
            return BAD_REQUEST.response();
        };
        transport.name(sid);
        let length = open.len();
        poll::text(Body::from(open), length)
    }

    async fn poll(
        &mut self,
        transport: Transport,
        request: Request<Full<Bytes>>,
        connection: &Connection,
    ) -> Response<Body> {
        match transport.begin_poll() {
            Ok(turn) => poll::poll(turn, connection, self.inner.call(request)).await,
            Err(NotNow::Unknown) => UNKNOWN_SID.response(),
            Err(NotNow::Second) => {
                transport.part_with(rewrite::CLOSE);
                transport.cut();
                empty(StatusCode::BAD_REQUEST)
            }
        }
    }

    async fn post(&mut self, transport: Transport, parts: Parts, body: Bytes) -> Response<Body> {
        if transport.hears_nothing() {
            return UNKNOWN_SID.response();
        }
        let asked = &transport.outgoing().asked;
        if !transport.is_websocket() && !rewrite::packets(&body).all(|packet| asked.hear(head(packet))) {
            transport.cut();
            return UNKNOWN_SID.response();
        }
        let says_close = rewrite::packets(&body).any(|packet| packet == rewrite::CLOSE);
        let Ok(response) = self.inner.call(Request::from_parts(parts, Full::new(body))).await;
        if says_close {
            transport.part_with(rewrite::NOOP);
            transport.ended();
        }
        match response.status() {
            StatusCode::OK => poll::text(Body::from("ok"), 2),
            // A WebSocket by now: it is not its client that posts.
            _ if transport.is_websocket() => BAD_REQUEST.response(),
            status => {
                transport.cut();
                empty(status)
            }
        }
    }

    /// Offers a client that polls a WebSocket, and hands it to socketioxide when the client has chosen it.
    fn offer(
        &self,
        transport: Transport,
        mut request: Request<Full<Bytes>>,
        sid: Sid,
        connection: Connection,
        relayed: Option<Relayed>,
    ) -> Response<Body> {
        if transport.hears_nothing() {
            return UNKNOWN_SID.response();
        }
        let accept = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
        let accept = accept.and_then(|accept| HeaderValue::try_from(accept).ok());
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let (Some(accept), Some(upgrade), Some(offer)) = (accept, upgrade, transport.offer()) else {
            return BAD_REQUEST.response();
        };
        let mut inner = self.inner.clone();
        self.transports.spawn(async move {
            let work = async {
                let probed = upgrade::probe(TokioIo::new(upgrade.await.ok()?), &transport).await.ok()?;
                // Before socketioxide writes to it.
                transport.upgraded(&connection, relayed).then_some(probed)
            };
            let chosen = tokio::select! {
                biased;
                () = transport.closed() => None,
                () = transport.is_closing() => None,
                chosen = work => chosen,
            };
            drop(offer);
            if let Some(chosen) = chosen {
                let mut request = Request::new(());
                *request.uri_mut() = address(What::Upgrade, sid);
                // It goes on by itself, and what becomes of it is learnt from the stream.
                _ = inner.call((chosen, request)).await;
            }
        });
        let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        response
    }
}

/// Makes what a request says its own. As hyper hands it over, each header and the address are slices of the connection's read
/// buffer of 8 KiB, and socketioxide keeps the request that opened a session for as long as the session.
fn own(parts: &mut Parts) {
    for value in parts.headers.values_mut() {
        // What was a header's value is one.
        let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) else { continue };
        *value = copy;
    }
    if let Ok(copy) = Uri::try_from(parts.uri.to_string()) {
        parts.uri = copy;
    }
}

/// What socketioxide is asked, in its own words.
fn address(what: What, sid: Sid) -> Uri {
    let transport = if what == What::Upgrade { "websocket" } else { "polling" };
    let uri = format!("{PATH}/?EIO=4&transport={transport}&sid={sid}");
    uri.try_into().expect("letters, digits and what is allowed between them")
}

/// Posts a session's close packet to socketioxide, as its client would. It takes it in one step: the body is all there.
fn hang_up<S, B>(mut inner: S, sid: Sid)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
{
    let mut post = Request::new(Full::new(Bytes::from_static(rewrite::CLOSE)));
    *post.method_mut() = Method::POST;
    *post.uri_mut() = address(What::Post, sid);
    if inner.call(post).now_or_never().is_none() {
        tracing::error!("socketioxide did not end a session at once; it ends when its pings are not answered");
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

impl<S, R, B> Service<Request<R>> for Engine<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    <S as Service<Request<Full<Bytes>>>>::Future: Send + 'static,
    S: Service<WebSocket, Response = ()>,
    <S as Service<WebSocket>>::Future: Send,
    <S as Service<WebSocket>>::Error: Send,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<axum::BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Full<Bytes>>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        if !is_engine(request.uri()) {
            let request = request.map(Body::new);
            return self.pages.call(request).boxed();
        }
        self.clone().answer(request).map(Ok).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_kept_does_not_hold_the_buffer_that_it_came_in() {
        let buffer = Bytes::from(b"/socket.io/?EIO=4&transport=websocket user-agent: moim".repeat(100));
        let (uri, value) = (buffer.slice(..37), buffer.slice(50..54));
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_maybe_shared(uri).unwrap();
        request.headers_mut().insert("x-name", HeaderValue::from_maybe_shared(value).unwrap());
        let (mut parts, ()) = request.into_parts();
        assert!(!buffer.is_unique());
        own(&mut parts);
        assert!(buffer.is_unique());
        assert_eq!(parts.uri, "/socket.io/?EIO=4&transport=websocket");
        assert_eq!(parts.headers["x-name"], "moim");
    }
}
