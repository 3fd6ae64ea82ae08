//! Requests to a test server over etcd's JSON gateway, which needs no client.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Requests the members; `None` without an answer.
pub(crate) async fn members(address: SocketAddr) -> Option<String> {
    ask(address, "/v3/cluster/member/list").await
}

/// Sends an empty request; `None` without an answer.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> Option<String> {
    tell(address, path, "{}").await
}

/// Sends `body`; `None` without an answer.
pub(crate) async fn tell(address: SocketAddr, path: &str, body: &str) -> Option<String> {
    send(address, &format!("POST {path}"), body).await
}

/// Requests a page for operators, such as `/health`; `None` without an answer, or if it is negative.
pub(crate) async fn page(address: SocketAddr, path: &str) -> Option<String> {
    send(address, &format!("GET {path}"), "").await
}

async fn send(address: SocketAddr, method_and_path: &str, body: &str) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!(
            "{method_and_path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten()
}

/// Returns the text or number under `field` of a JSON answer, in quotes as the gateway writes both.
pub(crate) fn text(answer: &str, field: &str) -> Option<String> {
    let (_, rest) = answer.split_once(&format!("\"{field}\":\""))?;
    let (text, _) = rest.split_once('"')?;
    Some(text.to_owned())
}
