//! A channel to ten thousand instances, all of them connected to.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{Moment, Registry, TaskOwner};
use enlist_grpc::Channel;
use enlist_testkit::eventually;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{SETTINGS, World, addresses, listen, swallow, until_ready};
use tokio::io::AsyncWriteExt;

/// Variable with the folder for the reports of a child process.
const SERVE: &str = "ENLIST_TEST_SERVE";

/// Number of instances, each with a connection.
const COUNT: u32 = 10_000;

/// Raises the limit of open files to the maximum, and returns it.
fn most_files() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    maximum.unwrap_or(u64::MAX)
}

/// Writes a whole file at once.
fn report(folder: &Path, name: &str, number: usize) {
    let whole = folder.join(format!("{name}.new"));
    fs::write(&whole, number.to_string()).unwrap();
    fs::rename(whole, folder.join(name)).unwrap();
}

fn reported(folder: &Path, name: &str) -> Option<usize> {
    fs::read_to_string(folder.join(name)).ok()?.parse().ok()
}

/// The server in a separate process: the limit of open files is too low for both sides in one process. Each connection
/// receives its first frame after 5 ms; the maximum number of concurrently waiting connections is reported.
#[tokio::test]
async fn serves_its_parent_if_it_has_one() {
    let Ok(folder) = std::env::var(SERVE) else { return };
    let folder = Arc::<Path>::from(Path::new(&folder));
    most_files();
    let [now, most, served] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let tasks = TaskOwner::new();
    let reports = Arc::clone(&folder);
    let port = listen(&tasks, move |mut connection| {
        let [now, most, served] = [&now, &most, &served].map(Arc::clone);
        let folder = Arc::clone(&reports);
        async move {
            let waiting = now.fetch_add(1, Ordering::SeqCst) + 1;
            if most.fetch_max(waiting, Ordering::SeqCst) < waiting {
                report(&folder, "most", waiting);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            connection.write_all(&SETTINGS).await.unwrap();
            let served = served.fetch_add(1, Ordering::SeqCst) + 1;
            if served.is_multiple_of(100) {
                report(&folder, "served", served);
            }
            swallow(&mut connection).await;
        }
    })
    .await;
    report(&folder, "port", usize::from(port));
    // Waits until the parent ends.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await.unwrap().unwrap();
}

fn serving(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serves_its_parent_if_it_has_one"])
        .env(SERVE, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn dials_to_ten_thousand_instances_are_limited() {
    let (files, needed) = (most_files(), u64::from(COUNT) + 500);
    assert!(files >= needed, "{needed} open files are needed, but the hard limit is {files}: raise it (`ulimit -Hn`)");
    let folder = tempfile::tempdir().unwrap();
    let mut server = serving(folder.path());
    let mut port = 0;
    eventually("the server listens", || {
        let reported = reported(folder.path(), "port");
        port = reported.unwrap_or_default();
        std::future::ready(reported.ok_or(()).map(|_| ()))
    })
    .await;
    let world = World::new();
    for instance in addresses(COUNT, u16::try_from(port).unwrap()) {
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    world.view().ready().await.unwrap();
    let begun = Moment::now();
    let channel = Channel::builder().build(&world.view()).unwrap();
    // In parts, because the machine may be busy.
    for part in 1..=4 {
        eventually("a part of them is connected to", || async {
            let connected = reported(folder.path(), "served").unwrap_or_default();
            if connected >= part * (COUNT as usize / 400 * 100) { Ok(()) } else { Err(connected) }
        })
        .await;
    }
    until_ready(&channel, COUNT as usize).await;
    let (took, most) = (begun.elapsed(), reported(folder.path(), "most").unwrap());
    println!("{COUNT} instances ready after {took:?}, at most {most} dials at a time");
    assert!((2..=64).contains(&most), "{most} dials at a time");
    drop(server.stdin.take());
    server.wait().unwrap();
}
