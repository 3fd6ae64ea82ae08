//! Calls a service 500 times a second. For each number N on the standard input, it waits until N calls have ended since
//! the former report, and prints a report.

use std::{
    collections::BTreeMap,
    error::Error,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::mpsc,
    task::LocalSet,
};
use tonic::{Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;
use tonic_xds::{XdsChannelBuilder, XdsChannelConfig, XdsChannelGrpc, XdsUri};

const CALLERS: usize = 5;
const INTERVAL: Duration = Duration::from_millis(10);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time by which the calls of a caller can be late, and are made up for.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Result and duration of a call.
type Call = (Result<String, Status>, Duration);

async fn call_forever(mut client: Grpc<XdsChannelGrpc>, calls: mpsc::Sender<Call>) {
    let mut due = tokio::time::Instant::now();
    loop {
        tokio::time::sleep_until(due).await;
        due = (due + INTERVAL).max(tokio::time::Instant::now() - MAX_DELAY);
        let begun = Instant::now();
        let greeting = tokio::time::timeout(TIMEOUT, say_hello(&mut client)).await;
        let greeting = greeting.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        if calls.send((greeting, begun.elapsed())).await.is_err() {
            return;
        }
    }
}

async fn say_hello(client: &mut Grpc<XdsChannelGrpc>) -> Result<String, Status> {
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/hello.Greeter/SayHello");
    let codec = ProstCodec::<String, String>::default();
    let answer = client.unary(Request::new("caller".to_owned()), path, codec).await;
    answer.map(tonic::Response::into_inner)
}

/// Returns a report of this number of calls.
async fn report(calls: &mut mpsc::Receiver<Call>, number: usize) -> serde_json::Value {
    let mut servers = BTreeMap::<String, u32>::new();
    let (mut failures, mut slowest) = (Vec::new(), Duration::ZERO);
    for _ in 0..number {
        let Some((greeting, took)) = calls.recv().await else { break };
        match greeting {
            Ok(text) => *servers.entry(text.rsplit(' ').next().unwrap_or_default().to_owned()).or_default() += 1,
            Err(status) => failures.push(format!("{:?}: {}", status.code(), status.message())),
        }
        slowest = slowest.max(took);
    }
    json!({ "servers": servers, "failures": failures, "slowest_ms": slowest.as_millis() })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("the argument is the target")?;
    let channel = XdsChannelBuilder::new(XdsChannelConfig::new(XdsUri::parse(&target)?)).build_grpc_channel()?;
    // Calls go on between two reports, and all of them are in the next one.
    let (sender, mut calls) = mpsc::channel(1 << 20);
    let callers = LocalSet::new();
    for _ in 0..CALLERS {
        callers.spawn_local(call_forever(Grpc::new(channel.clone()), sender.clone()));
    }
    let reports = async {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let number = calls.len().max(line.parse()?);
            println!("{}", report(&mut calls, number).await);
        }
        Ok(())
    };
    callers.run_until(reports).await
}
