//! Addresses that were free a moment ago and still are.
//!
//! A port that the kernel gives out lies in the range from which it also takes the local ports of outgoing connections: before a
//! node listens there, somebody's client may sit on it. These lie below that range, and each is given out once.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

const FIRST: u16 = 12_000;
/// Of this process.
static GIVEN: AtomicU16 = AtomicU16::new(0);

fn last() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768)
}

pub fn address() -> SocketAddr {
    let (start, ports) = (std::process::id().wrapping_mul(101), u32::from(last() - FIRST));
    loop {
        let nth = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed).into());
        let port = FIRST + (nth % ports) as u16;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}

pub fn addresses(count: usize) -> Vec<SocketAddr> {
    (0..count).map(|_| address()).collect()
}
