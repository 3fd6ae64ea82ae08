//! Holders and queues of locks, and messages for scripts.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::time::Duration;

use enlist_testkit::eventually;
use serde_json::{Value, json};
use support::{Running, bare, enlist, hears_signals, raw, run, server};

#[tokio::test]
async fn locks_are_shown_with_their_queues() {
    let server = server().await;
    let none = run(enlist(&server, ["locks"])).await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""), "{none:?}");
    let free = run(enlist(&server, ["locks", "nightly"])).await;
    assert_eq!((free.code, free.stdout.as_str()), (Some(1), ""), "{free:?}");
    assert!(free.stderr.contains("default/nightly is free"), "{free:?}");
    // The JSON object names the lock, also without a holder.
    let free = run(enlist(&server, ["locks", "nightly", "--output", "json"])).await;
    assert_eq!((free.code, free.stderr.as_str()), (Some(1), ""), "{free:?}");
    let object = json!({ "lock": "default/nightly", "holders": [], "waiting": 0, "delayed": false });
    assert_eq!(serde_json::from_str::<Value>(&free.stdout).unwrap(), object);

    let mut holder = Running::start(enlist(&server, ["lock", "nightly"]));
    holder.says("acquired").await;
    let _waiting = Running::start(enlist(&server, ["lock", "nightly"]));
    let mut sharers: Vec<_> = (0..2).map(|_| Running::start(enlist(&server, ["lock", "a/b %", "--shared"]))).collect();
    for sharer in &mut sharers {
        sharer.says("acquired").await;
    }
    let json = |arguments: &[&str]| {
        let mut command = enlist(&server, arguments);
        command.env("ENLIST_OUTPUT", "json");
        async {
            run(command).await.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
        }
    };
    let process = format!(":{}", holder.child.id());
    let locks = eventually("one waits", || async {
        let locks = json(&["locks"]).await;
        if locks.iter().any(|lock| lock["waiting"] == 1) { Ok(locks) } else { Err(locks) }
    })
    .await;
    assert_eq!(locks.len(), 2, "{locks:?}");
    assert_eq!((&locks[0]["lock"], &locks[0]["waiting"]), (&json!("default/a/b %"), &json!(0)));
    assert_eq!(locks[0]["holders"].as_array().unwrap().len(), 2);
    assert_eq!(locks[0]["holders"][0]["mode"], "shared");
    assert_eq!((&locks[1]["lock"], &locks[1]["holders"][0]["mode"]), (&json!("default/nightly"), &json!("exclusive")));
    assert!(locks[1]["holders"][0]["process"].as_str().unwrap().ends_with(&process), "{locks:?}");
    assert!(locks[1]["holders"][0]["token"].as_u64().unwrap() > 0);
    assert_eq!(json(&["locks", "nightly"]).await, locks[1..]);
    let text = run(enlist(&server, ["locks", "nightly"])).await;
    assert!(text.code == Some(0) && text.stdout.contains(&process), "{text:?}");
    assert!(text.stdout.starts_with("LOCK ") && text.stdout.lines().count() == 2, "{text:?}");
    // Without a wait, the holder is reported.
    let tried = run(enlist(&server, ["lock", "nightly", "--try"])).await;
    assert!(tried.code == Some(123) && tried.stdout.contains(&process), "{tried:?}");
    let tried = json(&["lock", "nightly", "--try"]).await;
    assert!(tried[0]["holder"].as_str().unwrap().ends_with(&process), "{tried:?}");
    // The same holds for an election.
    let mut leader = Running::start(enlist(&server, ["elect", "office", "10.0.0.1:9"]));
    leader.says("acquired").await;
    let other = run(enlist(&server, ["elect", "office", "x", "--wait", "100ms"])).await;
    assert!(other.stdout.contains("10.0.0.1:9"), "{other:?}");
    // The layout of etcd's concurrency package has no list of locks, and no names of processes.
    let mut theirs = Running::start(enlist(&server, ["lock", "l", "--lock-layout", "etcd-concurrency"]));
    theirs.says("acquired").await;
    let theirs = json(&["locks", "l", "--lock-layout", "etcd-concurrency"]).await;
    assert_eq!(theirs[0]["holders"][0]["process"], Value::Null);
    let all = run(enlist(&server, ["locks", "--lock-layout", "etcd-concurrency"])).await;
    assert!(all.code == Some(1) && all.stderr.contains("not supported"), "{all:?}");
    // Neither has that of gobase, where waiting contenders do not show and which has no elections.
    let mut theirs = Running::start(enlist(&server, ["lock", "job", "--lock-layout", "gobase"]));
    theirs.says("acquired").await;
    let locks = json(&["locks", "job", "--lock-layout", "gobase"]).await;
    assert_eq!(locks[0]["holders"].as_array().unwrap().len(), 1, "{locks:?}");
    let tried = run(enlist(&server, ["lock", "job", "--lock-layout", "gobase", "--try"])).await;
    assert_eq!(tried.code, Some(123), "{tried:?}");
    let refused = run(enlist(&server, ["elect", "office", "x", "--lock-layout", "gobase"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("elections in the layout gobase"), "{refused:?}");
}

#[tokio::test]
async fn leaders_are_named_with_waiting_candidates() {
    let server = server().await;
    let none = run(enlist(&server, ["elections"])).await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""), "{none:?}");
    let empty = run(enlist(&server, ["elections", "office"])).await;
    assert_eq!((empty.code, empty.stdout.as_str()), (Some(1), ""), "{empty:?}");
    assert!(empty.stderr.contains("default/office has no candidates"), "{empty:?}");
    let empty = run(enlist(&server, ["elections", "office", "--output", "json"])).await;
    assert_eq!((empty.code, empty.stderr.as_str()), (Some(1), ""), "{empty:?}");
    let object = json!({
        "election": "default/office", "leader": null, "token": null, "modified": null, "waiting": 0, "delayed": false,
    });
    assert_eq!(serde_json::from_str::<Value>(&empty.stdout).unwrap(), object);

    let mut leader = Running::start(enlist(&server, ["elect", "office", "10.0.0.1:9"]));
    leader.says("acquired").await;
    let _waiting = Running::start(enlist(&server, ["elect", "office", "10.0.0.2:9"]));
    let mut other = Running::start(enlist(&server, ["elect", "a/b %", "v"]));
    other.says("acquired").await;
    let listed = eventually("one waits", || async {
        let done = run(enlist(&server, ["elections", "--output", "json"])).await;
        let all: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if all.iter().any(|election| election["waiting"] == 1) { Ok(all) } else { Err(all) }
    })
    .await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!((&listed[0]["election"], &listed[0]["waiting"]), (&json!("default/a/b %"), &json!(0)));
    assert_eq!((&listed[1]["leader"], &listed[1]["delayed"]), (&json!("10.0.0.1:9"), &json!(false)));
    assert!(listed[1]["token"].as_u64().unwrap() > 0 && listed[1]["modified"] == listed[1]["token"], "{listed:?}");
    let text = run(enlist(&server, ["elections", "office"])).await;
    let rows: Vec<Vec<_>> = text.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let token = listed[1]["token"].to_string();
    assert_eq!(
        rows,
        [vec!["ELECTION", "LEADER", "TOKEN", "WAITING"], vec!["default/office", "10.0.0.1:9", &token, "1"]]
    );
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""), "{text:?}");
    // Neither of the other layouts has a list, and that of gobase has no elections.
    for layout in ["etcd-concurrency", "gobase"] {
        let all = run(enlist(&server, ["elections", "--lock-layout", layout])).await;
        assert!(all.code == Some(1) && all.stderr.contains("not supported"), "{all:?}");
    }
    let theirs = run(enlist(&server, ["elections", "office", "--lock-layout", "gobase"])).await;
    assert!(theirs.code == Some(1) && theirs.stderr.contains("elections in the layout gobase"), "{theirs:?}");
}

/// A contender that waits for the `lock_delay` of another holder holds nothing yet.
#[tokio::test]
async fn nobody_holds_a_lock_during_its_delay() {
    let server = server().await;
    let lock = |more: &[&str]| enlist(&server, ["lock", "l", "--ttl", "2s"].iter().chain(more));
    let asked = || async {
        let done = run(enlist(&server, ["locks", "--output", "json"])).await;
        serde_json::from_str::<Value>(done.stdout.lines().next().unwrap_or("null")).unwrap()
    };
    let mut holder = Running::start(lock(&["--lock-delay", "1h"]));
    holder.says("acquired").await;
    let waiting = Running::start(lock(&["--lock-delay", "1h"]));
    eventually("one waits", || async {
        let lock = asked().await;
        if lock["waiting"] == 1 { Ok(()) } else { Err(lock) }
    })
    .await;
    holder.signal("-KILL");
    let delayed = eventually("the delay is reported", || async {
        let lock = asked().await;
        if lock["delayed"] == true { Ok(lock) } else { Err(lock) }
    })
    .await;
    let expected = json!({ "lock": "default/l", "holders": [], "waiting": 1, "delayed": true });
    assert_eq!(delayed, expected);
    let text = run(enlist(&server, ["locks", "l"])).await;
    assert_eq!(text.code, Some(0), "it is not free: {text:?}");
    let row: Vec<_> = text.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["default/l", "(delay)", "-", "-", "1"], "{text:?}");
    let tried = run(lock(&["--lock-delay", "1h", "--try"])).await;
    assert!(tried.code == Some(123) && tried.stdout.contains("did not release"), "{tried:?}");
    // Without contenders it is not free either.
    drop(waiting);
    let alone = eventually("the waiting one is gone", || async {
        let done = run(enlist(&server, ["locks", "l"])).await;
        if done.stdout.trim_end().ends_with(" 0") { Ok(done) } else { Err(done) }
    })
    .await;
    assert!(alone.code == Some(0) && alone.stdout.contains("(delay)"), "{alone:?}");
}

/// An etcd that accepts connections without answers does not extend a wait, and a signal ends it.
#[tokio::test]
async fn a_wait_ends_in_time_without_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for command in [vec!["lock", "l"], vec!["elect", "l", "v"]] {
        let started = |wait| {
            let mut started = bare();
            started.args(&command).args(["--endpoints", &url, "--wait", wait]);
            started
        };
        let begun = enlist::Moment::now();
        let done = run(started("300ms")).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}: {done:?}", begun.elapsed());
        assert!(done.code == Some(123) && done.stdout.contains("etcd does not answer"), "{done:?}");
        // The wait has passed by the time of the signal. On a busy machine it may come too late.
        let mut codes = Vec::new();
        while codes.len() < 5 && codes.last() != Some(&Some(143)) {
            let mut asking = Running::start(started("1ms"));
            hears_signals(asking.child.id()).await;
            asking.signal("-TERM");
            codes.push(asking.code().await);
        }
        assert_eq!(codes.last(), Some(&Some(143)), "{command:?}: {codes:?}");
    }
}

/// Output is mailed by cron, so only problems are printed.
#[tokio::test]
async fn quiet_locks_say_only_what_goes_wrong() {
    let server = server().await;
    let run_quietly = |arguments: &[&str]| {
        run(enlist(&server, arguments.iter().copied().chain(["--quiet", "--", "echo", "output of the command"])))
    };
    for arguments in [vec!["lock", "l"], vec!["elect", "e", "v"]] {
        let done = run_quietly(&arguments).await;
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
        assert_eq!(done.stdout, "output of the command\n");
    }
    let mut holder =
        Running::start(enlist(&server, ["lock", "l", "--quiet", "--", "sh", "-c", "echo begun; sleep 1000"]));
    holder.says("begun").await;
    let tried = run_quietly(&["lock", "l", "--try"]).await;
    assert_eq!((tried.code, tried.stdout.as_str(), tried.stderr.as_str()), (Some(123), "", ""), "{tried:?}");
    let mut raw = raw(&server).await;
    for lease in raw.leases().await.unwrap().leases().to_vec() {
        raw.lease_revoke(lease.id()).await.unwrap();
    }
    holder.warns("lost").await;
    assert_eq!(holder.code().await, Some(124));
}

/// During an outage the holder of a lock is unknown.
#[tokio::test]
async fn an_outage_is_not_reported_as_held() {
    let server = server().await;
    for (command, kind) in [(vec!["lock", "l"], "lock"), (vec!["elect", "l", "v"], "election")] {
        let away = ["--endpoints", "http://127.0.0.1:1", "--wait", "300ms", "--quiet", "--", "true"];
        let done = run(enlist(&server, command.iter().copied().chain(away))).await;
        assert_eq!((done.code, done.stdout.as_str()), (Some(123), ""), "{done:?}");
        let message = format!("enlist: {kind} default/l not-acquired: etcd does not answer: store unavailable");
        assert!(done.stderr.starts_with(&message), "{done:?}");
    }
}
