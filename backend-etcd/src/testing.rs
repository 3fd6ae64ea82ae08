//! Parts of unit tests: a session on a `FakeEtcd`, and failures.

use enlist_testkit::FakeEtcd;

use crate::{
    Etcd, SessionRuntime,
    error::{Failure, text_cause},
};

/// Returns a session on a fake, in the runtime of the test.
pub(crate) fn session() -> (FakeEtcd, Etcd) {
    let fake = FakeEtcd::start();
    let etcd = Etcd::from_channel(fake.channel()).runtime(SessionRuntime::Caller).build().unwrap();
    (fake, etcd)
}

/// Returns a failure of each kind that has a cause, which is this text.
pub(crate) fn failures_with_a_cause(text: &str) -> [Failure; 7] {
    let cause = || text_cause(text);
    [
        Failure::NeverSent(cause()),
        Failure::Lost(cause()),
        Failure::Leaderless(cause()),
        Failure::Unfit(cause()),
        Failure::StaleAuthToken(cause()),
        Failure::NoUser(cause()),
        Failure::AnswerTooLarge(cause()),
    ]
}
