//! Long-polling: how a poll waits and ends, how a post is read.
//!
//! What always holds: a poll ends with packets, with a noop, or, when the transport ends, with "session unknown"; and what
//! socketioxide gave for it reaches the client's connection or ends the transport ([`Turn`]).
//!
//! Engine.IO's close packet would say the same, but not to everybody: python-socketio takes it for the end and never comes
//! back. An unknown session makes every client start afresh, and recover if it can.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use super::{
    ask::{BAD_REQUEST, UNKNOWN_SID},
    connection::Connection,
    rewrite,
    transport::{Transport, Turn},
};

/// From the header of a post to its last byte. Past it the post is answered 408.
const POST_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers a poll with what `inner` gives, unless something ends the wait before.
pub(super) async fn poll<B>(
    mut turn: Turn,
    connection: &Connection,
    inner: impl Future<Output = Result<Response<B>, Infallible>>,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes>,
{
    let transport = turn.transport().clone();
    tokio::select! {
        biased;
        () = transport.closed() => closed(turn),
        // Its client has gone. hyper says so by giving this up, but not when it heard of it too early.
        () = connection.closed() => closed(turn),
        response = inner => {
            let (parts, body) = response.unwrap_or_else(|never| match never {}).into_parts();
            let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else { return closed(turn) };
            if parts.status != StatusCode::OK {
                turn.done();
                return refused(&transport);
            }
            // socketioxide lets a poll go with nothing when the session ends; a packet says it in so many words.
            if body.is_empty() {
                return closed(turn);
            }
            packets(turn, body)
        }
        // From here on nothing was taken from socketioxide: the poll can be let go.
        () = transport.is_closing() => closed(turn),
        () = transport.released() => whole(turn, Bytes::from_static(rewrite::NOOP)),
    }
}

fn packets(turn: Turn, body: Bytes) -> Response<Body> {
    let outgoing = turn.transport().outgoing().clone();
    let count = rewrite::counted(&body);
    let replaced = match outgoing.is_armed() {
        true => rewrite::replace(&body, |packet| outgoing.replacement(packet)),
        false => None,
    };
    let response = whole(turn, replaced.map_or(body, Bytes::from));
    outgoing.wrote(count);
    response
}

/// The transport ends with this answer.
fn closed(mut turn: Turn) -> Response<Body> {
    turn.done();
    let transport = turn.transport();
    transport.cut();
    match transport.last_word() {
        Some(word) => text(Body::from(word), word.len()),
        None => UNKNOWN_SID.response(),
    }
}

/// A poll that socketioxide did not take: the session is a WebSocket's by now, or has ended in this moment.
fn refused(transport: &Transport) -> Response<Body> {
    match transport.is_closed() {
        true => UNKNOWN_SID.response(),
        false => BAD_REQUEST.response(),
    }
}

fn whole(turn: Turn, body: Bytes) -> Response<Body> {
    let length = body.len();
    text(Body::new(Answer { body: Some(body), turn }), length)
}

/// As socketioxide answers, and never out of a cache.
pub(super) fn text(body: Body, length: usize) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A body whose poll is done when it was taken.
struct Answer {
    body: Option<Bytes>,
    turn: Turn,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.body.take();
        self.turn.done();
        Poll::Ready(body.map(|body| Ok(Frame::data(body))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.as_ref().map_or(0, |body| body.len() as u64))
    }
}

/// The body of a post.
///
/// # Errors
/// The status to answer with: 413 when it is longer than `max`, 408 when it takes too long, 400 when it breaks off.
pub(super) async fn read<R>(body: R, max: usize) -> Result<Bytes, StatusCode>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<axum::BoxError>,
{
    match timeout(POST_TIMEOUT, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(Err(_)) => Err(StatusCode::BAD_REQUEST),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}
