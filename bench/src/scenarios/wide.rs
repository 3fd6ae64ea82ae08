//! A channel to 10,000 connected instances, next to as many connections of tonic.

use std::{process::Stdio, sync::Arc, time::Duration};

use enlist::{Directory, Endpoint, Instance, InstanceId, Moment, Registry, ServiceRef, ServiceView};
use enlist_grpc::{Channel, InstanceState};
use enlist_memory::MemoryStore;
use futures::{StreamExt, TryStreamExt};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    measure::{Result, Spread, Turns, processor_time},
    report::{Bound, Report},
    world::{micros, most_files},
};

/// Number of concurrent dials of the reference, as the default of the channel.
const CONCURRENT_DIALS: usize = 64;

/// Number of instances.
const INSTANCES: u32 = 10_000;

/// Length of the measurement of the idle channel.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) async fn run(report: &mut Report) -> Result {
    // Open files: the connections, and those of the process itself.
    if most_files()? < u64::from(INSTANCES) + 200 {
        return Err("too few files may be open".into());
    }
    let (mut times, mut processor) = (Turns::default(), Turns::default());
    for round in 0..3 {
        let (time, used) = {
            let (_server, port) = server().await?;
            let view = view(port).await?;
            let (begun, used) = (Moment::now(), processor_time());
            let channel = Channel::new(&view)?;
            until_all_are_ready(&channel).await?;
            let measured = (micros(begun.elapsed()) / 1e3, (processor_time() - used) / 1e3);
            if round == 0 {
                let used = processor_time();
                tokio::time::sleep(IDLE).await;
                let used = (processor_time() - used) / micros(IDLE) * 100.0;
                let case = "processor time of 10,000 idle connections, of one core";
                report.number("wide", case, "%", Spread::exactly(used), None);
            }
            channel.close(Duration::from_secs(10)).await?;
            measured
        };
        times.ours.push(time);
        processor.ours.push(used);
        let (time, used) = tonics().await?;
        times.reference.push(time);
        processor.reference.push(used);
    }
    let case = "10,000 ready, beside tonic's connections";
    report.turns("wide", case, "ms", &times, Some(Bound::AtMost(2.0)));
    report.turns("wide", format!("{case}: processor"), "ms", &processor, Some(Bound::AtMost(2.0)));
    Ok(())
}

/// Starts the server. Returns its process and its port.
async fn server() -> Result<(Child, u16)> {
    let program = std::env::current_exe()?.with_file_name("mute");
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let port = BufReader::new(output).lines().next_line().await?.ok_or("no port")?.parse()?;
    Ok((child, port))
}

/// Addresses of the loopback network, all of the same server.
fn endpoints(port: u16) -> impl Iterator<Item = String> {
    (0..INSTANCES).map(move |n| {
        let [_, _, high, low] = n.to_be_bytes();
        format!("127.1.{high}.{low}:{port}")
    })
}

async fn view(port: u16) -> Result<ServiceView> {
    let (client, service) = (MemoryStore::new().client(), ServiceRef::parse("wide")?);
    for endpoint in endpoints(port) {
        let instance = Instance::new(InstanceId::parse(&endpoint)?, [Endpoint::parse(&endpoint)?])?;
        client.publish(&service, instance).await?;
    }
    let view = Directory::new(Arc::new(client)).view(&service);
    view.ready().await?;
    Ok(view)
}

async fn until_all_are_ready(channel: &Channel) -> Result {
    let begun = Moment::now();
    loop {
        let all = channel.instances();
        let ready = all.iter().filter(|one| one.state == InstanceState::Ready).count();
        if ready == INSTANCES as usize {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(format!("{ready} ready").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The same connections with the same concurrency, without a channel.
async fn tonics() -> Result<(f64, f64)> {
    let (_server, port) = server().await?;
    let (begun, used) = (Moment::now(), processor_time());
    let dials = endpoints(port).map(|endpoint| async move {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            tonic::transport::Endpoint::from_shared(format!("http://{endpoint}"))?.connect().await?,
        )
    });
    let connections: Vec<_> = futures::stream::iter(dials).buffer_unordered(CONCURRENT_DIALS).try_collect().await?;
    let measured = (micros(begun.elapsed()) / 1e3, (processor_time() - used) / 1e3);
    drop(connections);
    Ok(measured)
}
