//! `enlist locks`: the holders of locks and the number of waiting contenders.

use enlist::LockMode;
use enlist_etcd::{LockQueue, QueuedContender};
use serde_json::json;

use crate::{
    args::Global,
    output::{Failure, Output, To},
    table,
};

const HEAD: [&str; 5] = ["LOCK", "HOLDER", "TOKEN", "MODE", "WAITING"];

fn mode(entry: &QueuedContender) -> &'static str {
    match entry.mode {
        LockMode::Exclusive => "exclusive",
        LockMode::Shared => "shared",
    }
}

/// Returns one row per holder, and one for a lock without a holder during its lock delay.
fn rows(queue: &LockQueue) -> impl Iterator<Item = [String; 5]> {
    let row = |process: &str, token: &str, mode: &str| {
        let waiting = queue.waiting().len().to_string();
        [queue.name.to_string(), process.to_owned(), token.to_owned(), mode.to_owned(), waiting]
    };
    let holders = queue
        .holders()
        .iter()
        .map(move |holder| row(holder.process.as_deref().unwrap_or("-"), &holder.token.to_string(), mode(holder)));
    holders.chain(queue.delayed.then(|| row("(delay)", "-", "-")))
}

fn object(queue: &LockQueue) -> serde_json::Value {
    let holder =
        |entry: &QueuedContender| json!({ "process": entry.process, "token": entry.token.get(), "mode": mode(entry) });
    json!({
        "lock": queue.name.to_string(),
        "holders": queue.holders().iter().map(holder).collect::<Vec<_>>(),
        "waiting": queue.waiting().len(),
        "delayed": queue.delayed,
    })
}

pub(crate) async fn locks(global: &Global, name: Option<&str>, output: Output) -> Result<u8, Failure> {
    let etcd = global.client()?;
    let queues = match name {
        Some(name) => vec![etcd.lock_queue(&global.lock(name)?).await?],
        None => etcd.lock_queues(&global.namespace()?).await?,
    };
    let is_held = |queue: &LockQueue| queue.delayed || !queue.entries.is_empty();
    let (held, free): (Vec<_>, Vec<_>) = queues.into_iter().partition(is_held);
    if output.json {
        for queue in &held {
            output.line(To::Stdout, "", &object(queue))?;
        }
    } else if !held.is_empty() {
        for line in table::arrange(HEAD, held.iter().flat_map(rows)) {
            output.line(To::Stdout, line, &())?;
        }
    }
    // A lock is only listed as free if it was named.
    for queue in &free {
        let to = if output.json { To::Stdout } else { To::Stderr };
        output.line(to, format!("{} is free", queue.name), &object(queue))?;
    }
    Ok(u8::from(!free.is_empty()))
}
