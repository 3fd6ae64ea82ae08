//! Numbers, memory and connections of tests with hostile input.

use std::{alloc::System, net::SocketAddr};

use enlist_testkit::{eventually, soon};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
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

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Returns the bytes that this process uses, the agent included. Its resident memory would not show growth that takes
/// the place of what earlier tests have returned.
pub(crate) fn memory() -> usize {
    let stats = COUNTED.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Held by each test: the memory is that of the whole process.
pub(crate) static ALONE: Mutex<()> = Mutex::const_new(());

/// Maximum bytes that this process uses before a test.
const USED_BEFORE: usize = 2 << 20;

/// Waits until no other test runs, and what others used is free: their runtimes end after them. Not for a test with a
/// paused clock.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().await;
    eventually("the memory of other tests is free", || async {
        let used = memory();
        if used <= USED_BEFORE { Ok(()) } else { Err(used) }
    })
    .await;
    alone
}

/// Asserts that the memory has grown by at most this number of bytes.
pub(crate) fn assert_growth(before: usize, limit: usize, what: &str) {
    let growth = memory().saturating_sub(before);
    println!("{growth} of {limit} bytes for {what}");
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
