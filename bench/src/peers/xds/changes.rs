//! Changes of instances at a steady rate, and the time from each to the clients of its service.
//!
//! Each change gives its instance the address of a number that no earlier one had, so that clients recognise it.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    ops::Range,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use enlist::{Moment, backend::MutexExt as _};
use etcd_client::Client;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    measure::Result,
    peers::{
        library::{Library, address},
        plan::Load,
    },
    world::micros,
};

/// Time between two changes.
const INTERVAL: Duration = Duration::from_millis(10);

/// Number of changes that are under way at the same time, if etcd is slow.
const AT_ONCE: usize = 32;

/// Maximum time until all clients have the last change.
const LIMIT: Duration = Duration::from_secs(20);

/// Interval in which that is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Name of a service.
pub(super) fn service(number: usize) -> String {
    format!("s{number:03}")
}

/// Number of the change that gave an instance this host.
pub(super) fn number(host: &str) -> Option<usize> {
    let [_, a, b, c] = host.parse::<Ipv4Addr>().ok()?.octets();
    Some(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
}

/// Changes with consecutive numbers.
#[derive(Debug)]
pub(super) struct Changes {
    /// Number of the first one.
    first: usize,
    began: Vec<OnceLock<Moment>>,
    /// Milliseconds from a change to a client.
    times: Mutex<Vec<f64>>,
}

impl Changes {
    pub(super) fn new(first: usize, count: usize) -> Self {
        Self { first, began: (0..count).map(|_| OnceLock::new()).collect(), times: Mutex::default() }
    }

    /// Records that a client has the state of a service with the changes of these numbers. `known`: those that it had.
    /// A later change may overtake one before it on its way to etcd.
    pub(super) fn seen(&self, numbers: impl IntoIterator<Item = usize>, known: &mut HashSet<usize>) {
        for number in numbers {
            let began = number.checked_sub(self.first).and_then(|at| self.began.get(at)?.get());
            if let Some(began) = began.filter(|_| known.insert(number)) {
                self.times.locked().push(micros(began.elapsed()) / 1e3);
            }
        }
    }

    /// Makes some of the changes, of one service after the other, and waits until clients have them. `followers`: the
    /// number of clients of each service. Returns the sorted times.
    pub(super) async fn make(
        &self,
        changes: Range<usize>,
        writer: &Client,
        load: &Load,
        followers: &[usize],
    ) -> Result<Vec<f64>> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let due = stream::unfold((ticks, changes.clone()), |(mut ticks, mut left)| async move {
            let change = left.next()?;
            ticks.tick().await;
            Some((change, (ticks, left)))
        });
        let puts = due.map(|change| self.put(writer.clone(), load, change));
        puts.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let expected: usize = changes.map(|change| followers[change % load.services]).sum();
        let all = async {
            while self.count() < expected {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        if tokio::time::timeout(LIMIT, all).await.is_err() {
            return Err(format!("clients have {} of {expected} changes", self.count()).into());
        }
        let mut times = std::mem::take(&mut *self.times.locked());
        times.sort_unstable_by(f64::total_cmp);
        Ok(times)
    }

    async fn put(&self, mut writer: Client, load: &Load, change: usize) -> Result {
        let (name, instance) = (service(change % load.services), change / load.services % load.instances);
        let (key, value) = Library::Ours.pair(&name, instance, &address(self.first + change))?;
        self.began[change].get_or_init(Moment::now);
        writer.put(key, value, None).await?;
        Ok(())
    }

    fn count(&self) -> usize {
        self.times.locked().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_number() {
        for expected in [0, 49, 10_000, 70_000] {
            let text = address(expected);
            let (host, _) = text.split_once(':').unwrap();
            assert_eq!(number(host), Some(expected));
        }
        assert_eq!(number("localhost"), None);
    }

    #[test]
    fn a_change_counts_once_per_client() {
        let (changes, mut known) = (Changes::new(10, 3), HashSet::new());
        changes.seen([3, 10], &mut known);
        assert_eq!(changes.count(), 0, "none of them has begun");
        changes.began[0].get_or_init(Moment::now);
        changes.began[1].get_or_init(Moment::now);
        changes.seen([3, 11], &mut known);
        changes.seen([3, 10, 11], &mut known);
        changes.seen([3, 10, 11], &mut known);
        assert_eq!(changes.count(), 2);
    }
}
