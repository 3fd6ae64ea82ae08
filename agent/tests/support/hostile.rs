//! Numbers, memory and connections of tests with hostile input.

use std::{fs, net::SocketAddr};

use enlist_testkit::soon;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Number of hostile connections after which a client is checked that is connected meanwhile.
pub(crate) const CHECKED: usize = 100;

/// Numbers that are the same in each run (`SplitMix64`).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Permits this process as many open files as the system does. Fails if that is fewer than `needed`.
pub(crate) fn permit_files(needed: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let files = limit.maximum.unwrap_or(u64::MAX);
    assert!(files >= needed, "{needed} open files are needed, {files} are permitted");
    files
}

/// Returns the memory of this process, the agent included, in bytes.
pub(crate) fn memory() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Asserts that the memory has grown by at most this number of bytes.
pub(crate) fn assert_growth(before: usize, limit: usize, what: &str) {
    let growth = memory().saturating_sub(before);
    assert!(growth <= limit, "{growth} bytes for {what}");
}

/// Sends bytes over a connection of their own, and reads what comes until the end.
pub(crate) async fn send(agent: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(agent).await.unwrap();
    // The agent may close it at any time.
    if stream.write_all(bytes).await.is_ok() && stream.shutdown().await.is_ok() {
        let _ = soon("the connection ends", stream.read_to_end(&mut Vec::new())).await;
    }
}
