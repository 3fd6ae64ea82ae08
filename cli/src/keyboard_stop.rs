//! Stops from the keyboard (Ctrl-Z, SIGTSTP) that this process receives itself, while it may run a program.
//!
//! The program has a process group of its own. After `fg` of a job that runs in the background, and while the standard
//! input is no terminal, the keyboard's signals go to the group of this process only. A thread waits for SIGTSTP, which
//! has to be [blocked](crate::signals::block_terminal_stops), and passes it to the [job](crate::terminal::Job) if a
//! program runs; otherwise it stops this process.

use std::{
    io,
    sync::{Mutex, MutexGuard},
};

use enlist::backend::MutexExt as _;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::signals::{stop_this_process, wait_for_stop};

/// The job that handles the stops.
static JOB: Mutex<Option<UnboundedSender<()>>> = Mutex::new(None);

fn job() -> MutexGuard<'static, Option<UnboundedSender<()>>> {
    JOB.locked()
}

/// Starts the thread, which lasts as long as the process.
pub(crate) fn listen() -> io::Result<()> {
    std::thread::Builder::new().name("keyboard-stop".to_owned()).spawn(|| {
        while wait_for_stop().is_ok() {
            let is_passed = job().as_ref().is_some_and(|job| job.send(()).is_ok());
            if !is_passed {
                // An error leaves the process running.
                let _ = stop_this_process();
            }
        }
    })?;
    Ok(())
}

/// Stops of a job. On drop, a stop that was not handled stops this process, as later ones do.
#[derive(Debug)]
pub(crate) struct KeyboardStops(UnboundedReceiver<()>);

impl KeyboardStops {
    /// Receives the stops from now on. There is one program at a time.
    pub(crate) fn begin() -> Self {
        let (send, receive) = unbounded_channel();
        *job() = Some(send);
        Self(receive)
    }

    /// Waits for the next stop.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no stop.
    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // Another job receives them.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for KeyboardStops {
    fn drop(&mut self) {
        *job() = None;
        if self.0.try_recv().is_ok() {
            // An error leaves the process running.
            let _ = stop_this_process();
        }
    }
}
