//! Signals: those that end this process, those that only a command is told, and those that are kept off.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// A signal by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) SignalKind);

impl Signal {
    /// The exit status of a process that it ended.
    pub(crate) fn as_exit(self) -> u8 {
        128_u8.saturating_add(u8::try_from(self.0.as_raw_value()).unwrap_or(0))
    }

    /// Returns `true` if whoever sends it wants an end.
    pub(crate) fn ends(self) -> bool {
        ENDING.contains(&self.0)
    }
}

const ENDING: [SignalKind; 4] =
    [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];

const TOLD: [SignalKind; 3] = [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::window_change()];

/// The signals that arrive from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    streams: Vec<(Signal, Stream)>,
}

impl Signals {
    /// Those that ask for an end.
    pub(crate) fn ending() -> io::Result<Self> {
        Self::of(&ENDING)
    }

    /// Also those that only a command is told.
    pub(crate) fn all() -> io::Result<Self> {
        Self::of(&[&ENDING[..], &TOLD[..]].concat())
    }

    /// Those of `kinds` that are not ignored: `nohup`, and scripts for what they start in the background, mean them to stay ignored, for a
    /// command as well.
    fn of(kinds: &[SignalKind]) -> io::Result<Self> {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let heard = kinds.iter().filter(|kind| !ignored.contains(kind));
        let streams = heard.map(|kind| Ok((Signal(*kind), signal(*kind)?))).collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    /// Waits for the next one.
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

/// Waits for a signal that asks for an end, and returns the exit status for it.
pub(crate) async fn ending(signals: &mut Signals) -> u8 {
    loop {
        let signal = signals.next().await;
        if signal.ends() {
            return signal.as_exit();
        }
    }
}

/// The signals that a process ignores, by its `/proc/…/status`; none where there is no such file.
fn ignored(status: &str) -> Vec<SignalKind> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).filter(|number| mask >> (number - 1) & 1 == 1).map(SignalKind::from_raw).collect()
}

/// Blocks every signal in this thread and in those that it starts from now on. SIGKILL and SIGSTOP cannot be blocked.
pub(crate) fn block_all() -> io::Result<()> {
    Ok(SigSet::all().thread_block()?)
}

/// Blocks SIGTTOU in this thread and in those that it starts from now on: a process in the background of a terminal may then write to
/// it and take it back, and is not stopped for that.
pub(crate) fn block_terminal_stop() -> io::Result<()> {
    Ok(terminal_stop().thread_block()?)
}

/// Starts a process in which every signal is blocked from its beginning.
pub(crate) fn starting_with_all_blocked<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    with_mask(SigmaskHow::SIG_BLOCK, &SigSet::all(), start)
}

/// Starts a process in which SIGTTOU is not blocked.
pub(crate) fn starting_with_terminal_stop<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    with_mask(SigmaskHow::SIG_UNBLOCK, &terminal_stop(), start)
}

fn terminal_stop() -> SigSet {
    SigSet::from_iter([Number::SIGTTOU])
}

/// Processes inherit the mask of the thread that starts them.
fn with_mask<T>(how: SigmaskHow, set: &SigSet, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = set.thread_swap_mask(how)?;
    let started = start();
    before.thread_set_mask()?;
    started
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_a_process() {
        let status = "Name:\tenlist\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000004\n";
        assert_eq!(ignored(status), [SignalKind::hangup(), SignalKind::pipe()]);
        assert_eq!(ignored(""), []);
        assert_eq!(ignored("SigIgn:\tnonsense"), []);
    }
}
