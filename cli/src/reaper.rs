//! Ends the group of a command when the process that started it was killed, or is frozen, and cannot.
//!
//! It is the first process of that group, so that the group exists, and can be ended, before the command does. Its input has one line
//! per deadline, in milliseconds of [`now`]; the group ends when the last one has passed, or the input ends. It ends no other group,
//! whatever it reads.

use std::{
    io::{self, BufRead, Write},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, getpgrp, getpid, kill_process_group},
    time::{ClockId, clock_gettime},
};

use crate::{USAGE, child::has_members, signals};

/// Between SIGTERM and SIGKILL, once the starter is gone.
const GRACE: Duration = Duration::from_millis(200);

/// Interval at which a group that is to end is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Longest wait for a line before the deadline is looked at again: waiting does not count while the machine is suspended.
const PULSE: Duration = Duration::from_secs(1);

/// Lines that are read ahead.
const QUEUE: usize = 4;

/// Time since the machine started, suspensions included where the system has such a clock. It is the same for all processes.
pub(crate) fn now() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;
    Duration::try_from(clock_gettime(CLOCK)).unwrap_or_default()
}

pub(crate) fn run() -> u8 {
    let group = getpid();
    if getpgrp() != group {
        let _ = writeln!(io::stderr(), "enlist: `reap` is started by `enlist` itself, as the first process of a group");
        return USAGE;
    }
    // What the group is sent does not end this one. The starter has blocked it already, so that there is no moment without.
    if signals::block_all().is_err() {
        return 1;
    }
    let (send, lines) = mpsc::sync_channel(QUEUE);
    // It ends with its input.
    std::thread::spawn(move || io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let mut deadline = Duration::MAX;
    loop {
        let left = deadline.saturating_sub(now());
        match lines.recv_timeout(left.min(PULSE)) {
            Ok(line) => deadline = Duration::from_millis(line.parse().unwrap_or(0)),
            // The starter is frozen: whatever the command was run under may be another's any moment.
            Err(RecvTimeoutError::Timeout) if now() >= deadline => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                end_gently(group, deadline.min(now().saturating_add(GRACE)));
                break;
            }
        }
    }
    // Itself as well.
    let _ = kill_process_group(group, Signal::KILL);
    0
}

/// Asks the group to end, and waits for that until `deadline`.
fn end_gently(group: Pid, deadline: Duration) {
    // An error says that nobody is left.
    let _ = kill_process_group(group, Signal::TERM);
    let _ = kill_process_group(group, Signal::CONT);
    while has_members(group) && now() < deadline {
        std::thread::park_timeout(LOOK);
    }
}
