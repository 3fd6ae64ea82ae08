//! The commands of the guide on moving a fleet, run as printed, but for those that build the programs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use enlist_testkit::{EtcdServer, Provider, ServerOptions, soon};
use tokio::sync::mpsc;

const GUIDE: &str = include_str!("../../docs/guides/moving-a-go-fleet.md");

/// The etcd of the guide.
const DOCUMENTED: &str = "http://127.0.0.1:2379";

/// Kills all processes of the script when its standard input is closed, which happens when the test ends.
const GUARD: &str = "{ cat >/dev/null; kill -9 0; } <&0 >/dev/null &\n";

/// Returns the blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    GUIDE.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// A shell that runs a script. Dropping it closes the standard input, so that [`GUARD`] ends all of it.
struct Shell {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Shell {
    fn start(script: &str, server: &EtcdServer, folder: &Path) -> Self {
        let mut command = Command::new("bash");
        command.args(["-e", "-u", "-o", "pipefail", "-c", &format!("{GUARD}{script}")]);
        command.current_dir(folder).process_group(0).env_remove("ENLIST_ADVERTISE");
        command.env("ENLIST_ENDPOINTS", server.url()).env("ETCDCTL_ENDPOINTS", server.url()).env("PATH", programs());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// Returns what the script prints until all its processes have ended.
    async fn output(mut self) -> Vec<String> {
        let mut printed = Vec::new();
        while let Some(line) = soon(&format!("the line after {printed:#?}"), self.lines.recv()).await {
            printed.push(line);
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {printed:#?}");
        printed
    }
}

/// Returns a search path with the programs of this workspace, and with the `etcdctl` of the etcd of the tests.
fn programs() -> OsString {
    let test = env::current_exe().unwrap();
    let folder = test.parent().unwrap().parent().unwrap();
    let examples = folder.join("examples");
    for program in [folder.join("enlist"), examples.join("greeter_server"), examples.join("migrating_server")] {
        assert!(program.is_file(), "there is no {}: the first block of the guide builds it", program.display());
    }
    let folder_of =
        |variable| env::var_os(variable).and_then(|program| Some(PathBuf::from(program).parent()?.to_owned()));
    let given = ["ENLIST_ETCDCTL_BIN", "ENLIST_ETCD_BIN"].into_iter().filter_map(folder_of);
    let known = env::var_os("PATH").unwrap_or_default();
    let paths = [folder.to_owned(), examples].into_iter().chain(given).chain(env::split_paths(&known));
    env::join_paths(paths).unwrap()
}

/// Replaces ports and leases, which each run chooses anew.
fn without_numbers(line: &str) -> String {
    let mut kept = String::new();
    let mut digits = String::new();
    for character in line.chars().chain(['\n']) {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        kept.push_str(if digits.len() < 4 { &digits } else { "N" });
        digits.clear();
        kept.push(character);
    }
    kept.trim_end().to_owned()
}

#[tokio::test]
async fn the_guide_on_moving_a_fleet_works() {
    let server = EtcdServer::start_with(Provider::own(), ServerOptions::new()).await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide");
    std::fs::create_dir_all(folder.join("target")).unwrap();
    let commands = blocks("sh");
    let [build, commands @ ..] = &commands[..] else { panic!("the guide has commands") };
    assert!(build.contains("cargo build "), "{build}");
    let script = commands.concat();
    assert!(script.contains(DOCUMENTED), "{script}");
    let printed = Shell::start(&script.replace(DOCUMENTED, &server.url()), &server, &folder).output().await;
    let mut printed_after = printed.iter().map(|line| without_numbers(line));
    let documented = blocks("text").concat();
    assert!(documented.lines().count() > 10, "{documented}");
    for line in documented.lines() {
        let wanted = without_numbers(line);
        assert!(printed_after.any(|line| line == wanted), "{wanted:?} is missing, or in another order: {printed:#?}");
    }
    let keys = printed.iter().filter(|line| line.contains("greeter/")).count();
    assert_eq!(keys, 4, "no server leaves a key to those after it: {printed:#?}");
}
