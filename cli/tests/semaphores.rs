//! Semaphores of the command line.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use enlist_testkit::{EtcdServer, eventually};
use serde_json::{Value, json};
use support::{Running, enlist, run, server};

async fn shown(server: &EtcdServer, arguments: &[&str]) -> Vec<Value> {
    let mut command = enlist(server, arguments);
    command.env("ENLIST_OUTPUT", "json");
    run(command).await.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn permits_bound_the_number_of_commands() {
    let server = server().await;
    let none = run(enlist(&server, ["semaphores"])).await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""), "{none:?}");
    // Without a number nothing is granted, and the reason is stated.
    let unset = run(enlist(&server, ["lock", "uploads", "--permits", "1", "--try"])).await;
    assert!(unset.code == Some(123) && unset.stdout.contains("has no number of permits"), "{unset:?}");

    let mut one = Running::start(enlist(&server, ["lock", "uploads", "--permits", "2", "--of", "3"]));
    one.says("semaphore default/uploads acquired with token").await;
    let mut two = Running::start(enlist(&server, ["lock", "uploads", "--permits", "1", "--of", "9"]));
    two.says("acquired").await;
    let mut three = Running::start(enlist(&server, ["lock", "uploads", "--permits", "1"]));
    let semaphores = eventually("one waits", || async {
        let semaphores = shown(&server, &["semaphores"]).await;
        if semaphores[0]["waiting"] == 1 { Ok(semaphores) } else { Err(semaphores) }
    })
    .await;
    assert_eq!((&semaphores[0]["semaphore"], &semaphores[0]["permits"]), (&json!("default/uploads"), &json!(3)));
    let holders = semaphores[0]["holders"].as_array().unwrap();
    assert_eq!((&holders[0]["permits"], &holders[1]["permits"]), (&json!(2), &json!(1)));
    let process = format!(":{}", one.child.id());
    assert!(holders[0]["process"].as_str().unwrap().ends_with(&process), "{holders:?}");
    let tried = run(enlist(&server, ["lock", "uploads", "--permits", "1", "--try"])).await;
    assert!(tried.code == Some(123) && tried.stdout.contains(&process), "{tried:?}");

    let text = run(enlist(&server, ["semaphores", "uploads", "--set", "4"])).await;
    assert!(text.code == Some(0) && text.stdout.starts_with("SEMAPHORE "), "{text:?}");
    three.says("acquired").await;
    let lowered = shown(&server, &["semaphores", "uploads", "--set", "0"]).await;
    assert_eq!((&lowered[0]["permits"], lowered[0]["holders"].as_array().unwrap().len()), (&json!(0), 3));
    for holder in [&mut one, &mut two, &mut three] {
        holder.signal("-TERM");
        holder.says("released").await;
    }
    let paused = run(enlist(&server, ["lock", "uploads", "--permits", "1", "--try"])).await;
    assert!(paused.code == Some(123) && paused.stdout.contains("has 0 permits"), "{paused:?}");
    let text = run(enlist(&server, ["semaphores"])).await;
    assert_eq!(
        text.stdout.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
        ["default/uploads", "0", "-", "-", "0", "0"]
    );
}

#[tokio::test]
async fn a_command_runs_with_its_permits() {
    let server = server().await;
    let done = run(enlist(
        &server,
        [
            "lock",
            "s",
            "--permits",
            "1",
            "--of",
            "1",
            "--",
            "sh",
            "-c",
            "echo $ENLIST_LOCK $ENLIST_FENCING_TOKEN; exit 7",
        ],
    ))
    .await;
    assert!(done.code == Some(7) && done.stdout.starts_with("default/s "), "{done:?}");
    let shared = run(enlist(&server, ["lock", "s", "--permits", "1", "--shared"])).await;
    assert_eq!(shared.code, Some(2), "{shared:?}");
    let none = run(enlist(&server, ["lock", "s", "--permits", "0"])).await;
    assert_eq!(none.code, Some(2), "{none:?}");
    let nameless = run(enlist(&server, ["semaphores", "--set", "1"])).await;
    assert_eq!(nameless.code, Some(2), "{nameless:?}");
    let other = run(enlist(&server, ["semaphores", "--lock-layout", "etcd-concurrency"])).await;
    assert!(other.code == Some(1) && other.stderr.contains("semaphores in the layout"), "{other:?}");
}
