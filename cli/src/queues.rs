//! `enlist locks` and `enlist elections`: the holders of locks, the leaders of elections, and the number of waiting
//! contenders.

use enlist::{ElectionQueue, LockMode, LockQueue, QueuedContender, Queues};
use serde_json::json;

use crate::{
    args::Global,
    output::{Failure, Output, To},
    table,
};

const LOCK_HEAD: [&str; 5] = ["LOCK", "HOLDER", "TOKEN", "MODE", "WAITING"];

const ELECTION_HEAD: [&str; 4] = ["ELECTION", "LEADER", "TOKEN", "WAITING"];

/// Shown in place of a holder while a lock delay is running.
const DELAY: &str = "(delay)";

fn mode(entry: &QueuedContender) -> &'static str {
    match entry.mode {
        LockMode::Exclusive => "exclusive",
        LockMode::Shared => "shared",
    }
}

/// Returns one row per holder, and one for a lock without a holder during its lock delay.
fn lock_rows(queue: &LockQueue) -> Vec<[String; 5]> {
    let row = |process: &str, token: &str, mode: &str| {
        let waiting = queue.waiting().len().to_string();
        [queue.name.to_string(), process.to_owned(), token.to_owned(), mode.to_owned(), waiting]
    };
    let holders = queue
        .holders()
        .iter()
        .map(|holder| row(holder.process.as_deref().unwrap_or("-"), &holder.token.to_string(), mode(holder)));
    holders.chain(queue.delayed.then(|| row(DELAY, "-", "-"))).collect()
}

fn lock_object(queue: &LockQueue) -> serde_json::Value {
    let holder =
        |entry: &QueuedContender| json!({ "process": entry.process, "token": entry.token.get(), "mode": mode(entry) });
    json!({
        "lock": queue.name.to_string(),
        "holders": queue.holders().iter().map(holder).collect::<Vec<_>>(),
        "waiting": queue.waiting().len(),
        "delayed": queue.delayed,
    })
}

/// Returns one row for the leader, or for an election without a leader during its delay.
fn election_rows(queue: &ElectionQueue) -> Vec<[String; 4]> {
    let row = |value: &str, token: &str| {
        [queue.name.to_string(), value.to_owned(), token.to_owned(), queue.waiting().len().to_string()]
    };
    let leader = queue.leader().map(|leader| row(&leader.value, &leader.token.to_string()));
    leader.into_iter().chain(queue.delayed.then(|| row(DELAY, "-"))).collect()
}

fn election_object(queue: &ElectionQueue) -> serde_json::Value {
    let leader = queue.leader();
    json!({
        "election": queue.name.to_string(),
        "leader": leader.map(|leader| &leader.value),
        "token": leader.map(|leader| leader.token.get()),
        "modified": leader.map(|leader| leader.modified.get()),
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
    show(LOCK_HEAD, held.iter().map(|queue| (lock_rows(queue), lock_object(queue))), output)?;
    // A lock is only listed as free if it was named.
    for queue in &free {
        show_without(format!("{} is free", queue.name), &lock_object(queue), output)?;
    }
    Ok(u8::from(!free.is_empty()))
}

pub(crate) async fn elections(global: &Global, name: Option<&str>, output: Output) -> Result<u8, Failure> {
    let etcd = global.client()?;
    let queues = match name {
        Some(name) => vec![etcd.election_queue(&global.lock(name)?).await?],
        None => etcd.election_queues(&global.namespace()?).await?,
    };
    let is_open = |queue: &ElectionQueue| queue.delayed || !queue.entries.is_empty();
    let (open, empty): (Vec<_>, Vec<_>) = queues.into_iter().partition(is_open);
    show(ELECTION_HEAD, open.iter().map(|queue| (election_rows(queue), election_object(queue))), output)?;
    // An election is only listed without candidates if it was named.
    for queue in &empty {
        show_without(format!("{} has no candidates", queue.name), &election_object(queue), output)?;
    }
    Ok(u8::from(!empty.is_empty()))
}

/// Prints queues as one table, or as one object each.
fn show<const N: usize>(
    head: [&str; N],
    queues: impl Iterator<Item = (Vec<[String; N]>, serde_json::Value)>,
    output: Output,
) -> Result<(), Failure> {
    let (rows, objects): (Vec<_>, Vec<_>) = queues.unzip();
    if output.json {
        for object in &objects {
            output.line(To::Stdout, "", object)?;
        }
    } else if !rows.is_empty() {
        for line in table::arrange(head, rows.into_iter().flatten()) {
            output.line(To::Stdout, line, &())?;
        }
    }
    Ok(())
}

/// Prints a queue that was named and has neither entries nor a running delay.
fn show_without(text: String, object: &serde_json::Value, output: Output) -> Result<(), Failure> {
    let to = if output.json { To::Stdout } else { To::Stderr };
    Ok(output.line(to, text, object)?)
}
