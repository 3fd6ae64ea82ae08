//! xDS and HTTP over TLS, with and without certificates of clients.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{net::SocketAddr, sync::Arc};

use enlist_agent::{Agent, AgentError, HttpOptions, TlsIdentity, XdsOptions};
use enlist_testkit::soon;
use support::{
    AdsClient, Store, TestAgent,
    authority::{Authority, HOST, channel, client_config, connect, health},
    local,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::{Channel, Identity};

#[tokio::test]
async fn plain_text_is_refused_beside_tls() {
    let (store, authority) = (Store::new(), Authority::new());
    let (certificate, key) = authority.issue(HOST);
    let agent = TestAgent::start(&store.agents, local().tls(TlsIdentity::new(certificate, key))).await;
    let mut client = AdsClient::over(channel(agent.address, authority.trusting()).await.unwrap()).await.unwrap();
    assert_eq!(client.assignment("greeter").await, []);
    let plain = Channel::from_shared(format!("http://{}", agent.address)).unwrap().connect().await;
    let refused = match plain {
        Ok(channel) => AdsClient::over(channel).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_authority() {
    let (store, authority, other) = (Store::new(), Authority::new(), Authority::new());
    let (certificate, key) = authority.issue(HOST);
    let identity = TlsIdentity::new(certificate, key).client_authority(authority.pem());
    let agent = TestAgent::start(&store.agents, local().tls(identity)).await;
    let of = |issuer: &Authority| {
        let (certificate, key) = issuer.issue("client.test");
        authority.trusting().identity(Identity::from_pem(certificate, key))
    };
    let mut client = AdsClient::over(channel(agent.address, of(&authority)).await.unwrap()).await.unwrap();
    assert_eq!(client.assignment("greeter").await, []);
    for config in [authority.trusting(), of(&other)] {
        // In TLS 1.3 the client learns of the refusal with its first request.
        let refused = match channel(agent.address, config).await {
            Ok(channel) => AdsClient::over(channel).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
}

#[tokio::test]
async fn silence_after_the_handshake_costs_the_slot() {
    let (store, authority) = (Store::new(), Authority::new());
    let (certificate, key) = authority.issue(HOST);
    let options = local().tls(TlsIdentity::new(certificate, key)).max_streams(1);
    let agent = TestAgent::start(&store.agents, options).await;
    let mut config = client_config(&authority, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut silent = connect(agent.address, config).await.unwrap();
    // The settings of the agent: the handshake has ended on both sides.
    silent.read_exact(&mut [0; 9]).await.unwrap();
    tokio::time::pause();
    let _ = soon("the connection ends", silent.read_to_end(&mut Vec::new())).await;
    tokio::time::resume();
    let mut client = AdsClient::over(channel(agent.address, authority.trusting()).await.unwrap()).await.unwrap();
    assert_eq!(client.assignment("greeter").await, []);
}

#[tokio::test]
async fn an_unusable_certificate_is_an_error() {
    let store = Store::new();
    let identity = TlsIdentity::new("no certificate", "no key");
    let options: XdsOptions = local().tls(identity);
    let error = Agent::builder(Arc::new(store.agents.clone())).xds(options).bind().await.unwrap_err();
    assert!(matches!(error, AgentError::Tls(_)), "{error:?}");
}

/// Starts an agent with HTTP over TLS.
async fn start_http(store: &Store, identity: TlsIdentity) -> (TestAgent, SocketAddr) {
    let http = HttpOptions::new().address(([127, 0, 0, 1], 0).into()).tls(identity);
    let agent = TestAgent::of(Agent::builder(Arc::new(store.agents.clone())).xds(local()).http(http)).await;
    let address = agent.http.unwrap();
    (agent, address)
}

#[tokio::test]
async fn http_is_encrypted() {
    let (store, authority) = (Store::new(), Authority::new());
    let (certificate, key) = authority.issue(HOST);
    let (_agent, http) = start_http(&store, TlsIdentity::new(certificate, key)).await;
    let response = health(http, &authority, None).await.unwrap();
    assert!(response.starts_with("HTTP/1.0 200"), "{response}");
    let mut plain = TcpStream::connect(http).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    let _ = plain.read_to_end(&mut read).await;
    assert!(!read.starts_with(b"HTTP"), "{read:?}");
}

#[tokio::test]
async fn http_clients_need_a_certificate() {
    let (store, authority, other) = (Store::new(), Authority::new(), Authority::new());
    let (certificate, key) = authority.issue(HOST);
    let identity = TlsIdentity::new(certificate, key).client_authority(authority.pem());
    let (_agent, http) = start_http(&store, identity).await;
    let response = health(http, &authority, Some(authority.issue("client.test"))).await.unwrap();
    assert!(response.starts_with("HTTP/1.0 200"), "{response}");
    for own in [None, Some(other.issue("client.test"))] {
        assert!(health(http, &authority, own).await.is_err());
    }
}

#[tokio::test]
async fn an_unusable_http_certificate_is_an_error() {
    let store = Store::new();
    let (certificate, key) = Authority::new().issue(HOST);
    for identity in [
        TlsIdentity::new("no certificate", "no key"),
        TlsIdentity::new("", key.clone()),
        TlsIdentity::new(certificate.clone(), ""),
        TlsIdentity::new(certificate, key).client_authority("no authority"),
    ] {
        let http = HttpOptions::new().address(([127, 0, 0, 1], 0).into()).tls(identity);
        let builder = Agent::builder(Arc::new(store.agents.clone())).xds(local()).http(http);
        let error = builder.bind().await.unwrap_err();
        assert!(matches!(error, AgentError::Tls(_)), "{error:?}");
    }
}
