//! Programs under `enlist lock`, whose holders are frozen at random: never two at a time. After a revocation of leases
//! two may overlap for a bounded time. `ENLIST_SOAK_SECS` extends the run (`cargo xtask soak`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{fs, path::Path, time::Duration};

use enlist::Moment;
use enlist_testkit::soon;
use support::{Running, enlist, raw, server, signal};

/// Program under the lock: it records for how many milliseconds it overlaps with another one, and sleeps.
const WORK: &str = r#"
exec 9>"$DIR/busy"
if ! flock --nonblock 9; then
  begun=$(date +%s%N)
  flock 9
  echo $((($(date +%s%N) - begun) / 1000000)) >> "$DIR/overlaps"
fi
echo run >> "$DIR/runs"
sleep 0.$((RANDOM % 9 + 1))
"#;

fn length() -> Duration {
    let given = std::env::var("ENLIST_SOAK_SECS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(20))
}

fn numbers(file: &Path) -> Vec<u64> {
    fs::read_to_string(file).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

/// Revocations of leases during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revocations {
    None,
    AtRandom,
}

/// Runs programs concurrently for a while. Now and then a holder is frozen for up to three TTLs, or a lease is revoked.
/// Returns the number of programs, and the length of each overlap in milliseconds.
async fn soak(revocations: Revocations, seed: u64) -> (usize, Vec<u64>) {
    const TTL: Duration = Duration::from_secs(2);
    println!("repeat with ENLIST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let begun = Moment::now();
    let mut holders: Vec<Option<Running>> = (0..5).map(|_| None).collect();
    while begun.elapsed() < length() {
        for holder in &mut holders {
            let runs = holder.as_mut().is_some_and(|running| running.child.try_wait().unwrap().is_none());
            if !runs {
                let arguments = ["lock", "soak", "--ttl", "2s", "--grace", "500ms", "--", "bash", "-c", WORK];
                let mut command = enlist(&server, arguments);
                command.env("DIR", directory.path());
                *holder = Some(Running::start(command));
            }
        }
        if revocations == Revocations::AtRandom {
            let mut raw = raw(&server).await;
            let leases = raw.leases().await.unwrap().leases().to_vec();
            if !leases.is_empty() {
                // A lease that has expired meanwhile needs no revocation.
                let _ = raw.lease_revoke(leases[random.usize(..leases.len())].id()).await;
            }
            tokio::time::sleep(Duration::from_millis(random.u64(50..800))).await;
        } else if let Some(running) = &holders[random.usize(..5)] {
            let pid = running.child.id();
            if support::is_alive(pid) {
                signal(pid, "-STOP");
                tokio::time::sleep(Duration::from_millis(random.u64(0..3 * 2000)).min(3 * TTL)).await;
                signal(pid, "-CONT");
            }
        }
    }
    for mut running in holders.into_iter().flatten() {
        running.signal("-TERM");
        soon("it ends", running.code()).await;
    }
    let runs = fs::read_to_string(directory.path().join("runs")).unwrap_or_default().lines().count();
    (runs, numbers(&directory.path().join("overlaps")))
}

fn seed() -> u64 {
    std::env::var("ENLIST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

#[tokio::test]
async fn frozen_holders_never_let_two_programs_overlap() {
    let (runs, overlaps) = soak(Revocations::None, seed()).await;
    println!("{runs} commands ran, overlaps {overlaps:?}");
    assert!(runs >= 5, "{runs}");
    assert!(overlaps.is_empty(), "{overlaps:?} ms");
}

#[tokio::test]
async fn the_overlap_after_a_revocation_is_bounded() {
    let (runs, overlaps) = soak(Revocations::AtRandom, seed()).await;
    println!("{runs} commands ran, {} overlaps, at most {:?} ms", overlaps.len(), overlaps.iter().max());
    assert!(runs >= 5, "{runs}");
    // A second until the loss is noticed, half a second of grace, and a tolerance for a busy machine.
    assert!(overlaps.iter().all(|overlap| *overlap <= 2500), "{overlaps:?} ms");
}
