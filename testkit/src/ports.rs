//! Ports for servers of tests.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

use enlist::backend::MutexExt as _;

/// Maximum number of ports that are remembered, of the 17,000 there are.
const REMEMBERED: usize = 4096;

/// Ports that were returned last. One may be free although it has an owner: its server has not started yet, or is down
/// for a moment.
static RETURNED: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());

/// Returns a free port that was not returned before in this process, as far as it remembers. It is below the range of
/// outgoing connections (32768 and up on Linux), because an outgoing connection could take the port of a server that is
/// down for a moment.
///
/// # Panics
///
/// If none of a thousand ports is free.
pub fn free_port() -> u16 {
    let mut returned = RETURNED.locked();
    let is_free = |port: &u16| !returned.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let port = std::iter::repeat_with(|| fastrand::u16(15_000..32_000))
        .take(1000)
        .find(is_free)
        .expect("one of a thousand ports is free");
    if returned.len() == REMEMBERED {
        returned.pop_front();
    }
    returned.push_back(port);
    port
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Otherwise a server that starts again may find its port in use.
    #[test]
    fn no_port_is_returned_twice() {
        let ports: BTreeSet<_> = (0..2000).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 2000);
    }
}
