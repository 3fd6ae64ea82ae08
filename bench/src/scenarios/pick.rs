//! Picks among 1,000 instances, next to the common shared list with a counter.

use std::{
    hint::black_box,
    sync::{
        Arc, Barrier, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use enlist::{Directory, Entry, Moment, PickPolicy, Picker, Registry, ServiceRef, ServiceView};
use enlist_memory::MemoryStore;

use crate::{
    measure::{Result, Spread, in_turns},
    report::{Bound, Report},
    world::instance,
};

/// Number of instances.
pub const INSTANCES: usize = 1000;

/// Number of picks per thread and round.
const PICKS: u32 = 200_000;

const ROUNDS: usize = 25;

/// Round-robin picker of a program without a library.
#[derive(Debug)]
pub struct SharedList {
    list: RwLock<Vec<Arc<Entry>>>,
    next: AtomicUsize,
}

impl SharedList {
    /// Creates a picker over the instances of a view.
    ///
    /// # Errors
    ///
    /// If the view is not ready.
    pub fn of(view: &ServiceView) -> Result<Self> {
        let list = view.snapshot().ok_or("the view is not ready")?.entries().cloned().collect();
        Ok(Self { list: RwLock::new(list), next: AtomicUsize::new(0) })
    }

    /// Picks the next instance.
    pub fn pick(&self) -> Option<Arc<Entry>> {
        let list = self.list.read().ok()?;
        let at = self.next.fetch_add(1, Ordering::Relaxed) % list.len();
        list.get(at).cloned()
    }
}

/// Returns a view of instances with different weights on the memory backend.
///
/// # Errors
///
/// None.
pub async fn view(instances: usize) -> Result<ServiceView> {
    let (client, service) = (MemoryStore::new().client(), ServiceRef::parse("picked")?);
    for number in 0..instances {
        let weight = 50 + u32::try_from(number % 100)?;
        client.publish(&service, instance(number)?.with_weight(weight)).await?;
    }
    let view = Directory::new(Arc::new(client)).view(&service);
    while view.ready().await?.len() < instances {
        tokio::task::yield_now().await;
    }
    Ok(view)
}

pub(crate) async fn run(report: &mut Report) -> Result {
    let view = view(INSTANCES).await?;
    let list = Arc::new(SharedList::of(&view)?);
    let policies = [
        ("round robin", PickPolicy::RoundRobin, 0.5),
        ("weighted", PickPolicy::Weighted, 0.75),
        ("hash", PickPolicy::ConsistentHash, 2.0),
    ];
    let (view, list) = (&view, &list);
    for (name, policy, alone) in policies {
        let ours = |threads| async move {
            Ok(timed(threads, || {
                let mut picker = view.picker(policy);
                // A picker builds its candidate table at the first pick.
                let _ = picker.pick();
                let mut key = fastrand::u64(..);
                move || {
                    key = key.wrapping_add(1);
                    pick(&mut picker, policy, key);
                }
            }))
        };
        for (threads, most) in [(1, alone), (2, 0.3)] {
            let reference = || async {
                Ok(timed(threads, || {
                    let list = Arc::clone(list);
                    move || drop(black_box(list.pick()))
                }))
            };
            let turns = in_turns(ROUNDS, || ours(threads), reference).await?;
            let case = format!("{name}, {threads} threads, beside RwLock<Vec<Arc>>");
            report.turns("pick", case, "ns", &turns, Some(Bound::AtMost(most)));
        }
        let turns = in_turns(ROUNDS, || ours(2), || ours(1)).await?;
        // A tolerance of a tenth for the noise of a shared machine.
        report.turns("pick", format!("{name}, 2 threads, beside 1 thread"), "ns", &turns, Some(Bound::AtMost(1.1)));
    }
    let allocations: f64 = super::helper("heap", &["pick"]).await?.trim().parse()?;
    let case = "allocations of 100,000 picks by each policy";
    report.number("pick", case, "", Spread::exactly(allocations), Some(Bound::AtMost(0.0)));
    Ok(())
}

/// Picks once, as the policy is used.
pub fn pick(picker: &mut Picker, policy: PickPolicy, key: u64) {
    if policy == PickPolicy::ConsistentHash {
        let _ = black_box(picker.pick_for(&key.to_le_bytes()));
    } else {
        let _ = black_box(picker.pick());
    }
}

/// Returns the time of one pick in nanoseconds, while this number of threads pick.
fn timed<P: FnMut() + Send>(threads: usize, mut make: impl FnMut() -> P) -> f64 {
    let start = Barrier::new(threads);
    let pickers: Vec<P> = (0..threads).map(|_| make()).collect();
    let total: f64 = std::thread::scope(|scope| {
        let run = |mut pick: P| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                let begun = Moment::now();
                for _ in 0..PICKS {
                    pick();
                }
                begun.elapsed().as_secs_f64() * 1e9 / f64::from(PICKS)
            })
        };
        let running: Vec<_> = pickers.into_iter().map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).sum()
    });
    #[expect(clippy::cast_precision_loss, reason = "one or two")]
    let threads = threads as f64;
    total / threads
}
