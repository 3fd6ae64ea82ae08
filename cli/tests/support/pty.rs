//! An interactive shell with job control, in a new terminal.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use enlist_testkit::{EtcdServer, eventually};
use rustix::{
    fs::{Mode, OFlags},
    process::Pid,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcgetpgrp, tcsetwinsize},
};

use super::with_default_signals;

/// Width of the terminal.
pub(crate) const COLUMNS: u16 = 100;

/// Bash in a terminal, where `$E` is the command under test. Dropping it closes the terminal.
pub(crate) struct Shell {
    child: Child,
    master: File,
    output: Arc<Mutex<String>>,
    /// End of the output that the test has read.
    read: usize,
}

impl Shell {
    /// Starts the shell, and waits for a first answer.
    pub(crate) async fn start(server: &EtcdServer) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal can be made");
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let end = File::from(rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap());
        // `setsid --ctty` makes the terminal the controlling one, which job control requires.
        let mut command = with_default_signals("setsid");
        command.args(["--ctty", "bash", "--noprofile", "--norc", "--noediting", "-i"]);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ENLIST_")) {
            command.env_remove(variable);
        }
        command.env("PS1", "").env("ENLIST_ENDPOINTS", server.url()).env("E", env!("CARGO_BIN_EXE_enlist"));
        command.stdin(Stdio::from(end.try_clone().unwrap()));
        command.stdout(Stdio::from(end.try_clone().unwrap())).stderr(Stdio::from(end));
        let child = command.spawn().expect("this test needs `setsid` (util-linux) and `bash` on the PATH");
        let master = File::from(master);
        let output = Arc::new(Mutex::new(String::new()));
        let (mut reader, written) = (master.try_clone().unwrap(), Arc::clone(&output));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails when the other end is closed.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                written.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        let mut shell = Self { child, master, output, read: 0 };
        // Without echo, so that all output was printed by programs.
        shell.types("stty -echo; echo rea''dy\n");
        shell.shows("ready\r\n").await;
        shell
    }

    /// Types text, or a control character.
    pub(crate) fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until a process group is in the foreground.
    pub(crate) async fn is_in_front(&self, group: i32) {
        eventually("the group is in the foreground", || async {
            let front = tcgetpgrp(&self.master).map(Pid::as_raw_pid);
            if front == Ok(group) { Ok(()) } else { Err(front) }
        })
        .await;
    }

    /// Waits until `part` is printed after the part that was read before. Returns the output up to it.
    pub(crate) async fn shows(&mut self, part: &str) -> String {
        let (from, output) = (self.read, Arc::clone(&self.output));
        let (end, text) = eventually(&format!("the terminal shows {part:?}"), || async {
            let output = output.lock().unwrap();
            match output[from..].find(part) {
                Some(at) => Ok((from + at + part.len(), output[from..from + at].to_owned())),
                None => Err(output[from..].to_owned()),
            }
        })
        .await;
        self.read = end;
        text
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // An error means that the shell has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
