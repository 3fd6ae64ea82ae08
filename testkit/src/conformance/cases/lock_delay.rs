//! `lock_delay`: a lock counts as held for a while after a holder that did not release it.

use std::time::Duration;

use enlist::{Error, Moment};

use super::support::*;
use crate::{
    conformance::harness::Harness,
    wait::{begun, eventually, soon},
};

pub async fn a_lock_delay_passes_only_after_a_crash(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "l"));
    let delay = Duration::from_secs(2);
    let delayed = || lock_options(h).lock_delay(delay);
    let guard = acquire(h, &one, &name).await;
    let mut next = contend(&two, &name, lock_options(h).lock_delay(Duration::from_secs(3600)));
    queue_has(h, &name, 2).await;
    soon("released", guard.release()).await.unwrap();
    let _held = next.done("no delay after a release").await.unwrap();
    let mut last = contend(&three, &name, delayed());
    queue_has(h, &name, 2).await;
    two.crash().await;
    // The time of the last check at which its entry was there.
    let (name, mut asked) = (&name, Moment::now());
    let there = eventually("its entry is gone", || {
        let before = std::mem::replace(&mut asked, Moment::now());
        async move { if h.queue_length(name).await == 1 { Ok(before) } else { Err(before) } }
    })
    .await;
    let guard = last.done("its turn, after the delay").await.unwrap();
    assert!(there.elapsed() >= delay, "granted {:?} after the crash or the loss", there.elapsed());
    assert!(begun(guard.lost()).await.is_none());
}

pub async fn a_lock_delay_passes_for_later_contenders(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let delay = Duration::from_secs(2);
    let delayed = || lock_options(h).lock_delay(delay);
    let guard = soon("acquired", one.acquire(&name, delayed())).await.unwrap();
    one.crash().await;
    queue_has(h, &name, 0).await;
    let asked = Moment::now();
    let successor = soon("its turn, after the delay", two.acquire(&name, delayed())).await.unwrap();
    assert!(asked.elapsed() >= delay, "granted {:?} after the crash or the loss", asked.elapsed());
    assert!(successor.is_held() && !guard.is_held());
    // A later contender also distinguishes a release from a crash.
    soon("released", successor.release()).await.unwrap();
    let long = lock_options(h).lock_delay(Duration::from_secs(3600));
    let next = soon("no delay after a release", two.acquire(&name, long)).await.unwrap();
    soon("released", next.release()).await.unwrap();
}

pub async fn a_lock_delay_passes_after_a_deleted_key(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let delay = Duration::from_secs(2);
    let delayed = || lock_options(h).lock_delay(delay);
    let guard = soon("acquired", one.acquire(&name, delayed())).await.unwrap();
    let mut next = contend(&two, &name, delayed());
    queue_has(h, &name, 2).await;
    let deleted = Moment::now();
    h.delete_holder(&name).await;
    soon("the loss", guard.lost()).await;
    let next = next.done("its turn, after the delay").await.unwrap();
    assert!(next.is_held());
    assert!(deleted.elapsed() >= delay, "granted {:?} after the crash or the loss", deleted.elapsed());
}

pub async fn a_lock_delay_counts_as_held(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "l"));
    let delay = Duration::from_secs(3);
    let delayed = || lock_options(h).lock_delay(delay);
    let _guard = soon("acquired", one.acquire(&name, delayed())).await.unwrap();
    one.crash().await;
    queue_has(h, &name, 0).await;
    let asked = Moment::now();
    assert!(soon("tried", two.try_acquire(&name, delayed())).await.unwrap().is_none());
    assert_eq!(h.queue_length(&name).await, 0);
    let short = delayed().deadline(Duration::from_millis(100));
    let late = soon("the deadline", three.acquire(&name, short)).await;
    assert!(matches!(late, Err(Error::Timeout { .. })), "the deadline passes before the delay: {late:?}");
    // Each attempt would restart the delay if the delay did not continue independently.
    let successor = eventually("free after the delay", || async {
        match two.try_acquire(&name, delayed()).await {
            Ok(Some(guard)) => Ok(guard),
            other => Err(other.map(|guard| guard.is_some())),
        }
    })
    .await;
    assert!(asked.elapsed() >= delay, "granted {:?} after the crash or the loss", asked.elapsed());
    drop(successor);
}

pub async fn a_lock_delay_separates_writers_from_readers(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "l"));
    let delay = Duration::from_secs(2);
    let delayed = || lock_options(h).lock_delay(delay);
    let long = || lock_options(h).lock_delay(Duration::from_secs(3600)).shared();
    let _first = soon("shared", one.acquire(&name, delayed().shared())).await.unwrap();
    let second = soon("shared at once", two.acquire(&name, long())).await.unwrap();
    one.crash().await;
    queue_has(h, &name, 1).await;
    // A reader that did not release does not delay another reader.
    let third = soon("shared at once", three.acquire(&name, long())).await.unwrap();
    soon("released", second.release()).await.unwrap();
    soon("released", third.release()).await.unwrap();
    let asked = Moment::now();
    let writer = soon("alone, after the delay", two.acquire(&name, delayed())).await.unwrap();
    assert!(asked.elapsed() >= delay, "granted {:?} after the crash or the loss", asked.elapsed());
    two.crash().await;
    queue_has(h, &name, 0).await;
    assert!(!writer.is_held());
    let asked = Moment::now();
    let reader = soon("shared, after the delay", three.acquire(&name, delayed().shared())).await.unwrap();
    assert!(asked.elapsed() >= delay, "granted {:?} after the crash or the loss", asked.elapsed());
    drop(reader);
}
