//! Panics of all tasks of a run. A task of the library or of the fake that panics ends neither the process nor the run,
//! and its owner may be gone before anyone asks for the panic, so a hook records it.

use std::{
    panic::{set_hook, take_hook},
    sync::Mutex,
};

use enlist::backend::MutexExt as _;

use crate::verdicts::{Invariant, Verdict};

static PANICS: Mutex<Vec<Verdict>> = Mutex::new(Vec::new());

/// Records the panics of this process from now on.
pub(crate) fn record() {
    let before = take_hook();
    set_hook(Box::new(move |panic| {
        PANICS.locked().push(Verdict::of(Invariant::NoPanic, panic));
        before(panic);
    }));
}

/// Returns the panics since [`record`] was called.
pub(crate) fn recorded() -> Vec<Verdict> {
    PANICS.locked().clone()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use enlist::TaskOwner;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_in_an_owned_task_is_recorded() {
        record();
        let owner = TaskOwner::new();
        owner.spawn("watch", async { panic!("on purpose") }).expect("in a runtime");
        assert!(owner.drain(Duration::from_secs(5)).await, "the owner catches the panic");
        drop(owner);
        let recorded = recorded();
        let panic = recorded.iter().find(|verdict| verdict.detail.ends_with(" on purpose"));
        assert_eq!(panic.and_then(|verdict| verdict.invariant), Some(Invariant::NoPanic), "{recorded:?}");
    }
}
