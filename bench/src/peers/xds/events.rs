//! Clients of the agent's events: some read one service, others request everything and read nothing.

use std::{collections::HashSet, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::mpsc,
};

use super::changes::{Changes, number};
use crate::measure::Result;

/// Requests the events of a service, or of all without one.
async fn request(port: u16, service: Option<&str>) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let query = service.map(|service| format!("?service={service}")).unwrap_or_default();
    stream.write_all(format!("GET /v1/events{query} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await?;
    Ok(stream)
}

/// Follows a service. Sends to `ready` once it has its state.
pub(super) async fn follow(port: u16, service: String, changes: Arc<Changes>, ready: mpsc::Sender<()>) -> Result {
    let mut stream = BufReader::new(request(port, Some(&service)).await?);
    let (mut line, mut known, mut ready) = (Vec::new(), HashSet::new(), Some(ready));
    while stream.read_until(b'\n', &mut line).await? > 0 {
        let text = String::from_utf8_lossy(&line);
        if text.starts_with("data: ") {
            changes.seen(hosts(&text).filter_map(number), &mut known);
        }
        if text.starts_with("event: synced")
            && let Some(ready) = ready.take()
        {
            ready.send(()).await?;
        }
        line.clear();
    }
    Err("the agent has ended the events".into())
}

/// Requests all events, and reads none.
pub(super) async fn mute(port: u16) -> Result<TcpStream> {
    request(port, None).await
}

/// Returns the hosts of endpoints in a text.
fn hosts(text: &str) -> impl Iterator<Item = &str> {
    text.split("grpc://").skip(1).filter_map(|rest| Some(rest.split_once(':')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_of_endpoints() {
        let text = r#"data: {"instance":{"endpoints":["grpc://10.0.0.1:8080","grpc://10.0.0.2:80"]}}"#;
        assert_eq!(hosts(text).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
    }
}
