//! Deadlines of acquisitions and releases. Their error has the last failure of the task behind the call as its cause.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    error::{Cause, Error},
    runtime::sync::MutexExt as _,
};

/// Last failure of an acquisition or of its release. Clones share it: the task has one, and its caller another one.
#[derive(Clone, Debug, Default)]
pub struct LastTrouble(Arc<Mutex<Option<Error>>>);

impl LastTrouble {
    /// Records a failure; the operation is tried again.
    pub fn note(&self, error: Error) {
        self.set(Some(error));
    }

    /// Records a success.
    pub fn clear(&self) {
        self.set(None);
    }

    fn set(&self, error: Option<Error>) {
        *self.0.locked() = error;
    }

    fn cause(&self) -> Option<Cause> {
        let last = self.0.locked().clone();
        last.map(|error| Arc::new(error) as Cause)
    }

    /// Waits for `answer`, at most until the deadline, if there is one.
    ///
    /// # Errors
    ///
    /// That of `answer`; [`Error::Timeout`] of `op` at the deadline, with the last failure as its cause.
    ///
    /// # Cancel safety
    ///
    /// That of `answer`, which is dropped at the deadline.
    pub async fn within<T>(
        &self,
        op: &'static str,
        deadline: Option<Duration>,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Some(limit) = deadline else {
            return answer.await;
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Timeout { op, limit, cause: self.cause() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_last_trouble_before_the_deadline_is_the_cause() {
        let trouble = LastTrouble::default();
        let task = trouble.clone();
        let cause = async || match trouble.within("acquire", Some(LIMIT), std::future::pending::<Result<(), _>>()).await
        {
            Err(Error::Timeout { op: "acquire", limit: LIMIT, cause }) => cause.map(|cause| cause.to_string()),
            other => panic!("expected a timeout: {other:?}"),
        };
        assert_eq!(cause().await, None);
        task.note(Error::LeaseLost);
        task.note(Error::unavailable("refused"));
        assert_eq!(cause().await.as_deref(), Some("store unavailable"));
        task.clear();
        assert_eq!(cause().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_passed_on() {
        let trouble = LastTrouble::default();
        for deadline in [None, Some(LIMIT)] {
            assert!(matches!(trouble.within("acquire", deadline, async { Ok(1) }).await, Ok(1)));
        }
    }
}
