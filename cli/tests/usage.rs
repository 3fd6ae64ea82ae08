//! Help, defaults and messages.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::process::Command;

use enlist_testkit::eventually;
use support::{Done, Running, bare, enlist, run, server};

async fn with(arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    let mut command = bare();
    command.args(arguments).envs(environment.iter().copied());
    run(command).await
}

/// Help does not list the internal command.
#[tokio::test]
async fn the_internal_command_is_not_shown() {
    for arguments in [vec![], vec!["help"], vec!["--help"], vec!["nonsense"], vec!["completions", "bash"], vec!["man"]]
    {
        for environment in [vec![], vec![("ENLIST_ENDPOINTS", "http://127.0.0.1:1")]] {
            let done = with(&arguments, &environment).await;
            let all = done.stdout + &done.stderr;
            assert!(!all.contains("reap"), "{arguments:?} {environment:?}: {all}");
        }
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(!with(&["completions", shell], &[]).await.stdout.contains("reap"), "{shell}");
    }
}

/// Options set by variables are not listed as required.
#[tokio::test]
async fn usage_lines_do_not_depend_on_variables() {
    for arguments in [vec!["resolve"], vec!["lock", "--nonsense"], vec!["leader", "a", "b"], vec!["register", "svc"]] {
        let plain = with(&arguments, &[]).await;
        let variables = [("ENLIST_ENDPOINTS", "http://127.0.0.1:1"), ("ENLIST_OUTPUT", "text"), ("ENLIST_OWNER", "x")];
        let set = with(&arguments, &variables).await;
        assert_eq!((plain.code, set.code), (Some(2), Some(2)));
        assert_eq!(plain.stderr, set.stderr);
        let usage = set.stderr.lines().find(|line| line.starts_with("Usage: ")).unwrap();
        assert!(usage.starts_with(&format!("Usage: enlist {} [OPTIONS]", arguments[0])), "{usage}");
    }
}

#[tokio::test]
async fn an_empty_variable_is_as_good_as_none() {
    let server = server().await;
    let variables =
        ["ENLIST_OUTPUT", "ENLIST_LAYOUT", "ENLIST_TIMEOUT", "ENLIST_NAMESPACE", "ENLIST_PREFIX", "ENLIST_USER"];
    let mut command = enlist(&server, ["publish", "db", "10.0.0.1:80"]);
    command.envs(variables.map(|variable| (variable, "")));
    let done = run(command).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    // The default endpoint, which may or may not have an etcd.
    let done = with(&["services"], &[("ENLIST_ENDPOINTS", "")]).await;
    assert!(done.code == Some(0) || done.stderr.contains("http://127.0.0.1:2379/"), "{done:?}");
}

#[tokio::test]
async fn an_endpoint_without_a_port_uses_etcds() {
    for (endpoint, reached) in [
        ("no-such-host.invalid", "no-such-host.invalid:2379"),
        ("[::1]", "[::1]:2379"),
        ("::1", "[::1]:2379"),
        // A URL without a port keeps the port of its scheme, because it may lead to a proxy.
        ("http://127.0.0.1:1", "127.0.0.1:1"),
    ] {
        let done = with(&["services", "--endpoints", endpoint], &[]).await;
        assert!(done.stderr.contains(&format!("http://{reached}/")), "{endpoint}: {done:?}");
        let done = with(&["doctor", "--endpoints", endpoint], &[]).await;
        assert!(done.stdout.contains(&format!("http://{reached}: ")), "{endpoint}: {done:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_reported_once() {
    let server = server().await;
    let unreachable = run(enlist(&server, ["register", "svc", "0.0.0.0:80"])).await;
    assert_eq!(unreachable.code, Some(2));
    assert!(!unreachable.stderr.contains("advertise"), "{unreachable:?}");
    let mut first = Running::start(enlist(&server, ["register", "svc", "10.0.0.1:80", "--id", "a"]));
    first.says("registered").await;
    let second = run(enlist(&server, ["register", "svc", "10.0.0.1:80", "--id", "a", "--ttl", "2s"])).await;
    let count = (second.stdout + &second.stderr).matches("already registered").count();
    assert_eq!((second.code, count), (Some(1), 1), "{}", second.stderr);
}

/// A service above the limits is not read, and one that exceeds them while it is watched keeps its last view.
#[tokio::test]
async fn a_service_above_a_limit_keeps_its_view() {
    let server = server().await;
    let publish = async |id: &str| {
        let done = run(enlist(&server, ["publish", "db", "10.0.0.1:80", "--id", id])).await;
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    publish("a").await;
    let mut watching = Running::start(enlist(&server, ["watch", "db", "--max-range-keys", "1"]));
    watching.says("= 1 instances").await;
    publish("b").await;
    let why = "the limit of 1 keys is exceeded by the keys under enlist/services/default/db/";
    let stale = watching.next().await.unwrap();
    assert!(stale.starts_with("! not up to date") && stale.contains(why), "{stale}");
    let mut limited = enlist(&server, ["resolve", "db"]);
    limited.env("ENLIST_MAX_RANGE_BYTES", "100");
    let refused = run(limited).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("the limit of 100 bytes") && refused.stderr.contains("raise"), "{refused:?}");
}

/// A wait that ends during an outage names the cause.
#[tokio::test]
async fn a_wait_during_an_outage_names_the_cause() {
    let done = with(&["resolve", "db", "--wait", "1s", "--endpoints", "http://127.0.0.1:1"], &[]).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    for part in ["resolve took longer than 1 s", "http://127.0.0.1:1/", "Connection refused"] {
        assert!(done.stderr.contains(part), "{done:?}");
    }
}

/// A departure is one line; a drain that lasts is two lines.
#[tokio::test]
async fn a_removed_instance_is_not_shown_draining() {
    let server = server().await;
    let removal = async || {
        // A publication is two writes, which may be two lines of a watch that is under way.
        let published = run(enlist(&server, ["publish", "db", "10.0.0.1:80", "--id", "a"])).await;
        assert_eq!(published.code, Some(0), "{published:?}");
        let mut watching = Running::start(enlist(&server, ["watch", "db"]));
        watching.says("= 1 instances").await;
        let removed = run(enlist(&server, ["remove", "db", "a"])).await;
        assert_eq!(removed.code, Some(0), "{removed:?}");
        let seen = watching.says_all("- a ").await;
        (watching, seen)
    };
    // Three of five: on a busy machine, its two writes may be too far apart.
    let mut lines = Vec::new();
    let mut watching = loop {
        let (watching, seen) = removal().await;
        lines.push(seen.lines().count());
        if lines.iter().filter(|lines| **lines == 1).count() == 3 {
            break watching;
        }
        assert!(lines.len() < 5, "{lines:?} lines");
    };
    let registered = Running::start(enlist(&server, ["register", "db", "10.0.0.1:80", "--id", "b", "--drain", "5s"]));
    watching.says("+ b ").await;
    registered.signal("-TERM");
    watching.says("~ b 10.0.0.1:80 weight=100 health=draining").await;
    watching.says("- b ").await;
}

/// An instance of a live registration is removed with --force only, and is registered again; a value that cannot be
/// decoded is removed as well.
#[tokio::test]
async fn force_removes_an_instance_under_a_lease() {
    let server = server().await;
    let mut registered = Running::start(enlist(&server, ["register", "db", "10.0.0.1:80", "--id", "a"]));
    registered.says("registered").await;
    let refused = run(enlist(&server, ["remove", "db", "a"])).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("kept by lease") && refused.stderr.contains("--force"), "{refused:?}");
    let text = run(enlist(&server, ["remove", "db", "a", "--force"])).await;
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.starts_with("evicted default/db/a, kept by lease "), "{text:?}");
    registered.says("registered").await;

    let mut raw = support::raw(&server).await;
    raw.put("enlist/services/default/db/b", "no instance", None).await.unwrap();
    let refused = run(enlist(&server, ["remove", "db", "b"])).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let json = run(enlist(&server, ["remove", "db", "b", "--force", "--output", "json"])).await;
    let object: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let expected = serde_json::json!({
        "event": "removed", "service": "default/db", "id": "b", "instance": null, "forced": true, "lease": null
    });
    assert_eq!(object, expected);
    let json = run(enlist(&server, ["remove", "db", "a", "--force", "--output", "json"])).await;
    let object: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(object["lease"].is_i64() && object["instance"]["id"] == "a", "{object}");
    let gone = run(enlist(&server, ["remove", "db", "b", "--force"])).await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
}

/// If all leases are lost at once, the instances are shown as held, not as removed.
#[tokio::test]
async fn lost_leases_do_not_empty_a_watched_service() {
    let server = server().await;
    let mut registered = Running::start(enlist(&server, ["register", "db", "10.0.0.1:80", "--id", "a"]));
    registered.says("registered").await;
    let mut json = Running::start(enlist(&server, ["watch", "db", "--output", "json"]));
    let mut text = Running::start(enlist(&server, ["watch", "db"]));
    json.says("synced").await;
    text.says("= 1 instances").await;
    // It registers again once both have shown the loss.
    registered.signal("-STOP");
    eventually("it is stopped", || async {
        let state = support::state(registered.child.id());
        if state == Some('T') { Ok(()) } else { Err(state) }
    })
    .await;
    let mut raw = support::raw(&server).await;
    for lease in raw.leases().await.unwrap().leases().to_vec() {
        raw.lease_revoke(lease.id()).await.unwrap();
    }
    let shows = async |json: &mut Running, text: &mut Running, presence: &str, shown: &str| {
        let line = json.next().await.unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&event["event"], &event["instance"]["presence"]), (&"updated".into(), &presence.into()), "{line}");
        assert_eq!(text.next().await.unwrap(), format!("~ a 10.0.0.1:80 weight=100 health=serving{shown}"));
    };
    shows(&mut json, &mut text, "held", " held").await;
    registered.signal("-CONT");
    shows(&mut json, &mut text, "live", "").await;
}

#[tokio::test]
async fn the_reaper_is_started_by_its_name_only() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enlist"));
    command.args(["reap", "now"]);
    let done = run(command).await;
    assert_eq!(done.code, Some(2), "{done:?}");
}

/// A service that is unknown because of an outage is not shown as empty.
#[tokio::test]
async fn a_watch_reports_an_outage_at_its_start() {
    let mut server = server().await;
    server.kill().await;
    let mut watching = Running::start(enlist(&server, ["watch", "svc"]));
    let warning = watching.warns("default/svc").await;
    assert!(warning.contains("not known yet: store unavailable"), "{warning}");
    server.restart().await;
    watching.says("= 0 instances").await;
}

#[test]
fn each_option_is_documented_once() {
    let docs = include_str!("../../docs/cli.md");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `--")?.split_once('|'));
    // An option may differ between commands.
    let mut options: Vec<_> = rows
        .flat_map(|(options, rest)| {
            let commands = rest.split_once('|').map_or("", |(commands, _)| commands);
            commands.split(',').map(move |command| (options, command.trim()))
        })
        .collect();
    options.sort_unstable();
    assert!(options.windows(2).all(|pair| pair[0] != pair[1]), "{options:#?}");
}
