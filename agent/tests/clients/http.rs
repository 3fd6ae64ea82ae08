//! HTTP with programs that users have: curl as printed, and schemathesis with the document of `OpenAPI`.

use std::{net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use enlist::{Lock as _, LockName, LockOptions};
use enlist_agent::{Agent, HttpOptions};
use enlist_testkit::soon;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use crate::{
    page, supplied,
    support::{Store, TestAgent, instance, local},
};

/// Address of the agent on the page. Tests replace it by that of a free port.
pub(crate) const DOCUMENTED: &str = "127.0.0.1:18001";

/// Maximum time of all generated requests.
const GENERATED: Duration = Duration::from_secs(240);

/// Starts an agent with HTTP.
pub(crate) async fn start(store: &Store) -> (TestAgent, SocketAddr) {
    let http = HttpOptions::new().address(([127, 0, 0, 1], 0).into());
    let client = Arc::new(store.agents.clone());
    let agent = TestAgent::of(Agent::builder(client.clone()).queues(client).xds(local()).http(http)).await;
    let address = agent.http.unwrap();
    (agent, address)
}

/// Sends a request to a server on this host. Returns the body of the response.
pub(crate) async fn exchange(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    send(address, &format!("{method} {path} HTTP/1.1"), &length, body).await
}

/// Requests a path with a token, by HTTP/1.0, so that the response is not divided into chunks. Returns its body.
pub(crate) async fn get(address: SocketAddr, path: &str, token: Option<&str>) -> std::io::Result<String> {
    let header = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    send(address, &format!("GET {path} HTTP/1.0"), &header.unwrap_or_default(), "").await
}

async fn send(address: SocketAddr, request_line: &str, headers: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("{request_line}\r\nhost: {address}\r\nconnection: close\r\n");
    stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).await?;
    let mut read = Vec::new();
    // The server may keep the connection open.
    while !is_complete(&read) && stream.read_buf(&mut read).await? > 0 {}
    let text = String::from_utf8_lossy(&read);
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

/// Returns `true` for a response that has the length which it states.
fn is_complete(response: &[u8]) -> bool {
    let text = String::from_utf8_lossy(response).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

#[tokio::test]
#[ignore = "needs curl: cargo xtask clients"]
async fn the_documented_commands_work_as_printed() {
    let store = Store::new();
    let (_agent, address) = start(&store).await;
    let _registered = store.register("greeter", instance("a", 8080)).await;
    let commands = page::block("clients/curl.md", "## Commands", "sh");
    let commands: Vec<_> = commands.lines().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        assert!(command.contains(DOCUMENTED), "{command}");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("exec {}", command.replace(DOCUMENTED, &address.to_string())));
        let mut shell = shell.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut output = shell.stdout.take().unwrap();
        let mut read = Vec::new();
        let complete = async {
            while !String::from_utf8_lossy(&read).contains("event: synced") {
                if output.read_buf(&mut read).await.unwrap() == 0 {
                    break;
                }
            }
        };
        soon("the output", complete).await;
        let printed = String::from_utf8_lossy(&read).into_owned();
        let expected = if command.ends_with("/services") { "greeter" } else { "\"id\":\"a\"" };
        assert!(printed.contains(expected), "{command}: {printed}");
    }
}

/// Statuses, media types, headers and bodies of many requests, valid and not, are as documented.
#[tokio::test]
#[ignore = "needs Python: cargo xtask clients"]
async fn the_interface_is_as_its_document_says() {
    let store = Store::new();
    let (_agent, address) = start(&store).await;
    let _registered = store.register("greeter", instance("a", 8080).with_zone("eu-1a").with_metadata("k", "v")).await;
    let _held = store.services.acquire(&LockName::parse("jobs").unwrap(), LockOptions::new()).await.unwrap();
    let mut command = Command::new(supplied("ENLIST_CLIENT_SCHEMATHESIS"));
    command.args(["run", &format!("http://{address}/v1/openapi.json")]);
    command.args(["--checks", "all", "--max-examples", "50", "--seed", "1", "--no-color"]);
    // The length of names is limited in bytes, which a schema cannot state.
    command.args(["--exclude-checks", "positive_data_acceptance"]);
    // It leaves files.
    let folder = tempfile::tempdir().unwrap();
    // The stream of events does not end. Its first ones are checked.
    std::fs::write(folder.path().join("schemathesis.toml"), "max-stream-events = 2\n").unwrap();
    command.current_dir(&folder).kill_on_drop(true);
    let output = tokio::time::timeout(GENERATED, command.output()).await.unwrap().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("generated"), "{printed}");
}
