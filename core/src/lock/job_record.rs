//! Record of a job that runs once, and the decisions that depend on it. [`Once`](crate::Once) reads and writes it.
//!
//! A record is written twice by each run, first when it begins and then when it is done, and both writes are guarded by
//! the revision that was read before. So the records of one job form a chain: the mark of a run is refused as soon as
//! another run has begun, and no run begins after a mark.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    config::write::Expect,
    error::Error,
    model::{
        name::LockName,
        revision::{FencingToken, Revision},
    },
};

/// Version of the stored form. Records of a later one are read as far as they are understood, and not overwritten.
const VERSION: u32 = 1;

/// Record of the last run of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobRecord {
    /// Name of the job, and of its lock.
    pub name: LockName,
    /// Fencing token of the run.
    pub token: FencingToken,
    /// Time at which the run began, by the clock of its process.
    pub begun: SystemTime,
    /// Time at which the run was marked as done, by the clock of its process; `None` if it failed, ended early, or is
    /// in progress.
    pub done: Option<SystemTime>,
    /// Revision of the record.
    pub revision: Revision,
    version: u32,
}

/// The stored form, with times in milliseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    token: u64,
    begun: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    done: Option<u64>,
}

/// Treatment of a job that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenDone {
    /// It does not run.
    Skip,
    /// It runs again.
    Repeat,
}

/// Next step of a run that begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BeginStep {
    /// The job is done; it does not run.
    Skip,
    /// The beginning is recorded, at this revision.
    Begun(Revision),
    /// Record the beginning.
    Write(Expect),
    /// A run with a later token has begun, so the lock was lost.
    Outdated(Revision),
    /// The record is of a later version of its format.
    Unknown,
}

/// Next step of a run whose job has succeeded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FinishStep {
    /// The job is marked.
    Marked,
    /// Write the mark.
    Write(Expect),
    /// Another run has begun, or the record was removed, at this revision if it is known.
    Outdated(Revision),
}

impl JobRecord {
    /// Reads a stored record.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if it is none.
    pub(crate) fn decode(name: &LockName, value: &[u8], revision: Revision) -> Result<Self, Error> {
        let stored: Stored = serde_json::from_slice(value).map_err(|_| unknown(name))?;
        Ok(Self {
            name: name.clone(),
            token: FencingToken::new(stored.token),
            begun: at(stored.begun),
            done: stored.done.map(at),
            revision,
            version: stored.v,
        })
    }

    /// Returns the step with which the run under the token `own` goes on to its beginning.
    pub(crate) fn begin_step(stored: Option<&Self>, own: FencingToken, when_done: WhenDone) -> BeginStep {
        match stored {
            None => BeginStep::Write(Expect::Absent),
            Some(record) if record.done.is_some() && when_done == WhenDone::Skip => BeginStep::Skip,
            Some(record) if record.token > own && !record.is_copied() => BeginStep::Outdated(record.revision),
            Some(record) if record.token == own && record.done.is_none() => BeginStep::Begun(record.revision),
            Some(record) if record.version > VERSION => BeginStep::Unknown,
            Some(record) => BeginStep::Write(Expect::Revision(record.revision)),
        }
    }

    /// Returns `true` if the record was copied from another store: a run takes its lock, whose creation is its token,
    /// before it writes its record.
    fn is_copied(&self) -> bool {
        self.token.get() >= self.revision.get()
    }

    /// Returns the step with which the run under the token `own` goes on after a write of its mark that was refused or
    /// not answered.
    pub(crate) fn finish_step(stored: Option<&Self>, own: FencingToken) -> FinishStep {
        match stored {
            Some(record) if record.token == own && record.done.is_some() => FinishStep::Marked,
            Some(record) if record.token == own => FinishStep::Write(Expect::Revision(record.revision)),
            Some(record) => FinishStep::Outdated(record.revision),
            None => FinishStep::Outdated(Revision::default()),
        }
    }
}

/// Returns the stored form of the beginning of a run.
pub(crate) fn beginning(token: FencingToken, begun: SystemTime) -> Vec<u8> {
    encode(&Stored { v: VERSION, token: token.get(), begun: millis(begun), done: None })
}

/// Returns the stored form of a mark.
pub(crate) fn mark(token: FencingToken, begun: SystemTime, done: SystemTime) -> Vec<u8> {
    encode(&Stored { v: VERSION, token: token.get(), begun: millis(begun), done: Some(millis(done)) })
}

/// Error for a record that this version does not understand.
pub(crate) fn unknown(name: &LockName) -> Error {
    Error::Unsupported { what: format!("the stored record of the job {name}") }
}

fn encode(stored: &Stored) -> Vec<u8> {
    serde_json::to_vec(stored).expect("numbers have a JSON form")
}

/// Returns milliseconds since 1970; 0 for a clock before that.
fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time of milliseconds since 1970; 1970 for one that this system cannot represent.
fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> LockName {
        LockName::parse("job").unwrap()
    }

    fn record(json: &str) -> JobRecord {
        JobRecord::decode(&name(), json.as_bytes(), Revision::new(50)).unwrap()
    }

    const STORED: Expect = Expect::Revision(Revision::new(50));

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let (begun, done) = (at(1_795_000_000_000), at(1_795_000_001_500));
        let written = mark(FencingToken::new(7), begun, done);
        let text = r#"{"v":1,"token":7,"begun":1795000000000,"done":1795000001500}"#;
        assert_eq!(written, text.as_bytes());
        let read = record(text);
        assert_eq!((read.token, read.begun, read.done), (FencingToken::new(7), begun, Some(done)));
        let written = beginning(FencingToken::new(7), begun);
        assert_eq!(written, br#"{"v":1,"token":7,"begun":1795000000000}"#);
    }

    #[test]
    fn what_is_no_record_is_refused_and_odd_times_are_not() {
        for value in [&b""[..], b"[]", b"{}", b"{\"v\":1}", b"done", b"\xff"] {
            let refused = JobRecord::decode(&name(), value, Revision::default());
            assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
        }
        let odd = record(r#"{"v":2,"token":7,"begun":18446744073709551615,"more":[1]}"#);
        assert_eq!(odd.token, FencingToken::new(7));
    }

    #[test]
    fn a_run_begins_unless_the_job_is_done_or_a_later_one_has_begun() {
        let step = |json, own, when_done| JobRecord::begin_step(Some(&record(json)), FencingToken::new(own), when_done);
        let (begun, done) = (r#"{"v":1,"token":7,"begun":1}"#, r#"{"v":1,"token":7,"begun":1,"done":2}"#);
        assert_eq!(JobRecord::begin_step(None, FencingToken::new(7), WhenDone::Skip), BeginStep::Write(Expect::Absent));
        for when_done in [WhenDone::Skip, WhenDone::Repeat] {
            assert_eq!(step(begun, 9, when_done), BeginStep::Write(STORED), "an earlier run did not finish");
            assert_eq!(step(begun, 7, when_done), BeginStep::Begun(Revision::new(50)), "the reply was lost");
            assert_eq!(step(begun, 5, when_done), BeginStep::Outdated(Revision::new(50)));
            assert_eq!(step(r#"{"v":2,"token":7,"begun":1}"#, 9, when_done), BeginStep::Unknown);
        }
        for own in [5, 7, 9] {
            assert_eq!(step(done, own, WhenDone::Skip), BeginStep::Skip);
        }
        assert_eq!(step(done, 9, WhenDone::Repeat), BeginStep::Write(STORED));
        assert_eq!(step(done, 5, WhenDone::Repeat), BeginStep::Outdated(Revision::new(50)));
    }

    #[test]
    fn a_record_copied_from_another_store_counts_as_an_earlier_run() {
        let step = |own| {
            let copied = record(r#"{"v":1,"token":99,"begun":1}"#);
            JobRecord::begin_step(Some(&copied), FencingToken::new(own), WhenDone::Skip)
        };
        assert_eq!(step(60), BeginStep::Write(STORED));
        assert_eq!(step(100), BeginStep::Write(STORED));
    }

    #[test]
    fn a_mark_is_written_only_while_no_other_run_has_begun() {
        let step = |json, own| JobRecord::finish_step(Some(&record(json)), FencingToken::new(own));
        let (begun, done) = (r#"{"v":1,"token":7,"begun":1}"#, r#"{"v":1,"token":7,"begun":1,"done":2}"#);
        assert_eq!(step(done, 7), FinishStep::Marked, "the reply was lost");
        assert_eq!(step(begun, 7), FinishStep::Write(STORED));
        for (stored, own) in [(begun, 5), (done, 5), (begun, 9), (done, 9)] {
            assert_eq!(step(stored, own), FinishStep::Outdated(Revision::new(50)), "{stored} {own}");
        }
        let forgotten = JobRecord::finish_step(None, FencingToken::new(7));
        assert_eq!(forgotten, FinishStep::Outdated(Revision::default()));
    }
}
