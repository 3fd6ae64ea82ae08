//! `enlist` beside Go libraries: each is a process of its own, with the same commands, on the same etcd, in turns. The
//! programs in Go are `testkit/interop-go/*/bench`, those of `enlist` are `bin/peer.rs` and `bin/agent.rs`.

mod calls;
mod library;
mod locks;
mod plan;
mod program;
mod registrations;
mod steady;
mod views;
mod xds;

use std::{future::Future, pin::Pin};

use self::library::Library;
pub use self::plan::Plan;
use crate::{
    measure::{Result, Turns},
    report::Report,
};

type Run = for<'a> fn(&'a mut Report, &'a Plan) -> Pin<Box<dyn Future<Output = Result> + 'a>>;

/// A scenario beside Go libraries.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name on the command line.
    pub name: &'static str,
    /// Subject of the measurement.
    pub about: &'static str,
    /// Measures the scenario.
    pub run: Run,
}

/// All scenarios, in the order of a run.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "change",
        about: "one instance changes, until the view shows it; processor time",
        run: |report, plan| Box::pin(views::change(report, plan)),
    },
    Scenario {
        name: "sync",
        about: "the first snapshot, and memory for each instance",
        run: |report, plan| Box::pin(views::sync(report, plan)),
    },
    Scenario {
        name: "loss",
        about: "all but ten instances are deleted in one revision",
        run: |report, plan| Box::pin(views::loss(report, plan)),
    },
    Scenario {
        name: "pick",
        about: "one pick among 1,000 instances, on one thread and on two",
        run: |report, plan| Box::pin(views::pick(report, plan)),
    },
    Scenario {
        name: "register",
        about: "many instances from one process",
        run: |report, plan| Box::pin(registrations::run(report, plan)),
    },
    Scenario {
        name: "steady",
        about: "many registrations and views of one process at rest: processor time, memory, requests",
        run: |report, plan| Box::pin(steady::run(report, plan)),
    },
    Scenario {
        name: "contended",
        about: "handovers of a lock between sessions, alone and while others write",
        run: |report, plan| Box::pin(locks::contended(report, plan)),
    },
    Scenario {
        name: "lock",
        about: "acquire and release without contention",
        run: |report, plan| Box::pin(locks::alone(report, plan)),
    },
    Scenario {
        name: "election",
        about: "from the end of a leader, by resigning or by SIGKILL, to the next one",
        run: |report, plan| Box::pin(locks::election(report, plan)),
    },
    Scenario {
        name: "calls",
        about: "calls to three servers, also beside tonic",
        run: |report, plan| Box::pin(calls::run(report, plan)),
    },
    Scenario {
        name: "xds",
        about: "the agent, and go-control-plane: changes until clients acknowledge them; processor time, memory",
        run: |report, plan| Box::pin(xds::run(report, plan)),
    },
    Scenario {
        name: "events",
        about: "the agent: changes until clients have the event, with and without clients that do not read",
        run: |report, plan| Box::pin(xds::events(report, plan)),
    },
];

/// Measures a library beside `enlist`, in turns, and returns the values of each of the `N` results of a side. The
/// rounds that warm up do not count. `side` has the number of its round, which differs between the sides.
async fn in_turns<const N: usize>(
    plan: &Plan,
    peer: Library,
    mut side: impl AsyncFnMut(Library, usize) -> Result<[f64; N]>,
) -> Result<[Turns; N]> {
    let mut turns = [const { Turns { ours: Vec::new(), reference: Vec::new() } }; N];
    for round in 0..plan.warm_ups + plan.rounds {
        let (ours, theirs) = (side(Library::Ours, 2 * round).await?, side(peer, 2 * round + 1).await?);
        if round >= plan.warm_ups {
            for (turns, (ours, theirs)) in turns.iter_mut().zip(ours.into_iter().zip(theirs)) {
                turns.ours.push(ours);
                turns.reference.push(theirs);
            }
        }
    }
    Ok(turns)
}
