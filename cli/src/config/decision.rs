//! The reaction of `enlist config watch` to a change: the command is started, gets a signal, or is left alone. Pure.

/// Use of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is run to its end after each change.
    Run,
    /// It is started once, and gets a signal after each change.
    Signal,
}

/// Reason for the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// The values are known for the first time.
    Known,
    /// The values are known for the first time, and the command waits for a change.
    KnownPostponed,
    /// The values are not known yet, because the store does not answer.
    Unanswered,
    /// The values have changed.
    Changed,
}

/// State of the file of `--write-to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    /// There is no `--write-to`.
    NotUsed,
    /// It was replaced.
    Written,
    /// It exists and was left alone.
    Untouched,
    /// It does not exist.
    Missing,
}

/// State of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    NeverStarted,
    Running,
    Ended,
}

/// The reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start,
    Signal,
    Nothing,
}

/// Returns the reaction.
pub(crate) fn decide(mode: Mode, trigger: Trigger, file: FileState, program: Program) -> Action {
    let has_changed = matches!(file, FileState::NotUsed | FileState::Written);
    match (mode, trigger, program) {
        (Mode::Run, Trigger::Known, _) if file != FileState::Missing => Action::Start,
        (Mode::Run, Trigger::Changed, _) if has_changed => Action::Start,
        // The file of an earlier run is enough.
        (Mode::Signal, Trigger::Unanswered, Program::NeverStarted) if file == FileState::Untouched => Action::Start,
        (Mode::Signal, Trigger::Known | Trigger::Changed, Program::NeverStarted) if file != FileState::Missing => {
            Action::Start
        }
        (Mode::Signal, Trigger::Known | Trigger::Changed, Program::Running) if has_changed => Action::Signal,
        _ => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::{Action as A, FileState as F, Mode as M, Program as P, Trigger as T, *};

    #[test]
    fn each_change_runs_the_command() {
        for (trigger, file, expected) in [
            (T::Known, F::NotUsed, A::Start),
            (T::Known, F::Written, A::Start),
            (T::Known, F::Untouched, A::Start),
            (T::Known, F::Missing, A::Nothing),
            (T::KnownPostponed, F::Written, A::Nothing),
            (T::Unanswered, F::Untouched, A::Nothing),
            (T::Changed, F::NotUsed, A::Start),
            (T::Changed, F::Written, A::Start),
            (T::Changed, F::Untouched, A::Nothing),
            (T::Changed, F::Missing, A::Nothing),
        ] {
            for program in [P::NeverStarted, P::Ended] {
                assert_eq!(decide(M::Run, trigger, file, program), expected, "{trigger:?} {file:?}");
            }
        }
    }

    #[test]
    fn a_command_with_a_signal_is_started_once() {
        for (trigger, file, program, expected) in [
            (T::Known, F::NotUsed, P::NeverStarted, A::Start),
            (T::Known, F::Untouched, P::NeverStarted, A::Start),
            (T::Known, F::Missing, P::NeverStarted, A::Nothing),
            (T::Changed, F::Written, P::NeverStarted, A::Start),
            (T::Unanswered, F::Untouched, P::NeverStarted, A::Start),
            (T::Unanswered, F::NotUsed, P::NeverStarted, A::Nothing),
            (T::Unanswered, F::Missing, P::NeverStarted, A::Nothing),
            // Started without an answer: the first values are a change if they differ from the file.
            (T::Known, F::Written, P::Running, A::Signal),
            (T::Known, F::Untouched, P::Running, A::Nothing),
            (T::Changed, F::NotUsed, P::Running, A::Signal),
            (T::Changed, F::Written, P::Running, A::Signal),
            (T::Changed, F::Untouched, P::Running, A::Nothing),
            (T::Changed, F::Written, P::Ended, A::Nothing),
        ] {
            assert_eq!(decide(M::Signal, trigger, file, program), expected, "{trigger:?} {file:?} {program:?}");
        }
    }
}
