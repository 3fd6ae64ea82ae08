//! Replacements for the random numbers and clocks of the operating system, so that two runs of one seed are equal.
//!
//! The linker prefers these functions to those of the C library. The seeds of hash maps and of tokio's `select!` come
//! from `getrandom`, so they follow from the seed of the run. Time is the paused clock of tokio. The other clocks do
//! not advance, except for the wall clock, which advances by a millisecond each time it is read. Before [`force`], the
//! functions behave like those of the system.

#![expect(unsafe_code, reason = "these functions are called by the C library's callers, with pointers")]

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Seconds that the clocks show: since the start of the machine, and since 1970.
const MONOTONIC: i64 = 1_000_000;
const WALL: i64 = 1_700_000_000;

static FORCED: AtomicBool = AtomicBool::new(false);
static RANDOM: AtomicU64 = AtomicU64::new(0);
static WALL_MILLIS: AtomicI64 = AtomicI64::new(0);

/// Limits of a process in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Processor time, which does not depend on the load of the machine. Then `SIGPROF` kills the process.
    pub(crate) processor: u32,
    /// Real time, for a process that waits without using the processor. Then `SIGALRM` kills it.
    pub(crate) real: u32,
}

/// Makes the rest of this process follow from `seed`, if it has one thread, and limits it.
pub(crate) fn force(seed: u64, limits: Limits) {
    RANDOM.store(seed, Ordering::SeqCst);
    FORCED.store(true, Ordering::SeqCst);
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let processor = libc::timeval { tv_sec: limits.processor.into(), ..never };
    let limit = libc::itimerval { it_interval: never, it_value: processor };
    // SAFETY: `limit` is valid, and the former value is not asked for. The signals end the process, as nothing handles
    // them.
    unsafe {
        libc::setitimer(libc::ITIMER_PROF, &raw const limit, std::ptr::null_mut());
        libc::alarm(limits.real);
    }
}

/// Returns the next number of a sequence (splitmix64).
fn next() -> u64 {
    let state = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Writes random bytes, as `getrandom(2)`.
///
/// # Safety
///
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: usize, flags: libc::c_uint) -> isize {
    if !FORCED.load(Ordering::SeqCst) {
        // SAFETY: the arguments are those of the caller.
        return isize::try_from(unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) }).unwrap_or(-1);
    }
    for at in 0..length {
        let [byte, ..] = next().to_le_bytes();
        // SAFETY: `at` is less than the length that the caller gave.
        unsafe { buffer.cast::<u8>().add(at).write(byte) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Reads a clock, as `clock_gettime(2)`.
///
/// # Safety
///
/// `time` can be written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if !FORCED.load(Ordering::SeqCst) {
        // SAFETY: the arguments are those of the caller.
        return libc::c_int::try_from(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) }).unwrap_or(-1);
    }
    let shown = if clock == libc::CLOCK_REALTIME {
        let millis = WALL_MILLIS.fetch_add(1, Ordering::SeqCst);
        libc::timespec { tv_sec: WALL + millis / 1000, tv_nsec: millis % 1000 * 1_000_000 }
    } else {
        libc::timespec { tv_sec: MONOTONIC, tv_nsec: 0 }
    };
    // SAFETY: the caller guarantees that `time` can be written to.
    unsafe { time.write(shown) };
    0
}
