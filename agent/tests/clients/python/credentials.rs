//! Tokens and certificates, as the documentation prints them for the bootstrap.

use std::{fs, net::SocketAddr};

use enlist_agent::{BearerToken, TlsIdentity, XdsOptions};
use tempfile::TempDir;

use crate::{
    caller::Caller,
    page,
    python::calls,
    server::Server,
    support::{Store, TestAgent, authority::Authority, instance, local},
};

/// A JWT of the algorithm `none`, which ends in the year 2100. gRPC reads the end only.
const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9.c2lnbmF0dXJl";

const SECTION: &str = "## Tokens and certificates";

const NONE: [&str; 0] = [];

/// The files that bootstraps name.
struct Files {
    folder: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let client = authority.issue("client.test");
        let contents = [
            ("ca.pem", authority.pem()),
            ("client.pem", client.0),
            ("client.key", client.1),
            ("token.jwt", TOKEN.into()),
        ];
        for (name, content) in contents {
            fs::write(folder.path().join(name), content).unwrap();
        }
        Self { folder, authority }
    }

    /// Options of an agent with a certificate.
    fn options(&self, configure: impl FnOnce(TlsIdentity) -> TlsIdentity) -> XdsOptions {
        let (certificate, key) = self.authority.issue("127.0.0.1");
        local().tls(configure(TlsIdentity::new(certificate, key)))
    }

    /// Starts calls with these printed members of the bootstrap.
    fn call(&self, agent: SocketAddr, credentials: &str) -> Caller {
        let mut command = calls("xds:///greeter");
        let bootstrap = format!(
            r#"{{"xds_servers":[{{"server_uri":"{agent}",{credentials},"server_features":["xds_v3"]}}],
            "node":{{"id":"caller-1"}}}}"#
        );
        command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap).current_dir(&self.folder);
        command.env("GRPC_EXPERIMENTAL_XDS_BOOTSTRAP_CALL_CREDS", "true");
        Caller::start(command)
    }
}

/// The printed members for a token: the credentials of the channel, and those of calls.
fn with_token() -> String {
    page::block("agent.md", SECTION, "text")
}

/// The printed credentials of the channel for a token, without the token.
fn without_token() -> String {
    let members = with_token();
    let (channel, calls) = members.split_once("\"call_creds\"").expect("the token is the second member");
    assert!(calls.contains("token.jwt"), "{members}");
    channel.trim_end().trim_end_matches(',').to_owned()
}

/// The printed credentials of the channel for a certificate.
fn with_certificate() -> String {
    format!("\"channel_creds\": {}", page::block("agent.md", SECTION, "json"))
}

#[tokio::test]
#[ignore = "needs Python: cargo xtask clients"]
async fn the_documented_token_is_accepted() {
    let (store, files) = (Store::new(), Files::new());
    let options = files.options(|identity| identity).token(BearerToken::new(TOKEN).unwrap());
    let agent = TestAgent::start(&store.agents, options).await;
    let server = Server::start("greeter-1").await;
    let _registration = store.register("greeter", instance("greeter-1", server.port)).await;
    let mut caller = files.call(agent.address, &with_token());
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
}

#[tokio::test]
#[ignore = "needs Python: cargo xtask clients"]
async fn clients_without_the_token_are_refused() {
    let (store, files) = (Store::new(), Files::new());
    let options = files.options(|identity| identity).token(BearerToken::new(TOKEN).unwrap());
    let agent = TestAgent::start(&store.agents, options).await;
    let server = Server::start("greeter-1").await;
    let _registration = store.register("greeter", instance("greeter-1", server.port)).await;
    let report = files.call(agent.address, &without_token()).fails().await;
    assert!(report.failures.iter().all(|failure| failure.contains("the token is missing or wrong")), "{report:?}");
}

#[tokio::test]
#[ignore = "needs Python: cargo xtask clients"]
async fn the_documented_certificate_is_accepted() {
    let (store, files) = (Store::new(), Files::new());
    let options = files.options(|identity| identity.client_authority(files.authority.pem()));
    let agent = TestAgent::start(&store.agents, options).await;
    let server = Server::start("greeter-1").await;
    let _registration = store.register("greeter", instance("greeter-1", server.port)).await;
    let mut caller = files.call(agent.address, &with_certificate());
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
}

#[tokio::test]
#[ignore = "needs Python: cargo xtask clients"]
async fn clients_without_a_certificate_are_refused() {
    let (store, files) = (Store::new(), Files::new());
    let options = files.options(|identity| identity.client_authority(files.authority.pem()));
    let agent = TestAgent::start(&store.agents, options).await;
    let server = Server::start("greeter-1").await;
    let _registration = store.register("greeter", instance("greeter-1", server.port)).await;
    let report = files.call(agent.address, &without_token()).fails().await;
    assert!(report.failures.iter().all(|failure| failure.starts_with("UNAVAILABLE")), "{report:?}");
    // Nothing else is missing.
    let mut caller = files.call(agent.address, &with_certificate());
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
}
