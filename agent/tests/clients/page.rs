//! The pages of documentation whose programs and configurations are run as printed.

use std::{fs, process::Stdio, time::Duration};

use enlist_testkit::soon;
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

use crate::{
    MACHINE,
    group::ProcessGroup,
    server::Server,
    support::{Store, TestAgent, instance, local},
};

/// Address of the agent on the pages. Tests replace it by that of a free port.
const DOCUMENTED: &str = "127.0.0.1:18000";

/// Name of the file with the bootstrap on the pages.
const BOOTSTRAP: &str = "bootstrap.json";

/// Heading of a client's program on its page.
pub(crate) const PROGRAM: &str = "## Program";

/// Maximum time of a program that is built first.
const LONGEST_BUILD: Duration = Duration::from_secs(300);

/// Returns the first block of this language below this heading of a page.
pub(crate) fn block(page: &str, heading: &str, language: &str) -> String {
    let text = fs::read_to_string(format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (_, section) = text.split_once(&format!("\n{heading}\n")).expect("the page has the section");
    let (_, rest) = section.split_once(&format!("```{language}\n")).expect("the section has a block");
    rest.split_once("```").unwrap().0.to_owned()
}

/// Returns the bootstrap on the page of a client.
pub(crate) fn bootstrap(page: &str) -> String {
    block(page, "## Bootstrap", "json")
}

/// Runs a printed program with a printed bootstrap and two servers. Returns the answers that it printed.
pub(crate) async fn greets(mut program: Command, bootstrap: &str) -> String {
    let _machine = MACHINE.read().await;
    let folder = tempfile::tempdir().unwrap();
    program.env("GRPC_XDS_BOOTSTRAP", folder.path().join(BOOTSTRAP));
    soon("the client ends", answers(program, bootstrap, &folder)).await
}

/// Runs the printed commands of the page of a client in a folder with its files, as [`greets`] does.
pub(crate) async fn greets_as_printed(mut shell: Command, page: &str, files: &[(&str, &str)]) {
    let _machine = MACHINE.read().await;
    let folder = tempfile::tempdir().unwrap();
    for (path, language) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, block(page, PROGRAM, language)).unwrap();
    }
    shell.args(["-ec", &block(page, PROGRAM, "sh")]).current_dir(folder.path());
    timeout(LONGEST_BUILD, answers(shell, &bootstrap(page), &folder)).await.expect("the client is built, and ends");
}

/// Runs a program whose bootstrap is in the folder.
async fn answers(mut program: Command, bootstrap: &str, folder: &TempDir) -> String {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut running = Vec::new();
    for name in ["greeter-1", "greeter-2"] {
        let server = Server::start(name).await;
        running.push((store.register("greeter", instance(name, server.port)).await, server));
    }
    assert!(bootstrap.contains(DOCUMENTED), "{bootstrap}");
    fs::write(folder.path().join(BOOTSTRAP), bootstrap.replace(DOCUMENTED, &agent.address.to_string())).unwrap();
    let mut group = ProcessGroup::start(program.stdout(Stdio::piped()));
    let mut printed = String::new();
    group.process().stdout.take().unwrap().read_to_string(&mut printed).await.unwrap();
    assert!(group.process().wait().await.unwrap().success(), "{printed}");
    assert_eq!(printed.lines().count(), 10, "{printed}");
    assert!(printed.lines().all(|line| line.contains("this is greeter-")), "{printed}");
    printed
}
