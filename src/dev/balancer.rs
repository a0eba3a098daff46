//! A small TCP balancer, so that `moim dev` shows what a real one in front of three nodes would.
//!
//! Round robin over the backends whose `GET /readyz` was 200 at the last look. It never looks into a connection: one that
//! stands stays where it is until an end closes it, which is what a drain relies on.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::fetch::fetch;

const CHECK_EVERY: Duration = Duration::from_millis(200);
/// A backend that takes longer to say that it is ready, or to accept, is not.
const CHECK_WITHIN: Duration = Duration::from_millis(500);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Past it new connections wait in the system's accept queue.
const CONNECTIONS_MAX: usize = 16_384;
const NOBODY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\
    Connection: close\r\n\r\nno node is ready yet";

/// The backends, with what the last look at each said.
struct Backends {
    all: Vec<(SocketAddr, AtomicBool)>,
    turn: AtomicUsize,
}

impl Backends {
    /// The ready ones, each time beginning one later.
    fn in_turn(&self) -> impl Iterator<Item = &(SocketAddr, AtomicBool)> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let all = (0..self.all.len()).map(move |i| &self.all[(first + i) % self.all.len()]);
        all.filter(|(_, ready)| ready.load(Ordering::Relaxed))
    }

    /// A connection to the next backend that takes one.
    async fn connect(&self) -> Option<TcpStream> {
        for (address, ready) in self.in_turn() {
            match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Some(stream),
                _ => ready.store(false, Ordering::Relaxed), // Until the next look.
            }
        }
        None
    }
}

/// Serves `listener` until `shutdown`; then every connection is cut.
pub async fn run(listener: TcpListener, backends: Vec<SocketAddr>, shutdown: CancellationToken) {
    let all = backends.into_iter().map(|address| (address, AtomicBool::new(false))).collect();
    let backends = Arc::new(Backends { all, turn: AtomicUsize::new(0) });
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    for index in 0..backends.all.len() {
        let (backends, shutdown) = (backends.clone(), shutdown.clone());
        tasks.spawn(async move { shutdown.run_until_cancelled(watch(&backends.all[index])).await });
    }
    let accept = async {
        loop {
            let slot = slots.clone().acquire_owned().await.expect("nobody closes the semaphore");
            match listener.accept().await {
                Ok((client, _)) => {
                    let (backends, shutdown) = (backends.clone(), shutdown.clone());
                    tasks.spawn(async move {
                        shutdown.run_until_cancelled(proxy(client, &backends)).await;
                        drop(slot);
                    });
                }
                // Out of file descriptors, most likely: some connection has to end first.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    shutdown.run_until_cancelled(accept).await;
    tasks.close();
    tasks.wait().await;
}

async fn watch((address, ready): &(SocketAddr, AtomicBool)) {
    let address = address.to_string();
    let mut tick = interval(CHECK_EVERY);
    loop {
        tick.tick().await;
        let answer = fetch(Method::GET, &address, "/readyz", CHECK_WITHIN).await;
        ready.store(matches!(answer, Ok((StatusCode::OK, _))), Ordering::Relaxed);
    }
}

/// Both ends' errors are ends: what they mean is the endpoints' business.
async fn proxy(mut client: TcpStream, backends: &Backends) {
    let Some(mut node) = backends.connect().await else { return refuse(client).await };
    let _ = client.set_nodelay(true);
    let _ = node.set_nodelay(true);
    let _ = copy_bidirectional(&mut client, &mut node).await;
}

/// Answers 503 after the request has arrived: closing with bytes unread would reset the connection and lose the answer.
async fn refuse(mut client: TcpStream) {
    let mut request = [0; 8 * 1024];
    let _ = timeout(CONNECT_WITHIN, client.read(&mut request)).await;
    if client.write_all(NOBODY).await.is_ok() {
        let _ = client.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend that says `word` to every connection, after answering readiness checks with `status`.
    async fn backend(
        word: &'static str,
        ready: Arc<AtomicBool>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = stop.clone();
        tasks.spawn(async move {
            let serve = async {
                while let Ok((mut client, _)) = listener.accept().await {
                    let mut request = [0; 1024];
                    let read = client.read(&mut request).await.unwrap_or(0);
                    let asked = String::from_utf8_lossy(&request[..read]).into_owned();
                    let status = if ready.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" };
                    let (status, body) = if asked.contains("/readyz") { (status, "") } else { ("200 OK", word) };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    let _ = client.write_all(answer.as_bytes()).await;
                }
            };
            stop.run_until_cancelled(serve).await;
        });
        address
    }

    struct Bench {
        address: String,
        ready: Vec<Arc<AtomicBool>>,
        tasks: TaskTracker,
        stop: CancellationToken,
    }

    impl Bench {
        async fn new(words: &[&'static str], extra: &[SocketAddr]) -> Self {
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            let ready: Vec<_> = words.iter().map(|_| Arc::new(AtomicBool::new(true))).collect();
            let mut backends = extra.to_vec();
            for (word, ready) in words.iter().zip(&ready) {
                backends.push(backend(word, ready.clone(), &tasks, &stop).await);
            }
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("bound").to_string();
            tasks.spawn(run(listener, backends, stop.clone()));
            Self { address, ready, tasks, stop }
        }

        async fn ask(&self) -> (u16, String) {
            let (status, body) =
                fetch(Method::GET, &self.address, "/", Duration::from_secs(5)).await.expect("the balancer answers");
            (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
        }

        /// Asks until `holds`; the balancer learns about its backends in its own time.
        async fn ask_until(&self, holds: impl Fn(&(u16, String)) -> bool) {
            let asked = async { while !holds(&self.ask().await) {} };
            timeout(Duration::from_secs(5), asked).await.expect("within 25 looks");
        }

        async fn end(self) {
            self.stop.cancel();
            self.tasks.close();
            timeout(Duration::from_secs(5), self.tasks.wait()).await.expect("nothing is left running");
        }
    }

    #[tokio::test]
    async fn connections_go_round_the_ready_nodes_and_no_others() {
        let bench = Bench::new(&["a", "b", "c"], &[]).await;
        for word in ["a", "b", "c"] {
            bench.ask_until(|(_, body)| body == word).await;
        }
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..3 {
            seen.push(bench.ask().await.1);
        }
        seen.sort();
        assert_eq!(seen, ["a", "b", "c"]);

        bench.ready[1].store(false, Ordering::Relaxed);
        sleep(CHECK_EVERY * 3).await; // At least two looks.
        for _ in 0..9 {
            assert_ne!(bench.ask().await.1, "b");
        }
        bench.end().await;
    }

    #[tokio::test]
    async fn without_a_ready_node_the_answer_is_503_and_then_it_is_not() {
        let bench = Bench::new(&["a"], &[]).await;
        bench.ready[0].store(false, Ordering::Relaxed);
        bench.ask_until(|(status, body)| *status == 503 && body == "no node is ready yet").await;
        bench.ready[0].store(true, Ordering::Relaxed);
        bench.ask_until(|(status, _)| *status == 200).await;
        bench.end().await;
    }

    #[tokio::test]
    async fn a_node_that_does_not_accept_is_passed_over() {
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
        let open = Backends { all: vec![(gone, AtomicBool::new(true))], turn: AtomicUsize::new(0) };
        assert!(open.connect().await.is_none());
        assert!(!open.all[0].1.load(Ordering::Relaxed), "and not tried again before the next look");

        let bench = Bench::new(&["a"], &[gone]).await;
        bench.ask_until(|(status, _)| *status == 200).await;
        for _ in 0..4 {
            assert_eq!(bench.ask().await, (200, "a".into()));
        }
        bench.end().await;
    }
}
