//! Members of a process group.

use rustix::process::{Pid, test_kill_process_group};

/// Returns `true` if a process of the group runs, other than its first one. Zombies do not count. Without `/proc`, no
/// process is found.
pub(crate) fn has_members(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    let group = group.as_raw_nonzero().to_string();
    processes.flatten().any(|process| {
        if process.file_name() == *group {
            return false;
        }
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { return false };
        // After the name in parentheses: state, parent, group.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, of) = (fields.next(), fields.nth(1));
        state.is_some_and(|state| !["Z", "X"].contains(&state)) && of == Some(&group)
    })
}
