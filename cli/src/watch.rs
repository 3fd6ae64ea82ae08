//! `enlist watch`: the instances of a service, from a view, which holds instances that are all lost at once.

use std::{convert::Infallible, sync::Arc, time::Duration};

use enlist::{
    Directory, Entry, Error, Event, Freshness, Health, Presence, Resolver, ServiceRef, ServiceView, Snapshot,
    ViewChanges, with_causes,
};
use serde_json::json;

use crate::{
    args::Global,
    freshness::PrintedFreshness,
    output::{Failure, InstanceObject, Output, Paint, Text, To, endpoints, health},
    signals::Signals,
    table::{self, Live},
};

/// Wait after an instance starts to drain: a deregistration marks the instance and removes it right after.
const DEPARTURE_DELAY: Duration = Duration::from_millis(150);

/// Wait for the first snapshot before a request determines the cause of the delay.
const FIRST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(1);

/// State of a view at one time.
struct Observed {
    snapshot: Snapshot,
    freshness: Freshness,
}

/// A view, and the state that was returned last.
struct Following {
    view: ServiceView,
    changes: ViewChanges,
    /// Snapshot returned last.
    last: Option<Snapshot>,
}

impl Following {
    /// Waits for a change since the last call. The first call returns the first snapshot.
    async fn next(&mut self) -> Result<Observed, Error> {
        let last = self.last.clone();
        self.changes.next().await?;
        let mut now = self.now()?;
        let Some(last) = last else {
            return Ok(now);
        };
        if begins_to_drain(&now.snapshot.diff(&last)) {
            tokio::time::sleep(DEPARTURE_DELAY).await;
            now = self.now()?;
        }
        Ok(now)
    }

    fn now(&mut self) -> Result<Observed, Error> {
        let (snapshot, freshness) = self.view.snapshot().zip(self.view.freshness()).ok_or(Error::Closed)?;
        self.last = Some(snapshot.clone());
        Ok(Observed { snapshot, freshness })
    }
}

/// Returns `true` if an instance has started to drain.
fn begins_to_drain(events: &[Event]) -> bool {
    let drains = |entry: &Entry| entry.instance().health() == Health::Draining;
    events.iter().any(|event| matches!(event, Event::Updated { old, new } if drains(new) && !drains(old)))
}

pub(crate) async fn watch(global: &Global, service: &str, output: Output) -> Result<u8, Failure> {
    let (etcd, service) = (global.client()?, global.service(service)?);
    let mut signals = Signals::ending()?;
    let resolver = Arc::new(etcd) as Arc<dyn Resolver>;
    let view = Directory::new(Arc::clone(&resolver)).view(&service);
    let mut absence = std::pin::pin!(report_absence(&*resolver, &service, output));
    let mut following = Following { changes: view.changes(), view, last: None };
    let mut live = output.is_live().then(Live::default);
    let mut lines = Lines { service: service.to_string(), last: None, freshness: PrintedFreshness::default(), output };
    loop {
        let seen = tokio::select! {
            seen = following.next() => seen?,
            signal = signals.next() => return Ok(signal.as_exit()),
            never = &mut absence, if following.last.is_none() => match never {},
        };
        match &mut live {
            Some(live) => live.draw(&table_of(&service, &seen), output)?,
            None => lines.write(&seen)?,
        }
    }
}

/// Reports once that the service is not known yet, if etcd does not answer.
async fn report_absence(resolver: &dyn Resolver, service: &ServiceRef, output: Output) -> Infallible {
    tokio::time::sleep(FIRST_SNAPSHOT_TIMEOUT).await;
    if let Err(error) = resolver.resolve(service).await
        && error.is_retryable()
    {
        let warning = format!("{service} is not known yet: {}", with_causes(&error));
        output.tell(To::Stderr, format!("enlist: {warning}"), &json!({ "warning": warning }));
    }
    std::future::pending().await
}

/// Returns the content of the live table.
fn table_of(service: &ServiceRef, seen: &Observed) -> Vec<Text> {
    let Observed { snapshot, freshness } = seen;
    let head = if let Freshness::Stale { cause, .. } = freshness {
        Text::painted(Paint::Bad, format!("{service}: not up to date, {cause}"), "")
    } else {
        format!("{service}: {} instances at revision {}", snapshot.len(), snapshot.revision()).into()
    };
    let mut lines = vec![head];
    lines.extend(table::lines(snapshot.entries().map(|entry| &**entry)));
    lines
}

/// Output of one line per change.
struct Lines {
    service: String,
    /// Snapshot after the lines so far.
    last: Option<Snapshot>,
    freshness: PrintedFreshness,
    output: Output,
}

impl Lines {
    fn write(&mut self, seen: &Observed) -> Result<(), Failure> {
        let Observed { snapshot, freshness } = seen;
        let first = self.last.is_none();
        let events = match &self.last {
            Some(last) => snapshot.diff(last),
            None => snapshot.as_added(),
        };
        self.last = Some(snapshot.clone());
        let revision = snapshot.revision().get();
        for event in &events {
            self.event(event, revision)?;
        }
        if first {
            let text = format!("= {} instances at revision {revision}", snapshot.len());
            let object = json!({
                "event": "synced", "service": self.service, "revision": revision, "instances": snapshot.len(),
            });
            self.output.line(To::Stdout, text, &object)?;
        }
        self.freshness(freshness)
    }

    fn event(&self, event: &Event, revision: u64) -> Result<(), Failure> {
        let (sign, word, entry) = match event {
            Event::Added(entry) => ("+", "added", entry),
            Event::Updated { new, .. } => ("~", "updated", new),
            Event::Removed(entry) => ("-", "removed", entry),
        };
        let instance = entry.instance();
        let text = format!(
            "{sign} {} {} weight={} health={}{}",
            instance.id(),
            endpoints(instance).join(","),
            instance.weight(),
            health(instance.health()),
            if entry.presence() == Presence::Live { "" } else { " held" },
        );
        let object = json!({
            "event": word, "service": self.service, "revision": revision, "instance": InstanceObject::from(&**entry),
        });
        Ok(self.output.line(To::Stdout, text, &object)?)
    }

    /// Prints a line if the freshness has changed.
    fn freshness(&mut self, freshness: &Freshness) -> Result<(), Failure> {
        let Some((text, mut object)) = self.freshness.change(freshness) else { return Ok(()) };
        object["service"] = self.service.as_str().into();
        Ok(self.output.line(To::Stdout, text, &object)?)
    }
}

#[cfg(test)]
mod tests {
    use enlist::{Endpoint, Instance, InstanceId, Revision};

    use super::*;

    #[test]
    fn only_a_change_to_draining_delays_the_output() {
        let entry = |health| {
            let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
            Arc::new(Entry::new(instance.with_health(health), Revision::new(1), Revision::new(1)))
        };
        let (serving, draining) = (entry(Health::Serving), entry(Health::Draining));
        let updated =
            |old: &Arc<Entry>, new: &Arc<Entry>| Event::Updated { old: Arc::clone(old), new: Arc::clone(new) };
        assert!(begins_to_drain(&[Event::Added(Arc::clone(&serving)), updated(&serving, &draining)]));
        for event in [
            updated(&draining, &draining),
            updated(&draining, &serving),
            Event::Added(Arc::clone(&draining)),
            Event::Removed(Arc::clone(&draining)),
        ] {
            assert!(!begins_to_drain(&[event]));
        }
    }
}
