//! A small Socket.IO client: events, acks both ways, attachments.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::AbortOnDropHandle;

use super::{cluster::PATIENCE, handlers::NS};

pub struct Client {
    pub sid: String,
    /// The secret with which the session goes on elsewhere.
    pub pid: String,
    pub node: usize,
    shared: Arc<Shared>,
    last_id: AtomicU64,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    out: mpsc::UnboundedSender<Message>,
    events: Mutex<Vec<(String, Value)>>,
    attachments: Mutex<Vec<Vec<u8>>>,
    acks: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    answers: AtomicBool,
    paused: watch::Sender<bool>,
    disconnected: AtomicBool,
    news: Notify,
}

impl Client {
    pub async fn connect(address: SocketAddr, node: usize) -> Self {
        Self::connect_as(address, node, &json!({})).await
    }

    /// With this as the handshake's `auth`.
    pub async fn connect_as(address: SocketAddr, node: usize, auth: &Value) -> Self {
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let (ws, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let (mut to, mut from) = ws.split();
        let (out, mut outgoing) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            out,
            events: Mutex::default(),
            attachments: Mutex::default(),
            acks: Mutex::default(),
            answers: true.into(),
            paused: watch::Sender::new(false),
            disconnected: false.into(),
            news: Notify::new(),
        });
        let heard = shared.clone();
        let (tell_sid, sid) = oneshot::channel();
        let mut tell_sid = Some(tell_sid);
        let task = tokio::spawn(async move {
            let (mut me, mut pid) = (String::new(), String::new());
            loop {
                tokio::select! {
                    Some(message) = outgoing.recv() => if to.send(message).await.is_err() { break },
                    message = heard.next(&mut from) => match message {
                        Some(Ok(Message::Text(text))) => {
                            if let Some(connected) = text.strip_prefix(&format!("40{NS},")) {
                                let reply: Value = serde_json::from_str(connected).unwrap();
                                me = reply["sid"].as_str().unwrap().to_owned();
                                pid = reply["pid"].as_str().unwrap().to_owned();
                            }
                            heard.hear(&text, &me);
                            if text.contains("[\"ready\"") && let Some(tell) = tell_sid.take() {
                                tell.send((me.clone(), pid.clone())).ok();
                            }
                        }
                        Some(Ok(Message::Binary(bytes))) => {
                            heard.attachments.lock().unwrap().push(bytes.to_vec());
                            heard.news.notify_waiters();
                        }
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => break,
                    },
                }
            }
            heard.disconnected.store(true, SeqCst);
            heard.news.notify_waiters();
        });
        shared.out.send(Message::text(format!("40{NS},{auth}"))).unwrap();
        let (sid, pid) = timeout(PATIENCE, sid).await.expect("ready in time").unwrap();
        Self { sid, pid, node, shared, last_id: AtomicU64::new(0), _task: AbortOnDropHandle::new(task) }
    }

    /// Whether it acknowledges events.
    pub fn answers(&self, answers: bool) {
        self.shared.answers.store(answers, SeqCst);
    }

    /// Stops reading, or goes on.
    pub fn pause(&self, paused: bool) {
        self.shared.paused.send_replace(paused);
    }

    pub async fn emit(&self, name: &str, arg: Value) {
        self.shared.out.send(Message::text(format!("42{NS},{}", json!([name, arg])))).unwrap();
    }

    /// Emits with an ack, whose arguments come later.
    pub async fn ask(&self, name: &str, arg: Value) -> oneshot::Receiver<Value> {
        let id = self.last_id.fetch_add(1, SeqCst);
        let (tell, told) = oneshot::channel();
        self.shared.acks.lock().unwrap().insert(id, tell);
        self.shared.out.send(Message::text(format!("42{NS},{id}{}", json!([name, arg])))).unwrap();
        told
    }

    pub async fn call(&self, name: &str, arg: Value) -> Value {
        let told = self.ask(name, arg).await;
        timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{name} was not acknowledged")).unwrap()
    }

    /// The arguments of the next event of this name.
    pub async fn expect(&self, name: &str) -> Value {
        self.until(name, || {
            let mut events = self.shared.events.lock().unwrap();
            let at = events.iter().position(|(heard, _)| heard == name)?;
            Some(events.remove(at).1)
        })
        .await
    }

    pub async fn attachment(&self) -> Vec<u8> {
        self.until("an attachment", || self.shared.attachments.lock().unwrap().pop()).await
    }

    pub async fn disconnected(&self) {
        self.until("disconnected", || self.is_disconnected().then_some(())).await;
    }

    pub fn is_disconnected(&self) -> bool {
        self.shared.disconnected.load(SeqCst)
    }

    /// All events of this name that have come so far.
    pub fn take(&self, name: &str) -> Vec<Value> {
        let mut events = self.shared.events.lock().unwrap();
        let (taken, rest) = std::mem::take(&mut *events).into_iter().partition(|(heard, _)| heard == name);
        *events = rest;
        taken.into_iter().map(|(_, args)| args).collect()
    }

    async fn until<T>(&self, what: &str, mut come: impl FnMut() -> Option<T>) -> T {
        let waits = async {
            loop {
                let news = self.shared.news.notified();
                let mut news = std::pin::pin!(news);
                news.as_mut().enable();
                if let Some(come) = come() {
                    return come;
                }
                news.await;
            }
        };
        timeout(PATIENCE, waits).await.unwrap_or_else(|_| panic!("{}: {what} did not come", self.sid))
    }
}

impl Shared {
    /// What the server sends, while this reads.
    async fn next<S: futures_util::Stream + Unpin>(&self, from: &mut S) -> Option<S::Item> {
        self.paused.subscribe().wait_for(|paused| !paused).await.ok()?;
        from.next().await
    }

    fn hear(&self, text: &str, me: &str) {
        if text == "2" {
            self.out.send(Message::text("3")).ok();
        } else if text == format!("41{NS},") {
            self.disconnected.store(true, SeqCst);
        } else if let Some((kind, id, args)) = parse(text) {
            match kind {
                '2' | '5' => self.event(id, args, me),
                '3' => {
                    let waiting = id.and_then(|id| self.acks.lock().unwrap().remove(&id));
                    if let Some(waiting) = waiting {
                        waiting.send(args.into()).ok();
                    }
                }
                _ => {}
            }
        }
        self.news.notify_waiters();
    }

    fn event(&self, id: Option<u64>, mut args: Vec<Value>, me: &str) {
        let name = args.remove(0).as_str().unwrap().to_owned();
        self.events.lock().unwrap().push((name, args.into()));
        if let Some(id) = id
            && self.answers.load(SeqCst)
        {
            self.out.send(Message::text(format!("43{NS},{id}{}", json!([format!("ack from {me}")])))).ok();
        }
    }
}

/// Kind, ack id and arguments of a packet of the namespace.
fn parse(text: &str) -> Option<(char, Option<u64>, Vec<Value>)> {
    let packet = text.strip_prefix('4')?;
    let kind = packet.chars().next()?;
    let (_, rest) = packet[1..].split_once(&format!("{NS},"))?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((kind, rest[..digits].parse().ok(), serde_json::from_str(&rest[digits..]).ok()?))
}
