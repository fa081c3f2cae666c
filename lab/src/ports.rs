//! Free TCP ports that stay ours while a server is down.

use crate::dirs;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

/// A port on 127.0.0.1, reserved among all lab processes of this user for as long as the value lives.
pub(crate) struct Port {
    pub(crate) number: u16,
    _lock: File,
}

/// Reserves a port, and returns it with a socket already listening on it.
///
/// The kernel's own choice (port 0) comes from the range of outgoing connections: while a server is down for
/// a restart, any client on the machine may be given its port. Ports below that range have no such visitors.
pub(crate) fn reserve() -> (Port, TcpListener) {
    let (low, high) = range();
    let size = u64::from(high - low);
    // The hasher of a fresh RandomState is a random number.
    let start = RandomState::new().hash_one(0) % size;
    let locks = dirs::base().join("ports");
    dirs::make(&locks);
    for i in 0..size {
        let number = low + ((start + i) % size) as u16;
        let lock = dirs::open_lock(&locks.join(number.to_string()));
        if lock.try_lock().is_err() {
            continue;
        }
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, number)) {
            return (
                Port {
                    number,
                    _lock: lock,
                },
                listener,
            );
        }
    }
    panic!("no free port between {low} and {high}");
}

fn range() -> (u16, u16) {
    const LOW: u16 = 16_384;
    let first_outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768);
    if first_outgoing > LOW + 1000 {
        (LOW, first_outgoing)
    } else {
        (LOW, 65_000)
    }
}
