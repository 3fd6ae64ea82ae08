//! Signals: those that end this process, those that are forwarded to the program, and those that are blocked.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number, raise};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Signals that request an end.
const ENDING: [SignalKind; 4] =
    [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];

/// Signals that are only forwarded.
const FORWARDED: [SignalKind; 3] =
    [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::window_change()];

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) SignalKind);

impl Signal {
    /// Returns the exit status of a process that the signal ended.
    pub(crate) fn as_exit(self) -> u8 {
        128_u8.saturating_add(u8::try_from(self.0.as_raw_value()).unwrap_or(0))
    }

    /// Returns `true` if the signal requests an end.
    pub(crate) fn ends(self) -> bool {
        ENDING.contains(&self.0)
    }
}

/// Stream of signals.
#[derive(Debug)]
pub(crate) struct Signals {
    streams: Vec<(Signal, Stream)>,
}

impl Signals {
    /// Listens for the signals that request an end.
    pub(crate) fn ending() -> io::Result<Self> {
        Self::of(&ENDING)
    }

    /// Also listens for the signals that are only forwarded.
    pub(crate) fn all() -> io::Result<Self> {
        Self::of(&[&ENDING[..], &FORWARDED[..]].concat())
    }

    /// Listens for those of `kinds` that are not ignored. `nohup`, and scripts for background processes, ignore
    /// signals, which has to stay so, also for the program.
    fn of(kinds: &[SignalKind]) -> io::Result<Self> {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let listened = kinds.iter().filter(|kind| !ignored.contains(kind));
        let streams = listened.map(|kind| Ok((Signal(*kind), signal(*kind)?))).collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (signal, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Waits for a signal that requests an end, and returns its exit status.
pub(crate) async fn ending(signals: &mut Signals) -> u8 {
    loop {
        let signal = signals.next().await;
        if signal.ends() {
            return signal.as_exit();
        }
    }
}

/// Returns the signals that a process ignores, from its `/proc/…/status`.
fn ignored(status: &str) -> Vec<SignalKind> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).filter(|number| mask >> (number - 1) & 1 == 1).map(SignalKind::from_raw).collect()
}

/// Blocks every signal in this thread and in the threads that it starts later. SIGKILL and SIGSTOP cannot be blocked.
pub(crate) fn block_all() -> io::Result<()> {
    Ok(SigSet::all().thread_block()?)
}

/// Blocks SIGTTOU and SIGTSTP in this thread and in the threads that it starts later. A background process of a
/// terminal can then write to it and become the foreground process, and is not stopped for that. A
/// [stop from the keyboard](crate::keyboard_stop) is handled by a thread.
pub(crate) fn block_terminal_stops() -> io::Result<()> {
    Ok(terminal_stops().thread_block()?)
}

/// Unblocks SIGCHLD in this thread and in the threads that it starts later: a process that starts this one may have
/// blocked it, and the end of the program would not be noticed.
pub(crate) fn unblock_ends_of_children() -> io::Result<()> {
    Ok(SigSet::from(Number::SIGCHLD).thread_unblock()?)
}

/// Waits for SIGTSTP, which has to be blocked.
pub(crate) fn wait_for_stop() -> io::Result<()> {
    keyboard_stop().wait()?;
    Ok(())
}

/// Stops this process, as SIGTSTP does by default. Returns once it is continued, or at once if no shell could continue
/// it.
pub(crate) fn stop_this_process() -> io::Result<()> {
    // The signal is sent to this thread, where nothing else waits for it.
    with_mask(SigmaskHow::SIG_UNBLOCK, &keyboard_stop(), || Ok(raise(Number::SIGTSTP)?))
}

/// Starts a process with every signal blocked.
pub(crate) fn starting_with_all_blocked<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    with_mask(SigmaskHow::SIG_BLOCK, &SigSet::all(), start)
}

/// Returns the signals that this thread blocks, without SIGTTOU and SIGTSTP.
pub(crate) fn mask_without_terminal_stops() -> io::Result<SigSet> {
    let mut mask = SigSet::thread_get_mask()?;
    for signal in &terminal_stops() {
        mask.remove(signal);
    }
    Ok(mask)
}

fn terminal_stops() -> SigSet {
    SigSet::from_iter([Number::SIGTTOU, Number::SIGTSTP])
}

fn keyboard_stop() -> SigSet {
    SigSet::from_iter([Number::SIGTSTP])
}

/// Sets the mask of this thread during `action`. Processes inherit the mask of the thread that starts them.
fn with_mask<T>(how: SigmaskHow, set: &SigSet, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = set.thread_swap_mask(how)?;
    let outcome = action();
    before.thread_set_mask()?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_process_status() {
        let status = "Name:\tenlist\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000004\n";
        assert_eq!(ignored(status), [SignalKind::hangup(), SignalKind::pipe()]);
        assert_eq!(ignored(""), []);
        assert_eq!(ignored("SigIgn:\tnonsense"), []);
    }
}
