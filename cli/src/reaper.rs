//! The reaper ends the process group of a program when the process that started it is killed or frozen.
//!
//! It is the first process of the group, so that the group exists before the program does. Its input has one line per
//! deadline, see [`ReaperTime`]. It ends the group at the last deadline, or when the input ends. It never ends another
//! group.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, getpgrp, getpid, kill_process_group},
    time::{ClockId, clock_gettime},
};

use crate::{exit, process_group::has_members, signals};

/// Time between SIGTERM and SIGKILL after the starting process has ended.
const MAX_KILL_DELAY: Duration = Duration::from_millis(200);

/// Interval of checks for the end of the group.
const GROUP_END_POLL: Duration = Duration::from_millis(10);

/// Maximum wait for a line before the deadline is checked again. Waits do not count the suspension of the machine.
const DEADLINE_POLL: Duration = Duration::from_secs(1);

/// Maximum number of lines read ahead.
const QUEUE: usize = 4;

/// Point in time on the clock of the reaper, which all processes read: the time since the machine started, with
/// suspensions where the system has such a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReaperTime(Duration);

impl ReaperTime {
    const MAX: Self = Self(Duration::MAX);

    pub(crate) fn now() -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: ClockId = ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const CLOCK: ClockId = ClockId::Monotonic;
        Self(Duration::try_from(clock_gettime(CLOCK)).unwrap_or_default())
    }

    #[must_use]
    pub(crate) fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// Returns the time since `earlier`; zero if that is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the line with which the reaper learns this deadline: milliseconds.
    pub(crate) fn line(self) -> String {
        format!("{}\n", u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX))
    }

    /// Parses a [line](Self::line). One that is damaged is in the past.
    fn parse(line: &str) -> Self {
        Self(Duration::from_millis(line.parse().unwrap_or(0)))
    }
}

pub(crate) fn run() -> u8 {
    let group = getpid();
    // At a terminal, it would wait for lines with all signals blocked, Ctrl-C included.
    if getpgrp() != group || io::stdin().is_terminal() {
        let _ = writeln!(io::stderr(), "enlist: `reap` is started by `enlist` itself, as the first process of a group");
        return exit::USAGE;
    }
    // Signals to the group must not end this process. The starting process has blocked them before the start as well.
    if signals::block_all().is_err() {
        return 1;
    }
    let (send, lines) = mpsc::sync_channel(QUEUE);
    // The thread ends with the input.
    std::thread::spawn(move || io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let mut deadline = ReaperTime::MAX;
    loop {
        let remaining = deadline.since(ReaperTime::now());
        match lines.recv_timeout(remaining.min(DEADLINE_POLL)) {
            // The starting process is frozen, so another contender may acquire the lock soon. A deadline that has
            // passed cannot be moved any more.
            Ok(_) | Err(RecvTimeoutError::Timeout) if ReaperTime::now() >= deadline => break,
            Ok(line) => deadline = ReaperTime::parse(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                end_gently(group, deadline.min(ReaperTime::now().after(MAX_KILL_DELAY)));
                break;
            }
        }
    }
    // Ends this process as well.
    let _ = kill_process_group(group, Signal::KILL);
    0
}

/// Sends SIGTERM to the group, and waits until it ends or until `deadline`.
fn end_gently(group: Pid, deadline: ReaperTime) {
    // An error means that no process is left.
    let _ = kill_process_group(group, Signal::TERM);
    let _ = kill_process_group(group, Signal::CONT);
    while has_members(group) && ReaperTime::now() < deadline {
        std::thread::park_timeout(GROUP_END_POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_its_deadline() {
        let minute = ReaperTime(Duration::from_secs(60));
        assert_eq!((minute.line().as_str(), ReaperTime::parse("60000")), ("60000\n", minute));
        // An endless grace is no deadline in the past.
        let endless = minute.after(Duration::MAX).line();
        assert!(ReaperTime::parse(endless.trim_end()) > minute.after(Duration::from_secs(1 << 40)));
        assert_eq!(ReaperTime::parse("damaged"), ReaperTime(Duration::ZERO));
    }
}
