//! For backends: observations of foreign leases, which distinguish a leftover from a live instance.
//!
//! An observation takes a renewal period of the foreign lease, which can be longer than a call waits. It is kept per
//! key and lease, so that a repeated call completes it.

use std::{collections::HashMap, fmt, hash::Hash, sync::Mutex, time::Duration};

use crate::{
    backend::registration::reconcile::{Observation, is_renewed, observation_period},
    model::revision::LeaseId,
    runtime::{clock::Moment, sync::MutexExt as _},
};

/// Maximum number of observations. Beyond it, the oldest one is discarded and would begin again.
const MAX_RUNNING: usize = 4096;

/// One look at a foreign lease.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Look {
    /// The lease.
    pub lease: LeaseId,
    /// Its remaining time.
    pub remaining: Duration,
    /// Its TTL as granted.
    pub granted: Duration,
    /// Time at which the request was sent.
    pub asked: Moment,
    /// Resolution of the store's remaining times, and so the maximum error of an answer.
    pub unit: Duration,
}

/// A running observation.
#[derive(Debug)]
struct Running {
    lease: LeaseId,
    first: Duration,
    /// Time at which the first answer came.
    begun: Moment,
}

/// The observations of a session, by key.
pub struct Observations<K> {
    running: Mutex<HashMap<K, Running>>,
}

impl<K> Default for Observations<K> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<K> fmt::Debug for Observations<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observations").finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone> Observations<K> {
    /// Adds a look at the lease of `key`, and returns the result.
    ///
    /// # Errors
    ///
    /// The time until there is a result.
    pub fn look(&self, key: &K, look: Look) -> Result<Observation, Duration> {
        let Look { lease, remaining, granted, asked, unit } = look;
        let period = observation_period(granted, unit);
        let mut running = self.running.locked();
        let Some(known) = running.get(key).filter(|known| known.lease == lease) else {
            make_room(&mut running);
            running.insert(key.clone(), Running { lease, first: remaining, begun: Moment::now() });
            return Err(period);
        };
        let observation = if is_renewed(known.first, asked.since(known.begun), remaining, unit) {
            Observation::Renewed
        } else if known.begun.elapsed() >= period {
            Observation::Falling
        } else {
            return Err(known.begun.remaining(period));
        };
        running.remove(key);
        Ok(observation)
    }

    /// Discards the observation of `key`: its lease is gone.
    pub fn forget(&self, key: &K) {
        self.running.locked().remove(key);
    }
}

fn make_room<K: Eq + Hash + Clone>(running: &mut HashMap<K, Running>) {
    if running.len() < MAX_RUNNING {
        return;
    }
    let oldest = running.iter().max_by_key(|(_, known)| known.begun.elapsed()).map(|(key, _)| key.clone());
    if let Some(oldest) = oldest {
        running.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANTED: Duration = Duration::from_secs(30);
    const UNIT: Duration = Duration::from_secs(1);

    fn look(lease: i64, remaining: u64) -> Look {
        let remaining = Duration::from_secs(remaining);
        Look { lease: LeaseId::new(lease), remaining, granted: GRANTED, asked: Moment::now(), unit: UNIT }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_look_completes_an_observation() {
        let observations = Observations::default();
        let period = observation_period(GRANTED, UNIT);
        assert_eq!(observations.look(&"key", look(1, 29)), Err(period));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(observations.look(&"key", look(1, 24)), Err(period.saturating_sub(Duration::from_secs(5))));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(observations.look(&"key", look(1, 4)), Ok(Observation::Falling));
        assert_eq!(observations.look(&"key", look(1, 4)), Err(period), "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_shows_at_the_next_look_and_another_lease_begins_anew() {
        let observations = Observations::default();
        let period = observation_period(GRANTED, UNIT);
        assert_eq!(observations.look(&"key", look(1, 25)), Err(period));
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(observations.look(&"other", look(1, 25)), Err(period));
        assert_eq!(observations.look(&"key", look(1, 28)), Ok(Observation::Renewed));
        assert_eq!(observations.look(&"key", look(1, 28)), Err(period));
        assert_eq!(observations.look(&"key", look(2, 29)), Err(period));
    }

    #[tokio::test(start_paused = true)]
    async fn an_observation_ends_with_period_or_lease() {
        let observations = Observations::default();
        let period = observation_period(GRANTED, UNIT);
        assert_eq!(observations.look(&"key", look(1, 29)), Err(period));
        tokio::time::advance(period).await;
        assert_eq!(observations.look(&"key", look(1, 15)), Ok(Observation::Falling));
        assert_eq!(observations.look(&"key", look(1, 15)), Err(period));
        tokio::time::advance(period).await;
        observations.forget(&"key");
        assert_eq!(observations.look(&"key", look(1, 1)), Err(period), "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn observations_are_bounded() {
        let observations = Observations::default();
        for key in 0..MAX_RUNNING + 10 {
            let _ = observations.look(&key, look(1, 25));
        }
        assert_eq!(observations.running.lock().unwrap().len(), MAX_RUNNING);
    }
}
