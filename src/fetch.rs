//! One HTTP request to a node: a connection of its own, a time-out, a bound on the answer. Nothing is kept between two.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// Past this an answer counts as none: nothing that the commands ask for comes near it.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Asks `address` (`host:port`) and returns status and body, or one line that says why there is no answer.
pub async fn fetch(method: Method, address: &str, path: &str, within: Duration) -> Result<(StatusCode, Bytes), String> {
    send(method, address, path, Bytes::new(), within).await
}

/// The same with a body, which is JSON unless it is empty.
pub async fn send(
    method: Method,
    address: &str,
    path: &str,
    body: Bytes,
    within: Duration,
) -> Result<(StatusCode, Bytes), String> {
    timeout(within, exchange(method, address, path, body))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} ms", within.as_millis())))
        .map_err(|why| format!("{address}: {why}"))
}

async fn exchange(method: Method, address: &str, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, address)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    // The connection only moves while it is polled; it lives as long as this one exchange.
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(|error| error.to_string())?;
            answer.await
        }
    }
}
