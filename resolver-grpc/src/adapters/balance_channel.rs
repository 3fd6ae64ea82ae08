//! An adapter for tonic's own balanced channel.

use std::collections::BTreeMap;

use enlist::{Endpoint, Entry, Error, ServiceView, Snapshot, TaskOwner, ViewChanges, escape::escaped, with_causes};
use tokio::sync::mpsc::Sender;
use tonic::transport::{Channel, Endpoint as Target, channel::Change};

use crate::subchannel::connections::security::Wire;

/// Capacity of the queue of changes, which tonic reads when a request comes. When it is full, the task that fills it
/// waits, and continues with the latest state of the view.
const CHANGE_BUFFER: usize = 1024;

/// A balanced channel and the task that updates it. Dropping it stops that task; clones of the channel keep the last
/// set.
#[derive(Debug)]
#[must_use = "dropping it stops the updates of the channel"]
pub struct Balanced {
    channel: Channel,
    _tasks: TaskOwner,
}

impl Balanced {
    /// The channel, for any number of generated clients. Cheap to clone.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// A tonic channel whose endpoints are the instances of `view`: plain-text endpoints with the protocol `grpc`, `http`
/// or `tcp`, or none. Of each instance the first such endpoint is used; an instance without one is left out, with a
/// warning. An instance with weight 0, or one that is draining or not serving, is taken out of the channel.
///
/// The limits are those of tonic's balancer, measured with tonic 0.14.9:
///
/// - It picks at random among *all* endpoints, also those that refuse connections (533 of 2,000 calls failed with one
///   of three dead), and has no weights.
/// - Changes are applied when a request comes. An unused channel keeps its connections.
/// - Without any instance calls wait: give them a deadline.
/// - Everything is plaintext, also the credentials that an interceptor of tonic's adds, and the registry chooses the
///   servers.
///
/// [`crate::Channel`] has none of these.
///
/// # Errors
///
/// [`Error::Closed`] outside a runtime.
pub fn balance_channel(view: &ServiceView) -> Result<Balanced, Error> {
    // tonic starts a task of its own, and panics outside a runtime.
    tokio::runtime::Handle::try_current().map_err(|_| Error::Closed)?;
    let (channel, changes) = Channel::balance_channel(CHANGE_BUFFER);
    let tasks = TaskOwner::new();
    let (stop, view) = (tasks.stop_signal(), view.changes());
    tasks.spawn("balanced channel", async move {
        stop.run_until_cancelled_owned(forward(view, changes)).await;
    })?;
    Ok(Balanced { channel, _tasks: tasks })
}

/// Sends the differences to the channel, until the view is closed or the channel is dropped.
async fn forward(mut view: ViewChanges, changes: Sender<Change<String, Target>>) {
    let mut sent: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let wanted = match view.next().await {
            Ok(change) => targets(&change.snapshot),
            Err(Error::Closed) => return,
            // The view continues to retry.
            Err(_) => continue,
        };
        for change in difference(&sent, &wanted) {
            if changes.send(change).await.is_err() {
                return;
            }
        }
        sent = wanted;
    }
}

/// The URL of each instance that takes calls, by its id.
fn targets(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let target = |entry: &Entry| {
        let instance = entry.instance();
        if !instance.takes_calls() {
            return None;
        }
        let Some(endpoint) = instance.endpoints().iter().find(|endpoint| is_plain(endpoint)) else {
            let instance = escaped(instance.id());
            tracing::warn!(service = %escaped(snapshot.service()), %instance, "no plain-text endpoint, left out");
            return None;
        };
        Some((instance.id().to_string(), format!("http://{}", endpoint.authority())))
    };
    snapshot.entries().filter_map(|entry| target(entry)).collect()
}

fn is_plain(endpoint: &Endpoint) -> bool {
    matches!(Wire::of(endpoint), Some(Wire::Plaintext | Wire::Unstated))
}

/// The changes that lead from `sent` to `wanted`. Additions come first, so that the set does not pass through empty.
fn difference(sent: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Vec<Change<String, Target>> {
    let mut changes = Vec::new();
    for (id, url) in wanted.iter().filter(|(id, url)| sent.get(*id) != Some(url)) {
        match Target::from_shared(url.clone()) {
            Ok(target) => changes.push(Change::Insert(id.clone(), target)),
            Err(error) => {
                tracing::warn!(instance = id, cause = %with_causes(&error), "no URL can be made of it, left out");
            }
        }
    }
    changes.extend(sent.keys().filter(|id| !wanted.contains_key(*id)).cloned().map(Change::Remove));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(id, url)| ((*id).to_owned(), (*url).to_owned())).collect()
    }

    #[test]
    fn only_differences_are_sent_additions_first() {
        let sent = map(&[("a", "http://h:1"), ("b", "http://h:2"), ("c", "http://h:3")]);
        let wanted = map(&[("a", "http://h:1"), ("b", "http://h:9"), ("d", "http://h:4")]);
        let changes: Vec<_> = difference(&sent, &wanted)
            .iter()
            .map(|change| match change {
                Change::Insert(id, target) => format!("+{id} {}", target.uri()),
                Change::Remove(id) => format!("-{id}"),
            })
            .collect();
        assert_eq!(changes, ["+b http://h:9/", "+d http://h:4/", "-c"]);
    }
}
