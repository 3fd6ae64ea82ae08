//! Ends the group of a command when the process that started it was killed, or is frozen, and cannot. It reads the group's number,
//! then for how many milliseconds the group may live, again and again, and in the end that it is not needed.

use std::{
    io::{self, BufRead},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use enlist::Moment;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::child::has_members;

/// Between SIGTERM and SIGKILL, once the starter is gone.
const GRACE: Duration = Duration::from_millis(200);

/// How often a group that is to end is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Lines that are read ahead.
const QUEUE: usize = 4;

/// For ever, as far as a group is concerned whose starter says nothing about it.
const UNLIMITED: Duration = Duration::from_secs(u32::MAX as u64);

pub(crate) fn run() -> u8 {
    let (send, lines) = mpsc::sync_channel(QUEUE);
    // It ends with its input.
    std::thread::spawn(move || io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let Some(group) = lines.recv().ok().and_then(|line| Pid::from_raw(line.parse().ok()?)) else { return 0 };
    let (mut told, mut allowed) = (Moment::now(), UNLIMITED);
    loop {
        match lines.recv_timeout(told.remaining(allowed)) {
            Ok(line) if line == "done" => return 0,
            Ok(line) => (told, allowed) = (Moment::now(), Duration::from_millis(line.parse().unwrap_or(0))),
            // The starter is frozen: whatever the command was run under may be another's any moment.
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => {
                let asked = Moment::now();
                // Errors say that nobody is left.
                let _ = kill_process_group(group, Signal::TERM);
                while has_members(group) && asked.elapsed() < GRACE.min(told.remaining(allowed)) {
                    std::thread::park_timeout(LOOK);
                }
                break;
            }
        }
    }
    let _ = kill_process_group(group, Signal::KILL);
    0
}
