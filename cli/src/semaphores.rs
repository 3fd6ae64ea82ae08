//! `enlist semaphores`: the numbers of permits, the holders, and the number of waiting contenders.

use enlist::Semaphore;
use enlist_etcd::{PermitContender, SemaphoreQueue};
use serde_json::json;

use crate::{
    args::{Global, Semaphores},
    output::{Failure, Output, To},
    table,
};

const HEAD: [&str; 6] = ["SEMAPHORE", "PERMITS", "HOLDER", "TOKEN", "HELD", "WAITING"];

/// Returns one row per holder, or one for a semaphore without a holder.
fn rows(queue: &SemaphoreQueue) -> Vec<[String; 6]> {
    let permits = queue.permits.map_or("-".to_owned(), |permits| permits.to_string());
    let waiting = queue.waiting().count().to_string();
    let row = |process: &str, token: String, held: String| {
        [queue.name.to_string(), permits.clone(), process.to_owned(), token, held, waiting.clone()]
    };
    let holder = |holder: &PermitContender| {
        row(holder.process.as_deref().unwrap_or("-"), holder.token.to_string(), holder.permits.to_string())
    };
    let holders: Vec<_> = queue.holders().map(holder).collect();
    if holders.is_empty() { vec![row("-", "-".to_owned(), "0".to_owned())] } else { holders }
}

fn object(queue: &SemaphoreQueue) -> serde_json::Value {
    let holder = |entry: &PermitContender| {
        let token = entry.token.get();
        json!({ "process": entry.process, "token": token, "permits": entry.permits })
    };
    json!({
        "semaphore": queue.name.to_string(),
        "permits": queue.permits,
        "holders": queue.holders().map(holder).collect::<Vec<_>>(),
        "waiting": queue.waiting().count(),
    })
}

pub(crate) async fn semaphores(global: &Global, asked: &Semaphores, output: Output) -> Result<u8, Failure> {
    let etcd = global.client()?;
    let queues = match &asked.name {
        Some(name) => {
            let name = global.lock(name)?;
            if let Some(permits) = asked.set {
                etcd.set_permits(&name, permits).await?;
            }
            vec![etcd.semaphore_queue(&name).await?]
        }
        None => etcd.semaphore_queues(&global.namespace()?).await?,
    };
    if output.json {
        for queue in &queues {
            output.line(To::Stdout, "", &object(queue))?;
        }
    } else if !queues.is_empty() {
        for line in table::arrange(HEAD, queues.iter().flat_map(rows)) {
            output.line(To::Stdout, line, &())?;
        }
    }
    Ok(0)
}
