//! State that one event client has, and the next notices for it. There is no queue: the difference to the latest state
//! is made when the client takes it, in parts. A slow client therefore skips intermediate states and delays no other.

use std::sync::Arc;

use enlist::{Entry, Event, Freshness, InstanceId, ServiceName, Snapshot};

use crate::http::{
    following::{
        position::Position,
        state::{EntryEnd, Published, RegistryState, ServiceState, entry_bytes},
    },
    messages::{freshness::FreshnessJson, json::PART_BYTES},
};

/// Maximum number of notices in one part, and a few.
const PART: usize = 128;

/// A change for a client.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    /// The complete state follows; the client forgets its own.
    Snapshot { services: usize, instances: usize },
    /// An instance is new.
    Added(ServiceName, Arc<Entry>),
    /// An instance has changed.
    Updated(ServiceName, Arc<Entry>),
    /// An instance has left.
    Removed(ServiceName, Arc<Entry>, EntryEnd),
    /// Changes of a service, or of the list of services, arrive again or no longer.
    Freshness(Option<ServiceName>, Freshness),
    /// The client has the state at this position.
    Synced { position: Position, freshness: FreshnessJson, omitted: usize },
}

/// Notices that are sent at a time: at most [`PART`], and no more once their instances have [`PART_BYTES`].
#[derive(Debug, Default)]
struct Part {
    notices: Vec<Notice>,
    bytes: usize,
}

impl Part {
    fn is_full(&self) -> bool {
        self.notices.len() >= PART || self.bytes >= PART_BYTES
    }

    fn push(&mut self, notice: Notice) {
        self.bytes += match &notice {
            Notice::Added(_, entry) | Notice::Updated(_, entry) | Notice::Removed(_, entry, _) => entry_bytes(entry),
            Notice::Snapshot { .. } | Notice::Freshness(..) | Notice::Synced { .. } => 0,
        };
        self.notices.push(notice);
    }
}

/// Service whose difference is being sent.
#[derive(Debug)]
struct Target {
    service: ServiceName,
    old: Option<ServiceState>,
    new: Option<ServiceState>,
    /// Last instance of the difference that was sent.
    after: Option<InstanceId>,
}

/// State that one client has.
#[derive(Debug, Default)]
pub(crate) struct EventCursor {
    sent: RegistryState,
    position: Option<Position>,
    target: Option<Target>,
    opened: bool,
}

impl EventCursor {
    /// A cursor for a client that knows nothing.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A cursor for a client that has a state. It gets the position of the latest state, also if that is its own.
    pub(crate) fn resumed(state: RegistryState) -> Self {
        Self { sent: state, position: None, target: None, opened: true }
    }

    /// Returns the next notices, as many as one part has; none if the client has the latest state.
    pub(crate) fn next(&mut self, latest: &Published) -> Vec<Notice> {
        let mut part = Part::default();
        if !self.opened {
            self.opened = true;
            let (services, instances) = (latest.state.services.len(), latest.state.instances());
            part.push(Notice::Snapshot { services, instances });
        }
        while !part.is_full() {
            let Some(target) = self.target.take().or_else(|| self.next_target(&latest.state)) else {
                self.finish(latest, &mut part);
                break;
            };
            self.advance(target, &mut part);
        }
        part.notices
    }

    /// Returns the next service that differs.
    fn next_target(&self, latest: &RegistryState) -> Option<Target> {
        use imbl::ordmap::DiffItem;
        let (service, old, new) = match self.sent.services.diff(&latest.services).next()? {
            DiffItem::Add(name, new) => (name, None, Some(new)),
            DiffItem::Update { old: (_, old), new: (name, new) } => (name, Some(old), Some(new)),
            DiffItem::Remove(name, old) => (name, Some(old), None),
        };
        Some(Target { service: service.clone(), old: old.cloned(), new: new.cloned(), after: None })
    }

    /// Adds notices of the target. A target with more than a part is kept for the next part.
    fn advance(&mut self, mut target: Target, part: &mut Part) {
        let after = target.after.take();
        let later = |event: &Event| after.as_ref().is_none_or(|after| event.id() > after);
        let mut rest = difference(target.old.as_ref(), target.new.as_ref()).into_iter().filter(later).peekable();
        while !part.is_full() {
            let Some(event) = rest.next() else { break };
            target.after = Some(event.id().clone());
            part.push(notice(&target, event));
        }
        if rest.peek().is_some() {
            self.target = Some(target);
            return;
        }
        let Target { service, old, new, .. } = target;
        let Some(new) = new else {
            self.sent.services.remove(&service);
            return;
        };
        if old.is_none_or(|old| old.freshness.is_live() != new.freshness.is_live()) {
            part.push(Notice::Freshness(Some(service.clone()), new.freshness.clone()));
        }
        self.sent.services.insert(service, new);
    }

    /// Adds the notices that end a difference: the client has the latest state then.
    fn finish(&mut self, latest: &Published, part: &mut Part) {
        let live = |state: &RegistryState| state.list.as_ref().map(|list| list.freshness.is_live());
        if let Some(list) = &latest.state.list
            && live(&self.sent) != live(&latest.state)
        {
            part.push(Notice::Freshness(None, list.freshness.clone()));
        }
        self.sent = latest.state.clone();
        if self.position != Some(latest.position) {
            self.position = Some(latest.position);
            let (freshness, omitted) = (latest.state.freshness(), latest.state.omitted());
            part.push(Notice::Synced { position: latest.position, freshness, omitted });
        }
    }
}

/// Returns the changes of the instances of a service.
fn difference(old: Option<&ServiceState>, new: Option<&ServiceState>) -> Vec<Event> {
    match (old, new) {
        (Some(old), Some(new)) => new.snapshot.diff(&old.snapshot),
        (None, Some(new)) => new.snapshot.as_added(),
        (Some(old), None) => old.snapshot.entries().cloned().map(Event::Removed).collect(),
        (None, None) => Vec::new(),
    }
}

/// Returns the notice of a change.
fn notice(target: &Target, event: Event) -> Notice {
    let service = target.service.clone();
    let end = |entry: &Entry, snapshot: Option<&Snapshot>| {
        snapshot.map_or(EntryEnd::Unknown, |snapshot| EntryEnd::of(entry, snapshot))
    };
    match event {
        Event::Added(entry) => Notice::Added(service, entry),
        Event::Updated { new, .. } => Notice::Updated(service, new),
        Event::Removed(entry) => {
            let end = end(&entry, target.new.as_ref().map(|new| &new.snapshot));
            Notice::Removed(service, entry, end)
        }
    }
}
