//! State that all calls of a channel share: the choice of an instance, the waits, and the explanation when there is
//! none. One call is in [`crate::channel::call`].

use std::{
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    Entry, Filter, Freshness, PickPolicy, Presence, ServiceRef, ServiceView, TaskOwner, backend::rounded,
    balance::PickArgs, escape::escaped, with_causes,
};
use http::HeaderMap;
use tokio::time::timeout;
use tonic::Status;

use crate::{
    channel::{in_flight::InFlightCall, kept_head::KeptHead},
    load_balancing::{
        balance::{BalancePolicy, HashKey},
        picker_state::{PickerCell, PickerState},
    },
    retry::{deadline::Deadline, policy::Retries},
    subchannel::{activity::Usage, config::SubchannelConfig, connectivity::InstanceState, subchannel::Subchannel},
};

/// Maximum number of choices while other calls take the last streams of the chosen instances.
const MAX_CHOICES: usize = 4;
/// Maximum number of instances in an error message, with the reasons why they take no calls.
const MAX_EXPLAINED: usize = 3;

/// Wait of one call, put into the extensions of a `tonic::Request`. With `true` the call waits for an instance that is
/// ready, up to its deadline or the channel's bound, instead of failing at once. Overrides the channel's option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitForReady(pub bool);

/// Part of a call that an [`Intercept`] can read and change.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallHead<'a> {
    /// The service that is called.
    pub service: &'a ServiceRef,
    /// The method: `/package.Service/Method`.
    pub path: &'a str,
    /// The headers, which are gRPC's metadata.
    pub headers: &'a mut HeaderMap,
}

/// Runs before each call of a channel, for instance to add credentials or to refuse calls. Implemented by users; held
/// in an `Arc<dyn Intercept>`.
#[async_trait]
pub trait Intercept: Send + Sync + 'static {
    /// Changes the head of a call, once, before an instance is chosen. A `grpc-timeout` that it sets starts then,
    /// unless the call's own deadline is sooner.
    ///
    /// Signature: `async fn before(&self, call: CallHead<'_>) -> Result<(), Status>`.
    ///
    /// # Errors
    ///
    /// The status with which the call ends. It is not sent then.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped with the call.
    async fn before(&self, call: CallHead<'_>) -> Result<(), Status>;
}

/// State that all clones of a channel share.
pub(crate) struct ChannelInner {
    pub(crate) view: ServiceView,
    pub(crate) picker_cell: Arc<PickerCell>,
    pub(crate) config: Arc<SubchannelConfig>,
    pub(crate) balance: BalancePolicy,
    pub(crate) filter: Filter,
    pub(crate) turn: AtomicUsize,
    pub(crate) retries: Retries,
    pub(crate) replay_limit: usize,
    pub(crate) wait_limit: Duration,
    pub(crate) queue_limit: usize,
    pub(crate) wait_for_ready: WaitForReady,
    pub(crate) intercept: Option<Arc<dyn Intercept>>,
    pub(crate) tracing: Tracing,
    pub(crate) tasks: TaskOwner,
}

/// Spans of the calls of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tracing {
    On,
    #[default]
    Off,
}

/// Next action of a call.
enum Next {
    Take(InFlightCall),
    /// An instance may be ready soon.
    Wait,
    /// All streams of the connected instances are taken.
    Queue,
    Refuse,
}

impl ChannelInner {
    /// An instance that can take the call now.
    pub(crate) fn choose_now(&self, head: &KeptHead) -> Option<InFlightCall> {
        match self.look(head, &[]) {
            Next::Take(in_flight) => Some(in_flight),
            Next::Wait | Next::Queue | Next::Refuse => None,
        }
    }

    /// Chooses an instance, or waits for one if one may be ready soon.
    pub(crate) async fn choose(
        &self,
        head: &KeptHead,
        tried: &[Arc<Subchannel>],
        deadline: &Deadline,
    ) -> Result<InFlightCall, Status> {
        match self.look(head, tried) {
            Next::Take(in_flight) => return Ok(in_flight),
            Next::Refuse => return Err(Status::unavailable(self.explain())),
            Next::Wait | Next::Queue => {}
        }
        let limit = deadline.remaining().map_or(self.wait_limit, |left| left.min(self.wait_limit));
        let wait = async {
            let (mut versions, _queued) = (self.picker_cell.versions.subscribe(), self.config.queue.join());
            let mut for_stream = None;
            loop {
                let mut freed = pin!(self.config.queue.freed());
                // Before the look, so that no wake-up is missed between the two.
                freed.as_mut().enable();
                match self.look(head, tried) {
                    Next::Take(in_flight) => return Ok(in_flight),
                    Next::Refuse => return Err(Status::unavailable(self.explain())),
                    Next::Queue if for_stream.is_none() => {
                        for_stream = self.config.queue.wait_for_stream(self.queue_limit);
                        if for_stream.is_none() {
                            return Err(Status::unavailable(format!("{}; too many calls wait", self.explain())));
                        }
                    }
                    // A call that has begun to wait for a stream is not refused because of later calls.
                    Next::Wait | Next::Queue => {}
                }
                tokio::select! {
                    // The sender lives as long as `self` does.
                    _ = versions.changed() => {}
                    () = freed => {}
                }
            }
        };
        match timeout(limit, wait).await {
            Ok(chosen) => chosen,
            Err(_) if !deadline.allows(Duration::ZERO) => Err(Status::deadline_exceeded(self.explain())),
            Err(_) => Err(Status::unavailable(self.explain())),
        }
    }

    fn look(&self, head: &KeptHead, tried: &[Arc<Subchannel>]) -> Next {
        if self.view.too_old().is_some() {
            return Next::Refuse;
        }
        let picker_state = self.picker_cell.set.load();
        let choice = PickArgs { selection: self.balance.selection(), key: self.key(head), turn: &self.turn };
        let is_tried = |subchannel: &Arc<Subchannel>| tried.iter().any(|tried| Arc::ptr_eq(tried, subchannel));
        for _ in 0..MAX_CHOICES {
            let ready = picker_state.ready.pick(&choice, is_tried).or_else(|| last_resort(&picker_state));
            let Some(ready) = ready else { break };
            if let Some(in_flight) = InFlightCall::begin(ready, &self.config) {
                return Next::Take(in_flight);
            }
        }
        self.config.activity.set(Usage::Active);
        let WaitForReady(wait_for_ready) = head.extension().copied().unwrap_or(self.wait_for_ready);
        if picker_state.closed {
            Next::Refuse
        } else if picker_state.all.iter().any(is_full) {
            Next::Queue
        } else if wait_for_ready
            || !picker_state.known
            || picker_state.all.iter().any(may_be_ready)
            || self.is_filling(&picker_state)
        {
            Next::Wait
        } else {
            Next::Refuse
        }
    }

    /// Returns `true` if the view lists an instance to connect to, and the picker state none yet: the next picker state
    /// has that instance as connecting.
    fn is_filling(&self, picker_state: &PickerState) -> bool {
        if !picker_state.all.is_empty() || self.view.snapshot().is_none_or(|snapshot| snapshot.is_empty()) {
            return false;
        }
        let mut picker = self.view.picker_of(PickPolicy::Random, self.filter.clone());
        let is_used = |entry: &Arc<Entry>| self.config.settings.endpoint(entry.instance()).is_some();
        picker.candidates().is_ok_and(|candidates| candidates.iter().any(is_used))
    }

    fn key<'a>(&self, head: &'a KeptHead) -> Option<&'a [u8]> {
        let BalancePolicy::ConsistentHash(header) = &self.balance else {
            return None;
        };
        if let Some(HashKey(key)) = head.extension() {
            return Some(key);
        }
        head.header(header.as_ref()?)
    }

    /// The reason why no instance can take a call, on one line.
    pub(crate) fn explain(&self) -> String {
        escaped(self.explanation()).to_string()
    }

    fn explanation(&self) -> String {
        let (service, picker_state) = (self.view.service(), self.picker_cell.set.load());
        if picker_state.closed {
            return format!("the channel to {service} is closed");
        }
        let freshness = self.view.freshness();
        let stale = match &freshness {
            Some(Freshness::Stale { cause, .. }) => format!(" ({})", with_causes(cause)),
            _ => String::new(),
        };
        let (Some(snapshot), Some(freshness)) = (self.view.snapshot(), freshness) else {
            return format!("{service} is not known yet{stale}");
        };
        let age = rounded(freshness.age());
        let held = snapshot.entries().filter(|entry| entry.presence() == Presence::Held).count();
        let ready = picker_state.all.iter().filter(|subchannel| subchannel.state() == InstanceState::Ready).count();
        let revision = snapshot.revision();
        let full = match picker_state.all.iter().filter(|subchannel| is_full(subchannel)).count() {
            0 => String::new(),
            full => format!(", {full} with all streams taken"),
        };
        let left_out = snapshot.entries().filter(|entry| self.filter.leaves_out(entry.instance())).count();
        let filtered = if left_out > 0 { format!(", {left_out} left out by the filter") } else { String::new() };
        let counts = format!("{} listed, {ready} ready, {held} held{filtered}{full}", snapshot.len());
        let what = match self.view.too_old() {
            Some(_) => "is known too long ago to be called",
            None => "has no instance that can take a call",
        };
        format!("{service} {what}: {counts}; revision {revision}, right {age} ago{stale}{}", troubles(&picker_state))
    }
}

/// The reasons why the first few instances take no calls.
fn troubles(picker_state: &PickerState) -> String {
    let mut others = picker_state.all.iter().filter(|subchannel| subchannel.state() != InstanceState::Ready);
    let trouble = |subchannel: &Arc<Subchannel>| match (subchannel.state(), subchannel.dial_failure()) {
        (InstanceState::Failing, Some(cause)) => format!("; {subchannel}: {cause}"),
        (state, Some(cause)) => format!("; {subchannel}: {}, and the latest dial failed: {cause}", word(state)),
        (state, None) => format!("; {subchannel}: {}", word(state)),
    };
    let text: String = others.by_ref().take(MAX_EXPLAINED).map(trouble).collect();
    match others.count() {
        0 => text,
        more => format!("{text}; and {more} more"),
    }
}

fn word(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Idle => "idle",
        InstanceState::Connecting => "connecting",
        InstanceState::Ready => "ready",
        InstanceState::Failing => "failing",
        InstanceState::Suspect => "suspect",
        InstanceState::Ejected => "ejected",
        InstanceState::Unhealthy => "unhealthy",
        InstanceState::Leaving => "leaving",
    }
}

/// A random instance that can take a call although the picker state does not list it as ready: one that has become
/// ready since, else, if none is ready or may be soon, one that is connected but suspect, ejected or unhealthy.
fn last_resort(picker_state: &PickerState) -> Option<&Arc<Subchannel>> {
    let newcomer = any_of(&picker_state.all, |subchannel| subchannel.state() == InstanceState::Ready);
    if newcomer.is_some() || picker_state.all.iter().any(may_be_ready) {
        return newcomer;
    }
    any_of(&picker_state.all, is_used)
}

/// A random one of those that `is_meant`, with a stream for another call.
fn any_of(all: &[Arc<Subchannel>], is_meant: impl Fn(&Arc<Subchannel>) -> bool) -> Option<&Arc<Subchannel>> {
    let (mut chosen, mut seen) = (None, 0);
    for subchannel in all.iter().filter(|subchannel| is_meant(subchannel) && subchannel.has_room()) {
        seen += 1;
        // Each is kept with the same chance, without a list of them.
        if fastrand::usize(..seen) == 0 {
            chosen = Some(subchannel);
        }
    }
    chosen
}

/// Returns `true` if the instance is connected and has no stream for another call.
fn is_full(subchannel: &Arc<Subchannel>) -> bool {
    is_used(subchannel) && !subchannel.has_room()
}

/// Returns `true` if the instance is connected and not leaving, which a picker state may not show yet.
fn is_used(subchannel: &Arc<Subchannel>) -> bool {
    use InstanceState::{Ejected, Ready, Suspect, Unhealthy};
    matches!(subchannel.state(), Ready | Suspect | Ejected | Unhealthy)
}

/// Returns `true` if the instance is ready, or may be soon.
fn may_be_ready(subchannel: &Arc<Subchannel>) -> bool {
    matches!(subchannel.state(), InstanceState::Idle | InstanceState::Connecting | InstanceState::Ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{
        channel::Channel,
        in_memory::{Servers, address, view},
    };
    use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
    use std::alloc::System;

    #[global_allocator]
    static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

    /// Number of allocations of `action`: the minimum of many rounds, because other tests allocate meanwhile.
    fn allocations(action: impl Fn()) -> usize {
        let round = || {
            let before = Region::new(COUNTED);
            action();
            before.change().allocations
        };
        let mut least = round();
        for _ in 0..10_000 {
            if least == 0 {
                break;
            }
            least = least.min(round());
        }
        least
    }

    #[tokio::test]
    async fn a_last_resort_allocates_nothing() {
        const COUNT: u32 = 200;
        let (view, _client) = view(COUNT, address).await;
        let hour = Duration::from_secs(3600);
        let builder = Channel::builder().connector(Servers::default().connector(Duration::ZERO)).probe_timeout(hour);
        let channel = builder.build(&view).unwrap();
        let is = |state: InstanceState| channel.instances().iter().filter(|one| one.state == state).count();
        let mut versions = channel.versions();
        while is(InstanceState::Ready) < COUNT as usize {
            versions.changed().await.unwrap();
        }
        let picker_state = channel.inner.picker_cell.set.load_full();
        let ready = || assert_eq!(last_resort(&picker_state).unwrap().state(), InstanceState::Ready);
        assert_eq!(allocations(ready), 0, "among instances that have become ready");
        for subchannel in &picker_state.all {
            let connection = subchannel.begin().unwrap();
            subchannel.doubt(&channel.inner.config, &connection);
            connection.end();
            subchannel.end_of_call();
        }
        assert_eq!(is(InstanceState::Suspect), COUNT as usize);
        let suspect = || assert_eq!(last_resort(&picker_state).unwrap().state(), InstanceState::Suspect);
        assert_eq!(allocations(suspect), 0, "among suspect instances");
    }
}
