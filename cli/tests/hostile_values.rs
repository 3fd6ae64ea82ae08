//! Control characters from etcd reach neither a terminal nor a log.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{collections::BTreeSet, process::Command};

use enlist_testkit::EtcdServer;
use serde_json::{Value, json};
use support::{Done, Running, bare, enlist, pty::Shell, raw, run, server};

/// For values: a terminal title, a line feed, C0, C1, DEL, text from right to left, a character without width, a line
/// separator.
const VALUE: &str = "v\x1b]0;title\x07\r\nforged\u{9b}2J\x7f\u{202e}\u{200b}\u{2028}";

/// For names, which have no control characters.
const NAME: &str = "n\u{202e}\u{200b}\u{2028}\u{2066}";

/// Owner token of the registered instance.
const TOKEN: &str = "token-of-the-owner";

/// An entry of a queue that no process of this test has made.
const ENTRY: &str = "0000000000000001-0000000000000001";

/// Commands that print nothing from the store.
const WITHOUT_VALUES: [&str; 4] = ["demo", "completions", "man", "help"];

fn assert_printable(what: &str, done: &Done) {
    for text in [&done.stdout, &done.stderr] {
        let hidden: Vec<_> = text.chars().filter(|c| *c != '\n' && enlist::escape::is_unprintable(*c)).collect();
        assert!(hidden.is_empty(), "{what}: {hidden:?} in {text:?}");
        assert!(!text.contains("\nforged") && !text.contains(TOKEN), "{what}: {text:?}");
    }
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Returns the commands in the help of the command with these arguments, without those that print no stored values.
fn listed(arguments: &[&str]) -> BTreeSet<String> {
    let help = bare().args(arguments).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap_or_else(|| panic!("{help}"));
    let lines = commands.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    // Further lines of a description are indented.
    let names = lines.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split(' ').next());
    names.filter(|name| !WITHOUT_VALUES.contains(name)).map(str::to_owned).collect()
}

/// Returns all commands that print values of the store.
fn commands() -> BTreeSet<String> {
    let mut commands = listed(&[]);
    assert!(commands.remove("config"));
    commands.extend(listed(&["config"]).into_iter().map(|name| format!("config {name}")));
    commands
}

/// A store with values of others, and the commands whose output was checked.
struct Screen {
    server: EtcdServer,
    checked: BTreeSet<String>,
}

impl Screen {
    fn command(&self, arguments: &[&str], output: &str) -> Command {
        let mut command = enlist(&self.server, arguments);
        // An editor that changes nothing.
        command.env("ENLIST_OUTPUT", output).env("EDITOR", "true");
        command
    }

    fn check(&mut self, arguments: &[&str], done: &Done) {
        assert_printable(&format!("{arguments:?}"), done);
        let words = if arguments[0] == "config" { 2 } else { 1 };
        self.checked.insert(arguments[..words].join(" "));
    }

    /// Runs a command with text and with JSON output, and checks both. Returns that with JSON.
    async fn shows(&mut self, arguments: &[&str]) -> Done {
        let [text, json] = ["text", "json"].map(|output| self.command(arguments, output));
        let text = run(text).await;
        self.check(arguments, &text);
        let json = run(json).await;
        self.check(arguments, &json);
        objects(&json.stdout);
        objects(&json.stderr);
        json
    }

    /// Starts a command that continues, and waits until it prints `until`.
    async fn begins(&mut self, arguments: &[&str], output: &str, until: &str) -> Running {
        let mut running = Running::start(self.command(arguments, output));
        let stdout = running.says_all(until).await;
        self.check(arguments, &Done { code: None, stdout, stderr: String::new() });
        running
    }

    /// Ends a command that continues, and checks the rest of its output.
    async fn ends(&mut self, arguments: &[&str], mut running: Running) {
        running.signal("-TERM");
        let mut stdout = String::new();
        while let Some(line) = running.next().await {
            stdout = format!("{stdout}{line}\n");
        }
        self.check(arguments, &Done { code: None, stdout, stderr: String::new() });
    }

    async fn store(&self, key: &str, value: impl Into<Vec<u8>>) {
        raw(&self.server).await.put(key, value, None).await.unwrap();
    }
}

#[tokio::test]
async fn every_field_of_every_command_is_shown_escaped() {
    let mut screen = Screen { server: server().await, checked: BTreeSet::new() };
    instances_are_escaped(&mut screen).await;
    queues_are_escaped(&mut screen).await;
    jobs_are_escaped(&mut screen).await;
    configuration_is_escaped(&mut screen).await;
    configuration_files_are_escaped(&mut screen).await;
    #[cfg(feature = "agent")]
    logs_of_the_agent_are_escaped(&mut screen).await;
    screen.shows(&["doctor", "--namespace", NAME]).await;
    assert_eq!(screen.checked, commands());
}

async fn instances_are_escaped(screen: &mut Screen) {
    let (metadata, path) = (format!("{VALUE}={VALUE}"), format!("unix:///tmp/{NAME}"));
    let details = ["--zone", VALUE, "--version", VALUE, "--meta", &metadata, "--id"];
    let publish = |id: &'static str| [&["publish", NAME, &path], &details[..], &[id]].concat();
    let register = |id: &'static str| [&["register", NAME, &path, "--ttl", "10s"], &details[..], &[id]].concat();
    screen.shows(&publish("fixed")).await;
    let owned = [&register(NAME)[..], &["--owner", TOKEN]].concat();
    let live = screen.begins(&owned, "json", "\"registered\"").await;
    let second = screen.begins(&register("second"), "text", "registered at").await;

    let resolved = screen.shows(&["resolve", NAME, "--wait", "5s"]).await;
    let instance = &objects(&resolved.stdout)[0];
    // JSON preserves the escaped values.
    assert_eq!((&instance["zone"], &instance["version"]), (&VALUE.into(), &VALUE.into()));
    assert_eq!((&instance["metadata"][VALUE], &instance["endpoints"][0]), (&VALUE.into(), &path.clone().into()));
    assert_eq!(run(enlist(&screen.server, ["resolve", NAME])).await.stdout.lines().count(), 4);
    screen.shows(&["resolve", "\u{200b}", "--fail-empty"]).await;
    assert_eq!(screen.shows(&["services"]).await.stdout.lines().count(), 1);
    for (output, until) in [("text", "3 instances"), ("json", "synced")] {
        drop(screen.begins(&["watch", NAME], output, until).await);
    }
    // A live table on a terminal, which receives only the command's own escape sequences.
    let mut shell = Shell::start(&screen.server).await;
    shell.types(&format!("$E watch {NAME}\n"));
    let shown = shell.shows("fixed").await + &shell.shows("\r\n").await;
    assert!(!shown.contains("\x1b]0") && !shown.contains(['\u{9b}', '\u{202e}', '\u{200b}', '\x07']), "{shown:?}");
    // Refusals, which name the instance and not the owner token.
    for refused in [publish(NAME), register(NAME), vec!["remove", NAME, NAME]] {
        let done = screen.shows(&refused).await;
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains("another owner"), "{done:?}");
    }
    screen.store("enlist/services/default/malformed/bad", VALUE).await;
    for arguments in [
        &["resolve", "malformed"][..],
        &["remove", "malformed", "bad"],
        &["remove", "malformed", "bad", "--force"],
        &["remove", NAME, "\u{200b}"],
        &["remove", NAME, "fixed"],
        &["remove", NAME, NAME, "--force"],
    ] {
        screen.shows(arguments).await;
    }
    screen.ends(&owned, live).await;
    screen.ends(&register("second"), second).await;
}

async fn queues_are_escaped(screen: &mut Screen) {
    let entry = json!({ "v": 1, "mode": "exclusive", "holder": VALUE }).to_string();
    screen.store(&format!("enlist/locks/default/other/{ENTRY}"), entry).await;
    let entry = json!({ "v": 1, "permits": 1, "granted": true, "holder": VALUE }).to_string();
    screen.store("enlist/semaphore-permits/default/other", r#"{"v":1,"permits":1}"#).await;
    screen.store(&format!("enlist/semaphores/default/other/{ENTRY}"), entry).await;
    let permits = ["lock", NAME, "--permits", "1", "--of", "1"];
    for output in ["text", "json"] {
        let held: [&[&str]; 3] = [&["lock", NAME], &permits, &["elect", NAME, VALUE]];
        let mut running = Vec::new();
        for arguments in held {
            running.push(screen.begins(arguments, output, "acquired").await);
        }
        drop(screen.begins(&["observe", NAME], output, "forged").await);
        if output == "text" {
            contended_queues_are_escaped(screen).await;
        }
        for (arguments, running) in held.into_iter().zip(running) {
            screen.ends(arguments, running).await;
        }
    }
    for arguments in [["locks", NAME], ["elections", NAME], ["leader", NAME], ["semaphores", NAME]] {
        screen.shows(&arguments).await;
    }
}

/// The queues of the name have a holder, and those of `other` one of another program.
async fn contended_queues_are_escaped(screen: &mut Screen) {
    for arguments in [
        &["lock", NAME, "--try"][..],
        &["lock", NAME, "--permits", "1", "--try"],
        &["elect", NAME, VALUE, "--wait", "100ms"],
        &["once", NAME, "--try", "--", "true"],
        &["semaphores", NAME, "--set", "1"],
    ] {
        screen.shows(arguments).await;
    }
    for arguments in [&["lock", "other", "--try"][..], &["lock", "other", "--permits", "1", "--try"]] {
        assert_eq!(objects(&screen.shows(arguments).await.stdout)[0]["holder"], VALUE);
    }
    let once = screen.shows(&["once", "other", "--try", "--", "true"]).await;
    assert_eq!(objects(&once.stderr)[0]["holder"], VALUE);
    for (command, kind) in [("locks", "lock"), ("semaphores", "semaphore")] {
        let queues = objects(&screen.shows(&[command]).await.stdout);
        let other = queues.iter().find(|queue| queue[kind] == "default/other").unwrap();
        assert_eq!(other["holders"][0]["process"], VALUE);
    }
    for arguments in [&["elections"][..], &["leader", NAME]] {
        assert_eq!(objects(&screen.shows(arguments).await.stdout)[0]["leader"], VALUE);
    }
}

async fn jobs_are_escaped(screen: &mut Screen) {
    for arguments in
        [&["once", NAME, "--", "false"][..], &["once", NAME, "--", "true"], &["once", NAME, "--again", "--", "true"]]
    {
        screen.shows(arguments).await;
    }
    screen.store("enlist/config/once:default/unreadable", VALUE).await;
    for arguments in [
        &["jobs"][..],
        &["jobs", NAME],
        &["jobs", "\u{200b}"],
        &["once", "unreadable", "--", "true"],
        &["forget", NAME],
        &["forget", "unreadable"],
    ] {
        screen.shows(arguments).await;
    }
}

async fn configuration_is_escaped(screen: &mut Screen) {
    let (lines, file) = (format!("first\n{VALUE}"), format!("{NAME}.json"));
    for value in ["first", &lines] {
        screen.shows(&["config", "set", NAME, value]).await;
    }
    for arguments in [
        &["config", "list", "--values"][..],
        &["config", "history", NAME, "--values"],
        &["config", "diff", NAME, "--from", "2"],
        &["config", "set", NAME, VALUE, "--create"],
        &["config", "set", &file, VALUE],
        &["config", "edit", NAME],
        &["config", "delete", "\u{200b}"],
        &["config", "get", "\u{200b}"],
    ] {
        screen.shows(arguments).await;
    }
    let json = run(enlist(&screen.server, ["config", "get", NAME, "--output", "json"])).await;
    assert_printable("a value as JSON", &json);
    assert_eq!(objects(&json.stdout)[0]["value"], lines);
    // Not on a terminal, the bytes are those of the value.
    assert_eq!(run(enlist(&screen.server, ["config", "get", NAME])).await.stdout, lines);
    for (output, until) in [("text", "= "), ("json", "synced")] {
        drop(screen.begins(&["config", "watch", "--values"], output, until).await);
    }
    // On a terminal they are escaped, except for the ends of lines.
    let mut shell = Shell::start(&screen.server).await;
    shell.types(&format!("$E config get {NAME}; echo do''ne\n"));
    let shown = shell.shows("done").await;
    assert!(shown.starts_with("first\r\nv\\u{1b}]0;title"), "{shown:?}");
    let hidden = |c: char| !['\r', '\n'].contains(&c) && enlist::escape::is_unprintable(c);
    assert!(!shown.contains(hidden), "{shown:?}");
}

async fn configuration_files_are_escaped(screen: &mut Screen) {
    let directory = tempfile::tempdir().unwrap();
    let values = directory.path().join(NAME).display().to_string();
    screen.shows(&["config", "export", &values]).await;
    let exported = screen.shows(&["config", "export", "-"]).await;
    assert!(objects(&exported.stdout).iter().any(|value| value["path"] == NAME), "{exported:?}");
    std::fs::write(format!("{values}/{NAME}"), VALUE).unwrap();
    std::fs::write(format!("{values}/new{NAME}"), VALUE).unwrap();
    for arguments in [
        &["config", "diff", "--dir", &values][..],
        &["config", "import", &values, "--dry-run"],
        &["config", "import", &values],
        &["config", "delete", NAME],
        &["config", "import", "\u{200b}"],
    ] {
        screen.shows(arguments).await;
    }
}

/// A client of HTTP asks for a service with a value that is no instance, which is logged.
#[cfg(feature = "agent")]
async fn logs_of_the_agent_are_escaped(screen: &mut Screen) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    screen.store("enlist/services/default/malformed/bad", VALUE).await;
    let arguments = ["agent", "--xds", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    drop(screen.begins(&arguments, "text", "xDS").await);
    let mut agent = Running::start(screen.command(&arguments, "json"));
    let printed = objects(&agent.says("http").await);
    let mut stream = tokio::net::TcpStream::connect(printed[0]["http"].as_str().unwrap()).await.unwrap();
    stream.write_all(b"GET /v1/services/default/malformed HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut response = String::new();
    enlist_testkit::soon("a response", stream.read_to_string(&mut response)).await.unwrap();
    let stderr = agent.warns("malformed").await;
    screen.check(&arguments, &Done { code: None, stdout: String::new(), stderr });
}
