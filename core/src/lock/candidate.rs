//! Repeated work that only the leader does.

use std::sync::Arc;

use crate::{
    error::Error,
    lock::{
        election::{Election, Leadership},
        loss::Loss,
        options::LockOptions,
    },
    model::{escape::escaped, name::LockName},
    runtime::backoff::BackoffPolicy,
};

/// Candidate for leadership, with the value that it proclaims. [`run`](Self::run) does work only while leading.
///
/// ```
/// use enlist::{Candidate, LockName};
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), enlist::Error> {
/// let store = enlist_memory::MemoryStore::new();
/// let name = LockName::parse("scheduler")?;
/// let candidate = Candidate::new(Arc::new(store.client()), name, "10.0.0.1:9000").again_after_loss();
/// let done = candidate.run(async |leadership| leadership.fencing_token()).await?;
/// println!("led with token {done}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Candidate {
    election: Arc<dyn Election>,
    name: LockName,
    value: String,
    options: LockOptions,
    again: Option<BackoffPolicy>,
}

impl Candidate {
    /// A candidate in the election `name`. A loss ends its [`run`](Self::run) by default.
    pub fn new(election: Arc<dyn Election>, name: LockName, value: impl Into<String>) -> Self {
        Self { election, name, value: value.into(), options: LockOptions::new(), again: None }
    }

    /// Sets the options of its campaigns. A deadline in `options` bounds each campaign.
    #[must_use]
    pub fn options(mut self, options: LockOptions) -> Self {
        self.options = options;
        self
    }

    /// Campaigns again after each loss, and after a campaign with a retryable error, with the delays of the default
    /// [`BackoffPolicy`].
    #[must_use]
    pub fn again_after_loss(self) -> Self {
        self.again_after_loss_with(BackoffPolicy::default())
    }

    /// Works as [`again_after_loss`](Self::again_after_loss), with the given delays. They start over after each
    /// leadership.
    #[must_use]
    pub fn again_after_loss_with(mut self, delays: BackoffPolicy) -> Self {
        self.again = Some(delays);
        self
    }

    /// Campaigns, does `work` while leading, resigns when it is done, and returns its result. The work is aborted at
    /// its next await once leadership is lost. It starts over after the next victory if
    /// [`again_after_loss`](Self::again_after_loss) is set.
    ///
    /// A resignation that is not confirmed goes on in the background and is no error: the work is done.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] after a loss; as [`Election::campaign`] if the campaign failed. A candidate that campaigns
    /// again returns only errors that are not retryable, see [`Error::is_retryable`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work and resigns, or gives up the candidacy.
    pub async fn run<T>(&self, mut work: impl AsyncFnMut(&Leadership) -> T) -> Result<T, Error> {
        let mut delays = self.again.unwrap_or_default().start();
        loop {
            let failed = match self.election.campaign(&self.name, &self.value, self.options.clone()).await {
                Ok(leadership) => match leadership.run(work(&leadership)).await {
                    Ok(output) => {
                        // An error means an unconfirmed resignation, which goes on in the background.
                        let _ = leadership.resign().await;
                        return Ok(output);
                    }
                    Err(Loss::SessionClosed) => return Err(Error::Closed),
                    Err(loss) => {
                        tracing::warn!(election = %escaped(&self.name), cause = ?loss, "leadership lost");
                        delays.reset();
                        Error::LeaseLost
                    }
                },
                Err(error) => error,
            };
            if self.again.is_none() || !failed.is_retryable() {
                return Err(failed);
            }
            tokio::time::sleep(delays.next_delay()).await;
        }
    }
}
