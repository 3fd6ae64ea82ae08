//! Requests to a test server over etcd's JSON gateway and its pages for operators, which need no client.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Maximum time of a request, and of one for all metrics.
const LIMIT: Duration = Duration::from_secs(2);
const METRICS_LIMIT: Duration = Duration::from_secs(10);

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
    send(address, &format!("POST {path}"), body, LIMIT).await
}

/// Requests a page for operators, such as `/health`; `None` without an answer, or if it is negative.
pub(crate) async fn page(address: SocketAddr, path: &str) -> Option<String> {
    send(address, &format!("GET {path}"), "", LIMIT).await
}

/// Requests all metrics; `None` without an answer.
pub(crate) async fn metrics(address: SocketAddr) -> Option<String> {
    send(address, "GET /metrics", "", METRICS_LIMIT).await
}

/// Returns the sum of the values of a metric under all labels that `is_counted` accepts; `None` if there is none.
pub(crate) fn sum(metrics: &str, name: &str, is_counted: impl Fn(&str) -> bool) -> Option<f64> {
    let values = metrics.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let is_this = labels.is_empty() || labels.starts_with('{');
        (is_this && is_counted(labels)).then(|| value.trim_end().parse::<f64>().ok())?
    });
    values.reduce(|sum, value| sum + value)
}

/// Sends a request by HTTP/1.0, so that the answer is not divided into chunks.
async fn send(address: SocketAddr, method_and_path: &str, body: &str, limit: Duration) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!(
            "{method_and_path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.0 200").then_some(answer)
    };
    tokio::time::timeout(limit, ask).await.ok().flatten()
}

/// Returns the text or number under `field` of a JSON answer, in quotes as the gateway writes both.
pub(crate) fn text(answer: &str, field: &str) -> Option<String> {
    let (_, rest) = answer.split_once(&format!("\"{field}\":\""))?;
    let (text, _) = rest.split_once('"')?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request as Go does: by HTTP/1.1 in chunks of two kilobytes, by HTTP/1.0 in one piece.
    async fn serve(listener: TcpListener, body: String) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 1024];
        let read = stream.read(&mut request).await.unwrap();
        let answer = if String::from_utf8_lossy(&request[..read]).contains("HTTP/1.1") {
            let chunks = body.as_bytes().chunks(2048).map(String::from_utf8_lossy);
            let chunks: Vec<String> = chunks.map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunks.concat())
        } else {
            format!("HTTP/1.0 200 OK\r\n\r\n{body}")
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn metrics_are_read_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lines = |name| (0..200).map(move |at| format!("{name}{{at=\"{at}\"}} 1000"));
        let lines: Vec<String> = lines("a").chain(lines("ab")).chain(["alone 7".into()]).collect();
        let body = format!("# HELP a of\n{}\n", lines.join("\n"));
        let (metrics, ()) = tokio::join!(metrics(address), serve(listener, body));
        let metrics = metrics.unwrap();
        assert_eq!(sum(&metrics, "a", |_| true), Some(200_000.0));
        assert_eq!(sum(&metrics, "a", |labels| labels == "{at=\"3\"}"), Some(1000.0));
        assert_eq!((sum(&metrics, "alone", |_| true), sum(&metrics, "missing", |_| true)), (Some(7.0), None));
    }
}
