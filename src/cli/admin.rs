//! The admin listener as commands see it: any node answers for the cluster, so the first that answers is asked.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::Failure;
use crate::fetch::send;

/// A node asks the others for 500 ms before it answers; this leaves room for a busy one.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A change of the cluster's nodes may have to hand leadership over first.
const CHANGED_WITHIN: Duration = Duration::from_secs(10);

/// Said beneath a table of nodes of which none leads.
pub const NO_LEADER: &str =
    "there is no leader with a quorum now: nothing is written, and no node changed, until more voters are back\n";

#[derive(Args, Clone)]
pub struct AdminArgs {
    /// Admin addresses of one or more nodes; the first that answers is asked
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', default_value = "127.0.0.1:3100")]
    admin: Vec<String>,
}

/// What `GET /v1/cluster` says, as far as the commands need it.
#[derive(Clone, Debug, Deserialize)]
pub struct Cluster {
    #[serde(default)]
    pub term: u64,
    #[serde(default)]
    pub applied: u64,
    /// The alarm that nodes do not have the same state.
    #[serde(default)]
    pub diverged: Option<Diverged>,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Diverged {
    pub index: u64,
    /// Empty when no majority says which is right.
    pub wrong: Vec<String>,
    pub hashes: BTreeMap<String, String>,
}

impl Cluster {
    /// A node that listens on every address names none; and one that several name, each on the loopback of its own machine, is
    /// that of whoever asks.
    fn is_one_nodes(&self, address: &str) -> bool {
        let unspecified = address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
        !unspecified && self.nodes.iter().filter(|node| node.admin.as_deref() == Some(address)).count() == 1
    }
}

/// One node; what only it knows is `None` when it did not answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub name: String,
    #[serde(default)]
    pub role: String,
    #[serde(default)]
    pub leader: bool,
    #[serde(default)]
    pub ready: Option<bool>,
    /// Why it is not ready: a text or a list of texts.
    #[serde(default)]
    pub why: Value,
    /// Why it is a learner still.
    #[serde(default)]
    pub note: Option<String>,
    #[serde(default)]
    pub draining: Option<bool>,
    #[serde(default)]
    pub applied: Option<u64>,
    #[serde(default)]
    pub lag: Option<u64>,
    #[serde(default)]
    pub sockets: Option<u64>,
    /// WebSockets of other nodes' clients that pass through it.
    #[serde(default)]
    pub relayed: Option<u64>,
    #[serde(default)]
    pub version: Option<String>,
    /// Seconds.
    #[serde(default)]
    pub uptime: Option<f64>,
    #[serde(default)]
    pub incarnation: Option<u64>,
    #[serde(default)]
    pub admin: Option<String>,
}

impl Node {
    /// Ready, or the reasons in one line.
    pub fn readiness(&self) -> Result<(), String> {
        match self.ready {
            Some(true) => Ok(()),
            Some(false) => Err(Some(words(&self.why)).filter(|why| !why.is_empty()).unwrap_or("not ready".into())),
            None => Err("no answer".into()),
        }
    }
}

fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join("; "),
        _ => String::new(),
    }
}

/// A cluster to talk to.
pub struct Admin {
    addresses: Vec<String>,
}

impl From<AdminArgs> for Admin {
    fn from(args: AdminArgs) -> Self {
        Self { addresses: args.admin }
    }
}

/// As it is given to another command.
impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addresses.join(","))
    }
}

impl Admin {
    pub async fn cluster(&self) -> Result<Cluster, Failure> {
        self.read("/v1/cluster").await
    }

    /// Reads JSON from the first node that gives it.
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let (status, body, address) = self.ask(Method::GET, path).await?;
        if !status.is_success() {
            return Err(Failure::failed(format!("{address} answers GET {path} with {}", reason(status, &body))));
        }
        serde_json::from_slice(&body).map_err(|error| {
            Failure::failed(format!(
                "{address} answers GET {path} with something else than moim's admin would: {error}"
            ))
        })
    }

    /// Carries out `POST path`. A 409 is the cluster's own refusal, and its reason is passed on.
    pub async fn act(&self, path: &str) -> Result<(), Failure> {
        let (status, body, address) = self.ask(Method::POST, path).await?;
        done(status, &body, || format!("{address} answers POST {path}"))
    }

    /// The same with a body, for what takes longer and has an answer. A 404 is a name that there is not.
    pub async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let sent = body.map(|body| body.to_string()).unwrap_or_default();
        let (status, body, address) = self.exchange(method.clone(), path, sent.into(), CHANGED_WITHIN).await?;
        if status == StatusCode::NOT_FOUND {
            return Err(Failure::Usage(message(&body).unwrap_or(format!("{address} knows no {method} {path}"))));
        }
        done(status, &body, || format!("{address} answers {method} {path}"))?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::failed(format!("{address} answers {method} {path} with something else: {error}")))
    }

    /// The first answer. The next node is asked only where the last gave none, never after a refusal.
    async fn ask(&self, method: Method, path: &str) -> Result<(StatusCode, bytes::Bytes, &str), Failure> {
        self.exchange(method, path, Bytes::new(), ANSWER_WITHIN).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<(StatusCode, Bytes, &str), Failure> {
        let mut tried = Vec::new();
        for address in &self.addresses {
            match send(method.clone(), address, path, body.clone(), within).await {
                Ok((status, body)) => return Ok((status, body, address)),
                Err(why) => tried.push(why),
            }
        }
        Err(Failure::failed(format!(
            "no node answers ({}). Say where one listens with --admin HOST:PORT; a cluster of \"moim dev\" has 127.0.0.1:3101",
            tried.join("; ")
        )))
    }

    /// The same cluster, asked through the nodes that it names before the addresses that were given, and not through
    /// `avoid` where its address is known.
    pub fn others(&self, cluster: &Cluster, avoid: &str) -> Self {
        let of = |wanted: bool| cluster.nodes.iter().filter(move |node| (node.name == avoid) != wanted);
        let known = |wanted: bool| {
            of(wanted).filter_map(|node| node.admin.clone()).filter(|address| cluster.is_one_nodes(address))
        };
        let avoided: Vec<String> = known(false).collect();
        let mut addresses: Vec<String> = known(true).collect();
        for address in &self.addresses {
            if !avoided.contains(address) && !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        Self { addresses }
    }
}

/// A 409 is the cluster's own refusal.
fn done(status: StatusCode, body: &[u8], said: impl Fn() -> String) -> Result<(), Failure> {
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::CONFLICT => Err(Failure::Unsafe(message(body).unwrap_or("the cluster gives no reason".into()))),
        status => Err(Failure::failed(format!("{} with {}", said(), reason(status, body)))),
    }
}

fn reason(status: StatusCode, body: &[u8]) -> String {
    match message(body) {
        Some(message) => format!("{}: {message}", status.as_u16()),
        None => status.to_string(),
    }
}

/// The `message` of `{ error: { code, message } }`.
fn message(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    Some(value.get("error")?.get("message")?.as_str()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_are_asked_first_and_the_avoided_one_never() {
        let admin = Admin { addresses: ["127.0.0.1:1", "127.0.0.1:2"].map(str::to_string).to_vec() };
        let nodes = |a: &str, b: &str| {
            let nodes = serde_json::json!([{ "name": "a", "admin": a }, { "name": "b", "admin": b }]);
            serde_json::from_value::<Cluster>(serde_json::json!({ "nodes": nodes })).expect("an answer")
        };
        let named = nodes("127.0.0.1:1", "127.0.0.1:3");
        assert_eq!(admin.others(&named, "a").addresses, ["127.0.0.1:3", "127.0.0.1:2"]);
        assert_eq!(admin.others(&named, "b").addresses, ["127.0.0.1:1", "127.0.0.1:2"]);
        let unnamed = nodes("0.0.0.0:3100", "0.0.0.0:3100");
        assert_eq!(admin.others(&unnamed, "a").addresses, admin.addresses, "what was given is all there is");
        let loopback = nodes("127.0.0.1:3100", "127.0.0.1:3100");
        assert_eq!(admin.others(&loopback, "a").addresses, admin.addresses, "each on its own machine");
    }
}
