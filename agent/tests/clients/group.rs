//! Processes with the others that they start.

use tokio::process::{Child, Command};

/// A process in a group of its own. Dropping it kills the group: what a script or a build has started does not end with
/// it. Nothing is killed once the process has been waited for, because its number may be that of another one.
#[derive(Debug)]
pub(crate) struct ProcessGroup(Child);

impl ProcessGroup {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.kill_on_drop(true).process_group(0).spawn().unwrap())
    }

    pub(crate) fn process(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0.id() {
            let _ = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).status();
        }
    }
}
