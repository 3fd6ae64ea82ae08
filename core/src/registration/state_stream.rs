//! Sequence of the states of a registration, see [`RegistrationState`].

use tokio::sync::watch;

use crate::{
    error::Error,
    registration::{registration_cell::Reported, state::RegistrationState},
};

/// The states of a registration, for one reader.
#[derive(Debug)]
pub struct RegistrationStates {
    reported: watch::Receiver<Reported>,
    /// The end was returned.
    ended: bool,
}

impl RegistrationStates {
    pub(super) fn new(mut reported: watch::Receiver<Reported>) -> Self {
        // The first call returns the current state.
        reported.mark_changed();
        Self { reported, ended: false }
    }

    /// Returns the next state. The first is the current one. A slow reader skips states and gets the latest one.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] once [`RegistrationState::Ended`] was returned.
    ///
    /// # Cancel safety
    ///
    /// A state that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<RegistrationState, Error> {
        if self.ended {
            return Err(Error::Closed);
        }
        self.reported.changed().await.map_err(|_| Error::Closed)?;
        let state = self.reported.borrow_and_update().state.clone();
        self.ended = matches!(state, RegistrationState::Ended);
        Ok(state)
    }
}
