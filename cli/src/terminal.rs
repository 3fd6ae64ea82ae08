//! The terminal of a command: it is lent to the command's group while the command runs.
//!
//! SIGTTOU has to be blocked, see [`signals::block_terminal_stop`](crate::signals::block_terminal_stop).

use std::io;

use rustix::{
    process::{Pid, getpgrp},
    termios::{tcgetpgrp, tcsetpgrp},
};

/// Puts `group` in front, if this process is: it may read then, and gets what the keyboard sends. In the background of a shell, and
/// without a terminal, nothing changes.
pub(crate) fn lend(group: Pid) {
    if tcgetpgrp(io::stdin()) == Ok(getpgrp()) {
        // An error says that the terminal is gone.
        let _ = tcsetpgrp(io::stdin(), group);
    }
}
