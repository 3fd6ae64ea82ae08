//! Control characters from etcd reach neither a terminal nor a log.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use enlist_testkit::EtcdServer;
use support::{Done, Running, enlist, pty::Shell, raw, run, server};

/// For values: a terminal title, a line feed, C0, C1, DEL, text from right to left, a character without width, a line
/// separator.
const VALUE: &str = "v\x1b]0;title\x07\r\nforged\u{9b}2J\x7f\u{202e}\u{200b}\u{2028}";

/// For names, which have no control characters.
const NAME: &str = "n\u{202e}\u{200b}\u{2028}\u{2066}";

/// Owner token of the registered instance.
const TOKEN: &str = "token-of-the-owner";

fn assert_printable(what: &str, done: &Done) {
    for text in [&done.stdout, &done.stderr] {
        let hidden: Vec<_> = text.chars().filter(|c| *c != '\n' && enlist::escape::is_unprintable(*c)).collect();
        assert!(hidden.is_empty(), "{what}: {hidden:?} in {text:?}");
        assert!(!text.contains("\nforged") && !text.contains(TOKEN), "{what}: {text:?}");
    }
}

/// Runs a command with text and with JSON output, and checks both. Returns the JSON.
async fn printable(server: &EtcdServer, arguments: &[&str]) -> Done {
    let text = run(enlist(server, arguments)).await;
    assert_printable(&format!("{arguments:?}"), &text);
    let mut command = enlist(server, arguments);
    command.env("ENLIST_OUTPUT", "json");
    let json = run(command).await;
    assert_printable(&format!("{arguments:?} as JSON"), &json);
    for line in json.stdout.lines().chain(json.stderr.lines()) {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    json
}

#[tokio::test]
async fn every_field_of_every_command_is_shown_escaped() {
    let server = server().await;
    let (metadata, path) = (format!("{VALUE}={VALUE}"), format!("unix:///tmp/{NAME}"));
    let details = ["--zone", VALUE, "--version", VALUE, "--meta", &metadata, "--id"];
    let publish = |id: &'static str| [&["publish", NAME, &path], &details[..], &[id]].concat();
    let register = |id: &'static str| [&["register", NAME, &path, "--ttl", "2s"], &details[..], &[id]].concat();

    printable(&server, &publish("fixed")).await;
    let mut live = enlist(&server, register(NAME).into_iter().chain(["--owner", TOKEN]));
    live.env("ENLIST_OUTPUT", "json");
    let mut live = Running::start(live);
    live.says("\"registered\"").await;
    let mut leading = Running::start(enlist(&server, ["elect", NAME, VALUE]));
    leading.says("acquired").await;
    let mut holding = Running::start(enlist(&server, ["lock", NAME]));
    holding.says("acquired").await;

    let entry = serde_json::json!({ "v": 1, "mode": "exclusive", "holder": VALUE }).to_string();
    let key = "enlist/locks/default/other/0000000000000001-0000000000000001";
    raw(&server).await.put(key, entry, None).await.unwrap();

    let resolved = printable(&server, &["resolve", NAME]).await;
    let instance: serde_json::Value = serde_json::from_str(resolved.stdout.lines().next().unwrap()).unwrap();
    // JSON preserves the escaped values.
    assert_eq!((&instance["zone"], &instance["version"]), (&VALUE.into(), &VALUE.into()));
    assert_eq!((&instance["metadata"][VALUE], &instance["endpoints"][0]), (&VALUE.into(), &path.clone().into()));
    assert_eq!(run(enlist(&server, ["resolve", NAME])).await.stdout.lines().count(), 3);
    assert_eq!(printable(&server, &["services"]).await.stdout.lines().count(), 1);
    // Refusals, which name the instance and not the owner token.
    for refused in [publish(NAME), register(NAME), vec!["remove", NAME, NAME]] {
        let done = printable(&server, &refused).await;
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains("another owner"), "{done:?}");
    }
    printable(&server, &["remove", NAME, "\u{200b}"]).await;
    printable(&server, &["lock", NAME, "--try"]).await;
    let locks = printable(&server, &["locks"]).await;
    let other = locks.stdout.lines().find(|line| line.contains("default/other")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(other).unwrap()["holders"][0]["process"], VALUE);
    let tried = printable(&server, &["lock", "other", "--try"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&tried.stdout).unwrap()["holder"], VALUE);
    printable(&server, &["elect", NAME, VALUE, "--wait", "100ms"]).await;
    printable(&server, &["doctor", "--namespace", NAME]).await;
    let elections = printable(&server, &["elections"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&elections.stdout).unwrap()["leader"], VALUE);
    let leader = printable(&server, &["leader", NAME]).await;
    let leader: serde_json::Value = serde_json::from_str(&leader.stdout).unwrap();
    assert_eq!(leader["leader"], VALUE);
    for output in ["text", "json"] {
        for (following, until) in [("observe", "forged"), ("watch", "2 instances"), ("watch", "synced")] {
            if (until == "synced") != (output == "json") && following == "watch" {
                continue;
            }
            let mut following = Running::start(enlist(&server, [following, NAME, "--output", output]));
            let seen = following.says_all(until).await;
            assert_printable(&format!("{output} {until}"), &Done { code: None, stdout: seen, stderr: String::new() });
        }
    }
    // A live table on a terminal, which receives only the command's own escape sequences.
    let mut shell = Shell::start(&server).await;
    shell.types(&format!("$E watch {NAME}\n"));
    let shown = shell.shows("fixed").await + &shell.shows("\r\n").await;
    assert!(!shown.contains("\x1b]0") && !shown.contains(['\u{9b}', '\u{202e}', '\u{200b}', '\x07']), "{shown:?}");
    // The registering process prints the instance as well.
    printable(&server, &["remove", NAME, "fixed"]).await;
    for running in [&mut live, &mut leading, &mut holding] {
        running.signal("-TERM");
        let rest = running.says_all("re").await;
        assert_printable("at the end", &Done { code: None, stdout: rest, stderr: String::new() });
    }
}

#[tokio::test]
async fn configuration_is_shown_escaped() {
    let server = server().await;
    let lines = format!("first\n{VALUE}");
    for value in ["first", &lines] {
        printable(&server, &["config", "set", NAME, value]).await;
    }
    for arguments in [
        &["config", "list", "--values"][..],
        &["config", "history", NAME, "--values"],
        &["config", "diff", NAME, "--from", "2"],
        &["config", "set", NAME, VALUE, "--create"],
        &["config", "delete", "\u{200b}"],
    ] {
        printable(&server, arguments).await;
    }
    let json = run(enlist(&server, ["config", "get", NAME, "--output", "json"])).await;
    assert_printable("a value as JSON", &json);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json.stdout).unwrap()["value"], lines);
    // Not on a terminal, the bytes are those of the value.
    assert_eq!(run(enlist(&server, ["config", "get", NAME])).await.stdout, lines);
    let mut watching = Running::start(enlist(&server, ["config", "watch", "--values"]));
    let seen = watching.says_all("= 1 values").await;
    assert_printable("a watch", &Done { code: None, stdout: seen, stderr: String::new() });
    // On a terminal they are escaped, except for the ends of lines.
    let mut shell = Shell::start(&server).await;
    shell.types(&format!("$E config get {NAME}; echo do''ne\n"));
    let shown = shell.shows("done").await;
    assert!(shown.starts_with("first\r\nv\\u{1b}]0;title"), "{shown:?}");
    let hidden = |c: char| !['\r', '\n'].contains(&c) && enlist::escape::is_unprintable(c);
    assert!(!shown.contains(hidden), "{shown:?}");
}
