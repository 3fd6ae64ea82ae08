//! Captured logs of a test. Only one test of a program can read them: the interest in an event is decided once per
//! process.

use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::LevelFilter;

/// The logged text.
#[derive(Clone, Default)]
pub(crate) struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    /// Captures the logs of this thread from `level` on, until the guard is dropped.
    pub(crate) fn from(level: LevelFilter) -> (Self, DefaultGuard) {
        let logged = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(Mutex::new(logged.clone()))
            .finish();
        (logged, tracing::subscriber::set_default(subscriber))
    }

    /// Returns the lines so far that contain `part`.
    pub(crate) fn lines(&self, part: &str) -> Vec<String> {
        lines(&self.0.lock().unwrap(), part)
    }

    /// Returns the lines since the last call that contain `part`.
    pub(crate) fn take(&self, part: &str) -> Vec<String> {
        lines(&std::mem::take(&mut *self.0.lock().unwrap()), part)
    }
}

fn lines(bytes: &[u8], part: &str) -> Vec<String> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
