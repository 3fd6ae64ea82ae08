//! Readiness of the agent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{Error, Namespace, Resolver};

use super::cache::Cache;
use crate::http::messages::error::ApiError;

/// Age up to which a response of the store is reused.
const STORE_AGE: Duration = Duration::from_secs(1);

/// Readiness of the agent. It is ready once the store has answered, and stays ready during an outage of the store: its
/// clients then receive the last known state.
#[derive(Debug)]
pub(crate) struct Readiness {
    answered: AtomicBool,
    store: Cache<(), ()>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { answered: AtomicBool::new(false), store: Cache::new(STORE_AGE) }
    }
}

impl Readiness {
    /// Returns once the agent is ready.
    ///
    /// # Errors
    ///
    /// The store refuses to answer, or has not answered in time.
    pub(crate) async fn check(&self, resolver: &Arc<dyn Resolver>) -> Result<(), ApiError> {
        if self.answered.load(Ordering::Relaxed) {
            return Ok(());
        }
        let resolver = Arc::clone(resolver);
        let read = || async move {
            match resolver.services(&Namespace::default()).await {
                // The response of a layout that cannot list services.
                Ok(_) | Err(Error::Unsupported { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.store.read((), read).await?;
        self.answered.store(true, Ordering::Relaxed);
        Ok(())
    }
}
