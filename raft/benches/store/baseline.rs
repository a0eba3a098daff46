//! What this machine gives without us: the raw figures that ours are divided by.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

/// Bytes of one write and of one question: about what one command takes.
const BYTES: usize = 200;

/// Microseconds, and how many a second.
#[derive(Clone, Copy)]
pub struct Raw {
    pub p50: f64,
    pub p99: f64,
    pub rate: f64,
}

impl Raw {
    /// Does it again and again for so long.
    fn measure(time: Duration, mut once: impl FnMut()) -> Self {
        let (begun, mut took) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let at = Instant::now();
            once();
            took.push(at.elapsed().as_secs_f64() * 1e6);
        }
        let rate = took.len() as f64 / begun.elapsed().as_secs_f64();
        took.sort_unstable_by(f64::total_cmp);
        Self { p50: took[took.len() / 2], p99: took[took.len() * 99 / 100], rate }
    }
}

/// Appending to a file and syncing it, one after another.
pub fn sync(dir: &Path, time: Duration) -> Raw {
    sync_file(&dir.join("sync"), time)
}

/// The same while two others do it on the same disk: as much as three nodes on one machine can have of it.
pub fn sync_of_three(dir: &Path, time: Duration) -> Raw {
    std::thread::scope(|others| {
        for name in ["sync-2", "sync-3"] {
            others.spawn(move || sync_file(&dir.join(name), time));
        }
        sync(dir, time)
    })
}

fn sync_file(path: &Path, time: Duration) -> Raw {
    let file = OpenOptions::new().create(true).write(true).truncate(true).open(path).expect("a file");
    let mut offset = 0;
    let raw = Raw::measure(time, || {
        file.write_all_at(&[7; BYTES], offset).and_then(|()| file.sync_data()).expect("the disk works");
        offset += BYTES as u64;
    });
    _ = std::fs::remove_file(path);
    raw
}

/// A question and its answer over a loopback connection, between two threads that block.
pub fn round_trip(time: Duration) -> Raw {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut here = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let (mut there, _) = listener.accept().expect("it was called");
    here.set_nodelay(true).and_then(|()| there.set_nodelay(true)).expect("a TCP option");
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; BYTES];
        while there.read_exact(&mut bytes).and_then(|()| there.write_all(&bytes)).is_ok() {}
    });
    let mut bytes = [0; BYTES];
    let raw = Raw::measure(time, || {
        here.write_all(&bytes).and_then(|()| here.read_exact(&mut bytes)).expect("the echo answers");
    });
    drop(here);
    _ = echo.join();
    raw
}
