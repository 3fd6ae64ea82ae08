//! The member that a channel uses, and the next one after a failure or a refusal.

use std::{sync::Arc, time::Duration};

use enlist::Moment;
use futures::future::Shared;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use crate::{
    client::connection::{dialled::Dialled, members::Members},
    error::transport::DialError,
};

/// Time for which a member that refused to serve is avoided if there is another one. If all refuse, it is the minimum
/// interval between two dials of a member.
const REFUSED_MEMBER_DELAY: Duration = Duration::from_secs(1);

/// Member that is connected, or is dialled next.
pub(super) struct Pinned {
    /// Dialled members: the configured ones, or those that the cluster advertises.
    pub(super) members: Arc<Members>,
    /// Index of the member that is connected, or is dialled next.
    pub(super) at: usize,
    /// Counts the connections, so that a late failure of an old one does not end a new one.
    pub(super) generation: u64,
    pub(super) state: ChannelState,
    /// Time of the last refusal of each member.
    pub(super) refused: Vec<Option<Moment>>,
}

/// Outcome of a dial.
pub(super) type Outcome = Result<(Dialled, Channel), DialError>;

pub(super) enum ChannelState {
    /// No connection. The next call starts a dial.
    Down,
    /// A task dials, and calls wait for its outcome.
    Dialling(Shared<oneshot::Receiver<Outcome>>),
    Up(Dialled, Channel),
}

impl Pinned {
    /// Records a connection to the member at `at` of `members`. The pinned members may have changed since.
    pub(super) fn up(&mut self, members: &Members, at: usize, channel: Channel) -> (Dialled, Channel) {
        self.generation += 1;
        let url = members.url(at);
        self.at = url.as_ref().and_then(|url| self.members.index_of(url)).unwrap_or(0);
        let connection = Dialled::new(self.generation, url);
        self.state = ChannelState::Up(connection.clone(), channel.clone());
        (connection, channel)
    }

    pub(super) fn is_current(&self, connection: &Dialled) -> bool {
        matches!(&self.state, ChannelState::Up(current, _) if current.generation == connection.generation)
    }

    /// Gives the connection up. The member at `next` is dialled next.
    pub(super) fn leave(&mut self, connection: &Dialled, next: usize) {
        connection.given_up.cancel();
        self.state = ChannelState::Down;
        self.at = next;
    }

    /// Dials `members` from now on. The present connection stays, and is attributed to its member if that is among
    /// them.
    pub(super) fn take_over(&mut self, members: Members) {
        let Members::Urls { urls, .. } = &members else { return };
        let index_of = |url: &http::Uri| urls.iter().position(|other| other.uri() == url);
        let mut refused = vec![None; urls.len()];
        for (at, ago) in self.refused.iter().enumerate() {
            if let Some(at) = self.members.url(at).as_ref().and_then(index_of) {
                refused[at] = *ago;
            }
        }
        let at = self.members.url(self.at).as_ref().and_then(index_of);
        // Random, to spread clients over the members.
        self.at = at.unwrap_or_else(|| fastrand::usize(..urls.len().max(1)));
        self.refused = refused;
        self.members = Arc::new(members);
    }

    /// Gives the connection up, because its member refused to serve, if there is another one to dial. Returns `true`
    /// if so.
    pub(super) fn refused(&mut self, connection: &Dialled) -> bool {
        let Some(at) = self.at.checked_rem(self.refused.len()) else {
            return false;
        };
        let ago: Vec<_> = self.refused.iter().map(|refused| refused.map(|at| at.elapsed())).collect();
        self.refused[at] = Some(Moment::now());
        let next = after_refusal(at, &ago);
        if let Some(next) = next {
            self.leave(connection, next);
        }
        next.is_some()
    }
}

/// Returns the member to dial after a refusal of the one at `at`; `None` is to stay. `refused` contains the age of each
/// member's previous refusal. Members without a recent refusal are preferred. The same member is dialled again from
/// time to time, because its address may be a load balancer with several members behind it.
fn after_refusal(at: usize, refused: &[Option<Duration>]) -> Option<usize> {
    let count = refused.len();
    (1..=count)
        .map(|step| (at + step) % count)
        .find(|member| refused[*member].is_none_or(|ago| ago >= REFUSED_MEMBER_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::transport::Endpoint;

    fn urls(hosts: &[&str]) -> Vec<Endpoint> {
        hosts.iter().map(|host| Endpoint::from_shared(format!("http://{host}:1")).unwrap()).collect()
    }

    fn pinned(hosts: &[&str], at: usize) -> Pinned {
        let urls = urls(hosts);
        let refused = vec![None; urls.len()];
        let members =
            Arc::new(Members::Urls { urls, tls: None, settings: None, connect_timeout: REFUSED_MEMBER_DELAY });
        Pinned { members, at, generation: 0, state: ChannelState::Down, refused }
    }

    fn hosts(members: &Members) -> Vec<String> {
        let Members::Urls { urls, .. } = members else { return Vec::new() };
        urls.iter().map(|url| url.uri().host().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_advertised_comes_first_and_what_is_configured_stays() {
        let configured = pinned(&["a", "b"], 0).members;
        assert_eq!(hosts(&configured.with(&urls(&["c", "b", "c"])).unwrap()), ["c", "b", "a"]);
        assert_eq!(hosts(&configured.with(&[]).unwrap()), ["a", "b"]);
    }

    #[test]
    fn a_connection_and_a_refusal_stay_with_their_member() {
        let mut pinned = pinned(&["a", "b"], 1);
        pinned.refused = vec![None, Some(Moment::now())];
        let taken = pinned.members.with(&urls(&["c", "b"])).unwrap();
        pinned.take_over(taken);
        assert_eq!(hosts(&pinned.members), ["c", "b", "a"]);
        assert_eq!(pinned.at, 1);
        assert!(matches!(pinned.refused[..], [None, Some(_), None]));
        let taken =
            Members::Urls { urls: urls(&["d"]), tls: None, settings: None, connect_timeout: REFUSED_MEMBER_DELAY };
        pinned.take_over(taken);
        assert_eq!((pinned.at, pinned.refused.len()), (0, 1), "its member is not among them");
    }

    #[tokio::test]
    async fn a_former_connection_is_not_the_current_one() {
        let mut pinned = pinned(&["a", "b"], 0);
        let members = Arc::clone(&pinned.members);
        let channel = || Endpoint::from_static("http://a:1").connect_lazy();
        let (former, _) = pinned.up(&members, 1, channel());
        assert!(pinned.is_current(&former) && pinned.at == 1);
        let (current, _) = pinned.up(&members, 0, channel());
        assert!(pinned.is_current(&current) && !pinned.is_current(&former));
        assert_eq!((former.generation, current.generation), (1, 2));
        pinned.leave(&current, 1);
        assert!(!pinned.is_current(&current) && current.given_up.is_cancelled());
    }

    #[tokio::test]
    async fn a_member_that_refuses_is_left_until_all_have_refused() {
        let mut pinned = pinned(&["a", "b"], 0);
        let members = Arc::clone(&pinned.members);
        for (at, next) in [(0, Some(1)), (1, Some(1)), (1, None)] {
            let (connection, _) = pinned.up(&members, at, Endpoint::from_static("http://a:1").connect_lazy());
            assert_eq!(pinned.refused(&connection), next.is_some());
            assert_eq!((pinned.is_current(&connection), pinned.at), (next.is_none(), next.unwrap_or(at)));
        }
    }

    #[test]
    fn after_a_refusal_comes_a_member_that_did_not_just_refuse() {
        let (just, before) = (Some(REFUSED_MEMBER_DELAY / 2), Some(REFUSED_MEMBER_DELAY));
        assert_eq!(after_refusal(0, &[None, None, None]), Some(1));
        assert_eq!(after_refusal(2, &[None, None, None]), Some(0));
        assert_eq!(after_refusal(0, &[just, just, before]), Some(2));
        assert_eq!(after_refusal(1, &[just, before, just]), Some(1), "all others just refused: the same");
        assert_eq!(after_refusal(1, &[just, just, just]), None, "all just refused: stay");
        assert_eq!(after_refusal(0, &[None]), Some(0), "one address may be several members");
    }
}
