//! `enlist locks`: who holds which lock, and how many wait.

use enlist::LockMode;
use enlist_etcd::{LockQueue, QueueEntry};
use serde_json::json;

use crate::{
    args::Global,
    output::{Failure, Output, To},
    table,
};

const HEAD: [&str; 5] = ["LOCK", "HOLDER", "TOKEN", "MODE", "WAITING"];

fn mode(entry: &QueueEntry) -> &'static str {
    match entry.mode {
        LockMode::Exclusive => "exclusive",
        LockMode::Shared => "shared",
    }
}

/// One row for each holder.
fn rows(queue: &LockQueue) -> impl Iterator<Item = [String; 5]> {
    queue.holders().iter().map(|holder| {
        let process = holder.process.clone().unwrap_or_else(|| "-".to_owned());
        let token = holder.token.to_string();
        [queue.name.to_string(), process, token, mode(holder).to_owned(), queue.waiting().len().to_string()]
    })
}

fn object(queue: &LockQueue) -> serde_json::Value {
    let holder =
        |entry: &QueueEntry| json!({ "process": entry.process, "token": entry.token.get(), "mode": mode(entry) });
    json!({
        "lock": queue.name.to_string(),
        "holders": queue.holders().iter().map(holder).collect::<Vec<_>>(),
        "waiting": queue.waiting().len(),
    })
}

pub(crate) async fn locks(global: &Global, name: Option<&str>, output: Output) -> Result<u8, Failure> {
    let etcd = global.client()?;
    let queues = match name {
        Some(name) => vec![etcd.lock_queue(&global.lock(name)?).await?],
        None => etcd.lock_queues(&global.namespace()?).await?,
    };
    let (held, free): (Vec<_>, Vec<_>) = queues.into_iter().partition(|queue| !queue.entries.is_empty());
    if output.json {
        for queue in &held {
            output.line(To::Stdout, "", &object(queue))?;
        }
    } else if !held.is_empty() {
        for line in table::arrange(HEAD, held.iter().flat_map(rows)) {
            output.line(To::Stdout, line, &())?;
        }
    }
    // Only a lock that was asked for can be free.
    for queue in &free {
        output.line(To::Stderr, format!("nobody holds {}", queue.name), &object(queue))?;
    }
    Ok(u8::from(!free.is_empty()))
}
