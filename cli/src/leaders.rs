//! `enlist leader` and `enlist observe`.

use enlist::{Election, Freshness, Leader, LeaderWatcher, LockName, with_causes};
use serde_json::json;

use crate::{
    args::Global,
    output::{Failure, Output, To},
    signals::Signals,
};

fn leader_object(name: &LockName, leader: Option<&Leader>) -> serde_json::Value {
    json!({
        "election": name.to_string(),
        "leader": leader.map(|leader| &leader.value),
        "token": leader.map(|leader| leader.token.get()),
        "modified": leader.map(|leader| leader.modified.get()),
    })
}

pub(crate) async fn leader(global: &Global, name: &str, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (global.client()?, global.lock(name)?);
    let leader = etcd.leader(&name).await?;
    let object = leader_object(&name, leader.as_ref());
    if let Some(leader) = &leader {
        output.line(To::Stdout, &leader.value, &object)?;
    } else {
        let to = if output.json { To::Stdout } else { To::Stderr };
        output.line(to, format!("{name} has no leader"), &object)?;
    }
    Ok(u8::from(leader.is_none()))
}

pub(crate) async fn observe(global: &Global, name: &str, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (global.client()?, global.lock(name)?);
    let mut signals = Signals::ending()?;
    let mut watcher: LeaderWatcher = etcd.observe(&name).await?;
    loop {
        let change = tokio::select! {
            change = watcher.next() => change?,
            signal = signals.next() => return Ok(signal.as_exit()),
        };
        let cause = match &change.freshness {
            Freshness::Stale { cause, .. } => Some(with_causes(cause).to_string()),
            _ => None,
        };
        let mut text = match &change.leader {
            Some(leader) => format!("{} (token {})", leader.value, leader.token),
            None => "no leader".to_owned(),
        };
        if let Some(cause) = &cause {
            text = format!("{text}, not up to date: {cause}");
        }
        let mut object = leader_object(&name, change.leader.as_ref());
        object["live"] = cause.is_none().into();
        object["cause"] = cause.into();
        output.line(To::Stdout, text, &object)?;
    }
}
