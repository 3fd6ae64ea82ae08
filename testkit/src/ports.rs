//! Ports for servers of tests.

use std::net::{Ipv4Addr, TcpListener};

/// Returns a free port below the range of outgoing connections (32768 and up on Linux), because an outgoing connection
/// could take the port of a server that is down for a moment.
///
/// # Panics
///
/// If none of a thousand ports is free.
pub fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(|| fastrand::u16(15_000..32_000))
        .take(1000)
        .find(free)
        .expect("one of a thousand ports is free")
}
