//! A client that costs little: Socket.IO over one WebSocket, read as text, with nothing kept but what a bench needs.
//!
//! Protocol facts: Engine.IO 4 and Socket.IO 5. A text frame is a digit of Engine.IO (`0` open, `2` ping, `3` pong, `4`
//! message); in a message a digit of Socket.IO (`0` connect, `1` disconnect, `2` event, `3` ack, `4` refused), then
//! `/namespace,` unless it is `/`, an ack's number, and JSON.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, Utf8Bytes},
};

use crate::cli::Failure;

/// After so long without an expected word a server counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub host: String,
    pub port: u16,
}

impl Url {
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// `http://host:port`, or without the scheme.
///
/// # Errors
/// What is wrong, for the user.
pub fn parse_url(text: &str) -> Result<Url, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("ws://")).unwrap_or(text);
    let wrong = || format!("{text:?} is not a URL like http://127.0.0.1:3000 (TLS is not spoken here)");
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    if host.is_empty() || host.contains('/') { Err(wrong()) } else { Ok(Url { host: host.to_owned(), port }) }
}

/// Who connects where.
#[derive(Clone)]
pub struct Target {
    pub url: Url,
    pub ns: String,
    pub user: String,
}

/// What a client needs to come back as the same session.
#[derive(Clone)]
pub struct Recovery {
    pub pid: String,
    pub offset: Option<String>,
}

/// How long the steps of a connect took.
pub struct Timing {
    pub tcp: Duration,
    pub upgrade: Duration,
    /// From the upgrade to `ready`.
    pub ready: Duration,
    pub recovered: bool,
}

impl Timing {
    pub fn whole(&self) -> Duration {
        self.tcp + self.upgrade + self.ready
    }
}

/// One connected socket.
pub struct Client {
    stream: WebSocketStream<TcpStream>,
    /// `/ns,`, or nothing for `/`.
    prefix: String,
    pub target: Target,
    pid: Option<String>,
    acks: u64,
}

/// What the server said.
pub enum Packet {
    /// `["name",…]`.
    Event(Body),
    Ack {
        id: u64,
        /// `[answer]`.
        body: String,
    },
}

/// The JSON of a packet, where it came in: of hundreds of thousands a second none is copied.
pub struct Body {
    frame: Utf8Bytes,
    from: usize,
}

impl std::ops::Deref for Body {
    type Target = str;

    fn deref(&self) -> &str {
        &self.frame.as_str()[self.from..]
    }
}

#[derive(Deserialize, Default)]
struct Ready {
    #[serde(default)]
    recovered: bool,
}

impl Client {
    /// Connects and waits for `ready`.
    ///
    /// # Errors
    /// `Failed`, with what to look at, if the server is not there, refuses, or does not speak the events.
    pub async fn connect(target: Target, recovery: Option<Recovery>) -> Result<(Self, Timing), Failure> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| {
            Failure::failed(format!(
                "{}:{}: {what}: {error}; is the server running, and are there enough open files (`ulimit -n`)?",
                target.url.host, target.url.port
            ))
        };
        let begun = Instant::now();
        let stream = within(TcpStream::connect((target.url.host.as_str(), target.url.port))).await;
        let stream = stream?.map_err(|e| wrong("cannot connect", &e))?;
        stream.set_nodelay(true).map_err(|e| wrong("cannot connect", &e))?;
        let connected = Instant::now();
        let address = format!("ws://{}:{}/socket.io/?EIO=4&transport=websocket", target.url.host, target.url.port);
        let upgraded = within(tokio_tungstenite::client_async(address, stream)).await?;
        let (stream, _) = upgraded.map_err(|e| wrong("no WebSocket", &e))?;
        let prefix = if target.ns == "/" { String::new() } else { format!("{},", target.ns) };
        let mut client = Self { stream, prefix, target, pid: None, acks: 0 };
        let opened = Instant::now();
        let recovered = client.enter(recovery).await?;
        let timing = Timing { tcp: connected - begun, upgrade: opened - connected, ready: opened.elapsed(), recovered };
        Ok((client, timing))
    }

    async fn enter(&mut self, recovery: Option<Recovery>) -> Result<bool, Failure> {
        let mut auth = json!({ "user": self.target.user });
        if let Some(Recovery { pid, offset }) = recovery {
            auth["pid"] = pid.into();
            // Left out by a client that has heard nothing yet, as the stock one does.
            if let Some(offset) = offset {
                auth["offset"] = offset.into();
            }
        }
        self.send(format!("40{}{auth}", self.prefix)).await?;
        loop {
            if let Packet::Event(body) = within(self.next()).await??
                && let Some(ready) = argument(&body, "ready")
            {
                return Ok(serde_json::from_value::<Ready>(ready).unwrap_or_default().recovered);
            }
        }
    }

    /// Sends an event and returns the number of the ack that it asks for. `payload` is JSON.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn emit(&mut self, event: &str, payload: &str) -> Result<u64, Failure> {
        self.acks += 1;
        let id = self.acks;
        self.send(format!("42{}{id}[\"{event}\",{payload}]", self.prefix)).await?;
        Ok(id)
    }

    /// As [`Client::emit`], and waits for an ack that says `ok`. Events that come meanwhile are dropped.
    ///
    /// # Errors
    /// If the connection is gone, the server does not answer, or refuses.
    pub async fn request(&mut self, event: &str, payload: &str) -> Result<(), Failure> {
        let wanted = self.emit(event, payload).await?;
        let answer = async {
            loop {
                if let Packet::Ack { id, body } = self.next().await?
                    && id == wanted
                {
                    return Ok::<_, Failure>(body);
                }
            }
        };
        let body = within(answer).await??;
        if body.contains("\"ok\":true") {
            return Ok(());
        }
        Err(Failure::failed(format!("the server refused {event} {payload}: {body}")))
    }

    /// The next packet; pings are answered on the way. Safe to cancel.
    ///
    /// # Errors
    /// If the connection is gone, or the server ends the session.
    pub async fn next(&mut self) -> Result<Packet, Failure> {
        loop {
            let message = match self.stream.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(self.gone(&error)),
                None => return Err(self.gone(&"closed")),
            };
            let Message::Text(text) = message else { continue };
            if text.as_str() == "2" {
                self.send("3".to_owned()).await?;
            } else if let Some(packet) = self.read(text)? {
                return Ok(packet);
            }
        }
    }

    fn read(&mut self, text: Utf8Bytes) -> Result<Option<Packet>, Failure> {
        let (kind, rest) = text.split_at_checked(2).unwrap_or((&text, ""));
        let body = rest.strip_prefix(self.prefix.as_str()).unwrap_or(rest);
        match kind {
            "42" => {
                let from = text.len() - body.len();
                Ok(Some(Packet::Event(Body { frame: text, from })))
            }
            "43" => Ok(ack(body)),
            "40" => {
                let reply: Value = serde_json::from_str(body).unwrap_or_default();
                self.pid = reply["pid"].as_str().map(str::to_owned);
                Ok(None)
            }
            "41" | "44" => Err(self.gone(&format!("the server said {text}"))),
            _ => Ok(None),
        }
    }

    /// What it takes to come back, if the server offers it: with the offset of the last event that had one.
    pub fn recovery(&self, offset: Option<String>) -> Option<Recovery> {
        Some(Recovery { pid: self.pid.clone()?, offset })
    }

    async fn send(&mut self, text: String) -> Result<(), Failure> {
        let sent = self.stream.send(Message::text(text)).await;
        sent.map_err(|error| self.gone(&error))
    }

    fn gone(&self, why: &dyn std::fmt::Display) -> Failure {
        let Url { host, port } = &self.target.url;
        Failure::failed(format!("{host}:{port}: a connection ended: {why}; see the server's log"))
    }
}

fn ack(body: &str) -> Option<Packet> {
    let digits = body.bytes().take_while(u8::is_ascii_digit).count();
    let (id, body) = body.split_at(digits);
    Some(Packet::Ack { id: id.parse().ok()?, body: body.to_owned() })
}

/// The first argument of an event of this name.
pub fn argument(body: &str, name: &str) -> Option<Value> {
    let rest = body.strip_prefix("[\"")?.strip_prefix(name)?;
    if !rest.starts_with('"') {
        return None;
    }
    let args: Vec<Value> = serde_json::from_str(body).ok()?;
    args.into_iter().nth(1)
}

/// The offset that an event carries: its last argument, if that is a string beside another argument.
pub fn offset(body: &str) -> Option<String> {
    let mut args: Vec<Value> = serde_json::from_str(body).ok()?;
    if args.len() < 3 {
        return None;
    }
    args.pop()?.as_str().map(str::to_owned)
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = || Failure::failed(format!("a server said nothing for {} s; see its log", PATIENCE.as_secs()));
    timeout(PATIENCE, work).await.map_err(|_| late())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_people_write_them() {
        let right = Url { host: "127.0.0.1".into(), port: 3001 };
        for text in ["http://127.0.0.1:3001", "127.0.0.1:3001", "ws://127.0.0.1:3001/"] {
            assert_eq!(parse_url(text).unwrap(), right);
        }
        for text in ["https://a:1", "127.0.0.1", "http://:80", "http://a:port", "http://a/b:80"] {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn packets_are_read_from_their_text() {
        assert!(matches!(ack("17[{\"ok\":true}]"), Some(Packet::Ack { id: 17, body }) if body == "[{\"ok\":true}]"));
        assert!(ack("[1]").is_none());
        let event = "[\"message\",{\"text\":1},\"m1.abcd.00000000007\"]";
        assert_eq!(argument(event, "message").unwrap()["text"], 1);
        assert!(argument(event, "mess").is_none() && argument("[\"ready\"]", "ready").is_none());
        assert_eq!(offset(event).as_deref(), Some("m1.abcd.00000000007"));
        assert!(offset("[\"typing\",{},null]").is_none() && offset("[\"x\",\"y\"]").is_none());
    }
}
