//! `enlist once`, `enlist jobs` and `enlist forget`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{fs, path::Path, process::Command, time::Duration};

use enlist_testkit::{EtcdServer, eventually};
use support::{Running, enlist, raw, run, server};

/// Program of a job: it records its beginning and its end, and whether another one is running.
const WORK: &str = r#"
exec 9>"$DIR/busy"
flock --nonblock 9 || echo two >> "$DIR/log"
echo begun >> "$DIR/log"
sleep 0.1
echo ended >> "$DIR/log"
"#;

const RECORD: &str = "enlist/config/once:default/job";

/// `enlist once job … -- sh -c SCRIPT`.
fn once(server: &EtcdServer, more: &[&str], script: &str) -> Command {
    let base = ["once", "job", "--ttl", "5s"];
    enlist(server, base.iter().chain(more).chain(&["--", "sh", "-c", script]))
}

async fn lines(file: &Path, count: usize) -> Vec<String> {
    eventually(&format!("{count} lines are written"), || async {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if lines.len() == count { Ok(lines) } else { Err(text) }
    })
    .await
}

fn json(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[tokio::test]
async fn a_command_that_succeeds_runs_once() {
    let server = server().await;
    let failed = run(once(&server, &[], "exit 7")).await;
    assert_eq!(failed.code, Some(7), "{failed:?}");
    assert!(failed.stderr.contains("job default/job failed with status 7"), "{failed:?}");
    let unmarked = run(enlist(&server, ["jobs", "job"])).await;
    assert_eq!(unmarked.code, Some(1), "{unmarked:?}");
    assert!(unmarked.stdout.contains("begun"), "{unmarked:?}");

    let ran = run(once(&server, &[], "echo \"token $ENLIST_FENCING_TOKEN of $ENLIST_LOCK\"")).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let token = ran.stdout.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(ran.stdout, format!("token {token} of default/job\n"));
    assert!(ran.stderr.contains(&format!("job default/job done at token {token}")), "{ran:?}");

    let skipped = run(once(&server, &[], "echo again; exit 1")).await;
    assert_eq!((skipped.code, skipped.stdout.as_str()), (Some(0), ""), "{skipped:?}");
    assert_eq!(skipped.stderr, format!("enlist: job default/job already done at token {token}\n"));
    let quiet = run(once(&server, &["--quiet"], "exit 1")).await;
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""), "{quiet:?}");
    let listed = run(enlist(&server, ["jobs"])).await;
    assert!(listed.code == Some(0) && listed.stdout.contains("default/job  done"), "{listed:?}");
}

#[tokio::test]
async fn an_operator_runs_it_again_or_forgets_it() {
    let server = server().await;
    let unknown = run(enlist(&server, ["forget", "job"])).await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("no record of the job default/job"), "{unknown:?}");
    assert_eq!(run(enlist(&server, ["jobs", "job"])).await.code, Some(1));
    assert_eq!(run(once(&server, &[], "true")).await.code, Some(0));
    assert_eq!(run(once(&server, &["--again"], "echo again")).await.stdout, "again\n");
    let forgotten = run(enlist(&server, ["forget", "job"])).await;
    assert!(forgotten.code == Some(0) && forgotten.stdout.contains("default/job is forgotten: done"), "{forgotten:?}");
    assert_eq!(run(once(&server, &[], "echo anew")).await.stdout, "anew\n");
    // One that fails replaces the mark.
    assert_eq!(run(once(&server, &["--again"], "exit 3")).await.code, Some(3));
    assert_eq!(run(once(&server, &[], "echo last")).await.stdout, "last\n");
}

#[tokio::test]
async fn old_ticks_are_forgotten_together() {
    let server = server().await;
    for name in ["tick/1", "tick/2", "tock/1", "tick"] {
        assert_eq!(run(enlist(&server, ["once", name, "--", "true"])).await.code, Some(0));
    }
    let failed = run(enlist(&server, ["once", "tick/3", "--", "false"])).await;
    assert_eq!(failed.code, Some(1));
    let young = run(enlist(&server, ["forget", "tick", "--older-than", "1h"])).await;
    assert_eq!((young.code, young.stdout.as_str()), (Some(0), ""), "{young:?}");
    let old = run(enlist(&server, ["forget", "tick", "--older-than", "0s", "--output", "json"])).await;
    let jobs: Vec<_> = json(&old.stdout).iter().map(|object| object["job"].as_str().unwrap().to_owned()).collect();
    assert_eq!(jobs, ["default/tick/1", "default/tick/2"], "{old:?}");
    let left = run(enlist(&server, ["jobs", "--output", "json"])).await;
    let jobs: Vec<_> = json(&left.stdout).iter().map(|object| object["job"].as_str().unwrap().to_owned()).collect();
    assert_eq!(jobs, ["default/tick", "default/tick/3", "default/tock/1"], "{left:?}");
}

/// A process that waits for another one ends with 0 once that one is done, and runs the job if that one is killed.
#[tokio::test]
async fn a_job_survives_the_kill_of_its_process() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let (begun, ended) = (directory.path().join("begun"), directory.path().join("ended"));
    let (begun_at, ended_at) = (begun.display(), ended.display());
    let script = format!("echo $ENLIST_FENCING_TOKEN >> {begun_at}; sleep 1000; echo no >> {ended_at}");
    let mut killed = Running::start(once(&server, &[], &script));
    lines(&begun, 1).await;
    let quick = format!("echo $ENLIST_FENCING_TOKEN >> {begun_at}; echo yes >> {ended_at}");
    let mut waiting = Running::start(once(&server, &[], &quick));
    let busy = run(once(&server, &["--try"], "echo not")).await;
    assert_eq!((busy.code, busy.stdout.as_str()), (Some(123), ""), "{busy:?}");
    killed.signal("-KILL");
    assert_eq!(killed.code().await, Some(-9));
    assert_eq!(waiting.code().await, Some(0));
    let tokens: Vec<u64> = lines(&begun, 2).await.iter().map(|token| token.parse().unwrap()).collect();
    assert!(tokens[0] < tokens[1], "{tokens:?}");
    assert_eq!(lines(&ended, 1).await, ["yes"]);
    let skipped = run(once(&server, &[], "echo not")).await;
    assert_eq!((skipped.code, skipped.stdout.as_str()), (Some(0), ""), "{skipped:?}");
}

/// The process is killed shortly after each event of a run. The job has run at least once then, never two at a time,
/// and not again after its mark.
#[tokio::test]
async fn kills_leave_exactly_one_mark() {
    const EVENTS: [&str; 4] = ["acquired", "begun", "ended", "done at token"];
    const ROUNDS: usize = 4;
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let command = |name: &str| {
        let directory = directory.path().join(name);
        fs::create_dir_all(&directory).unwrap();
        let mut command = enlist(&server, ["once", name, "--ttl", "5s", "--", "bash", "-c", WORK]);
        command.env("DIR", &directory);
        (command, directory.join("log"))
    };
    let names: Vec<_> =
        (0..ROUNDS * EVENTS.len()).map(|number| (format!("job-{number}"), EVENTS[number % EVENTS.len()])).collect();
    for (name, event) in &names {
        let (command, log) = command(name);
        let mut running = Running::start(command);
        if matches!(*event, "begun" | "ended") {
            let lines = if *event == "begun" { 1 } else { 2 };
            eventually(&format!("{name} has {event}"), || async {
                let text = fs::read_to_string(&log).unwrap_or_default();
                if text.lines().count() >= lines { Ok(()) } else { Err(text) }
            })
            .await;
        } else {
            running.warns(event).await;
        }
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..20_000))).await;
        running.signal("-KILL");
        running.code().await;
    }
    let mut raw = raw(&server).await;
    let mut marked_before = 0;
    for (name, event) in &names {
        let stored = raw.get(format!("enlist/config/once:default/{name}"), None).await.unwrap();
        let marked = stored.kvs().first().is_some_and(|pair| pair.value_str().unwrap().contains("done"));
        let (command, log) = command(name);
        let before = fs::read_to_string(&log).unwrap_or_default();
        let done = run(command).await;
        assert_eq!(done.code, Some(0), "{name}, killed after {event}: {done:?}");
        let after = fs::read_to_string(&log).unwrap();
        if marked {
            assert!(before.ends_with("ended\n") && after == before, "{name}: {before} {after}");
        } else {
            assert_eq!(after, format!("{before}begun\nended\n"), "{name}, killed after {event}");
        }
        marked_before += usize::from(marked);
    }
    println!("{marked_before} of {} killed runs were marked", names.len());
    assert!((ROUNDS..names.len()).contains(&marked_before), "{marked_before}");
}

#[tokio::test]
async fn a_lost_lock_ends_a_job_unmarked() {
    let server = server().await;
    let mut running = Running::start(once(&server, &[], "echo runs; sleep 1000"));
    running.says("runs").await;
    let mut raw = raw(&server).await;
    for lease in raw.leases().await.unwrap().leases().to_vec() {
        raw.lease_revoke(lease.id()).await.unwrap();
    }
    running.warns("lost: ").await;
    assert_eq!(running.code().await, Some(124));
    assert_eq!(run(once(&server, &[], "echo anew")).await.stdout, "anew\n");
}

/// Another run began while this one was on its way to its mark, which takes a deleted key and bad timing.
#[tokio::test]
async fn a_run_without_its_record_is_not_marked() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let script = format!("echo runs; until [ -e {} ]; do sleep 0.02; done", go.display());
    let mut running = Running::start(once(&server, &[], &script));
    running.says("runs").await;
    assert_eq!(run(enlist(&server, ["forget", "job"])).await.code, Some(0));
    fs::write(&go, "").unwrap();
    running.warns("overtaken").await;
    assert_eq!(running.code().await, Some(124));
    assert_eq!(run(once(&server, &[], "echo anew")).await.stdout, "anew\n");
}

#[tokio::test]
async fn objects_have_these_fields() {
    let server = server().await;
    let ran = run(once(&server, &["--output", "json"], "true")).await;
    let events = json(&ran.stderr);
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["acquired", "done", "released"], "{ran:?}");
    assert!(events.iter().all(|event| event["job"] == "default/job"), "{ran:?}");
    let token = &events[1]["token"];
    let skipped = json(&run(once(&server, &["--output", "json"], "true")).await.stderr);
    assert_eq!((&skipped[0]["event"], &skipped[0]["token"]), (&"already-done".into(), token));
    assert!(skipped[0]["done"].as_str().unwrap().ends_with('Z'));
    let failed = json(&run(enlist(&server, ["once", "other", "--output", "json", "--", "false"])).await.stderr);
    assert_eq!((&failed[1]["event"], &failed[1]["status"]), (&"failed".into(), &1.into()));
    let unknown = json(&run(enlist(&server, ["jobs", "never", "--output", "json"])).await.stdout);
    assert_eq!(unknown[0]["state"], serde_json::Value::Null);
    let listed = json(&run(enlist(&server, ["jobs", "--output", "json"])).await.stdout);
    let mut fields: Vec<_> = listed[0].as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["begun", "done", "job", "revision", "state", "token"]);
    assert_eq!((&listed[0]["state"], &listed[1]["state"]), (&"done".into(), &"begun".into()));
}

#[tokio::test]
async fn a_job_without_a_command_is_wrong_usage() {
    let server = server().await;
    let refused = run(enlist(&server, ["once", "job"])).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("-- COMMAND"), "{refused:?}");
    let missing = run(enlist(&server, ["once", "job", "--", "/nonexistent"])).await;
    assert_eq!(missing.code, Some(127), "{missing:?}");
    assert_eq!(raw(&server).await.get(RECORD, None).await.unwrap().count(), 0);
}

#[tokio::test]
async fn an_unreadable_record_is_listed() {
    let server = server().await;
    assert_eq!(run(enlist(&server, ["once", "zone", "--", "true"])).await.code, Some(0));
    raw(&server).await.put(RECORD, "garbage", None).await.unwrap();
    let listed = run(enlist(&server, ["jobs"])).await;
    let rows: Vec<_> = listed.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(listed.code, Some(0), "{listed:?}");
    assert_eq!(rows[1], ["default/job", "unreadable", "-", "-", "-"], "{listed:?}");
    assert_eq!(rows[2][..2], ["default/zone", "done"], "{listed:?}");
    let objects = json(&run(enlist(&server, ["jobs", "--output", "json"])).await.stdout);
    assert_eq!((&objects[0]["state"], &objects[0]["token"]), (&"unreadable".into(), &serde_json::Value::Null));
    assert!(objects[0]["revision"].is_u64() && objects[1]["state"] == "done", "{objects:?}");
}

#[tokio::test]
async fn plain_keys_of_configuration_are_refused() {
    let server = server().await;
    for arguments in [&["once", "job", "--", "true"][..], &["jobs"], &["forget", "job"]] {
        let refused = run(enlist(&server, ["--config-prefix", "/app"].iter().chain(arguments))).await;
        assert!(refused.code == Some(2) && refused.stderr.contains("omit that option"), "{refused:?}");
    }
}
