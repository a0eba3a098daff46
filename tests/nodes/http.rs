//! HTTP without a client library: what a test sends is exactly what it says.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub const LOCAL: &str = "Host: localhost\r\n";

/// Head and body of the answer; `headers` are whole lines, to which the length of the body is added.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> io::Result<(String, String)> {
    let mut tcp = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    tcp.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Status and body of the answer; `None` when there is none.
pub async fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Option<(u16, String)> {
    let (head, body) = request(address, method, path, headers, body).await.ok()?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body))
}
