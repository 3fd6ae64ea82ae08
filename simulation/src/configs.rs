//! Writers and watchers of one value of the configuration. The value is a number, which each write raises by one under
//! the condition that the value is unchanged since it was read.

use std::collections::BTreeMap;

use enlist::{Config, ConfigPath, ConfigScope, Error, Expect, Namespace, Revision};
use enlist_etcd::Etcd;
use enlist_testkit::KeyChange;

use crate::{
    kinds::{Observed, Operation},
    verdicts::{Invariant, Verdict},
    world::{CONFIG, Delivery, World, between},
};

fn path() -> ConfigPath {
    ConfigPath::parse("sim").expect("a valid path")
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Raises the value again and again, until the run stops.
pub(crate) async fn writer(world: World, etcd: Etcd, mut random: fastrand::Rng) {
    let (namespace, path) = (Namespace::default(), path());
    while !world.is_stopping() {
        tokio::time::sleep(between(&mut random, 100, 3000)).await;
        world.count(Operation::ReadConfig);
        let Ok(found) = etcd.get(&namespace, &path).await else { continue };
        let (value, modified) = match &found {
            Some(entry) => (number(&entry.value).unwrap_or(0) + 1, entry.modified),
            None => (1, Revision::default()),
        };
        world.count(Operation::WriteConfig);
        let written = etcd.put(&namespace, &path, value.to_string().into_bytes(), Expect::Revision(modified)).await;
        world.log(|| format!("configuration {value}: {written:?}"));
        match written {
            Ok(revision) => {
                world.count(Observed::ConfigWritten);
                world.shared().config.confirmed.push((revision.get(), value));
            }
            Err(Error::Conflict { .. }) => world.count(Observed::ConfigConflict),
            Err(_) => world.count(Observed::ConfigNotWritten),
        }
    }
}

/// Records each view of the value.
pub(crate) async fn watcher(world: World, etcd: Etcd, number_of: usize) {
    world.count(Operation::WatchConfig);
    let scope = ConfigScope::Path(path());
    let mut watch = match Config::watch(&etcd, &Namespace::default(), &scope).await {
        Ok(watch) => watch,
        Err(error) => return world.broken(Invariant::WatchesLast, format!("of the configuration: {error}")),
    };
    loop {
        let change = match watch.next().await {
            Ok(change) => change,
            Err(error) => return world.broken(Invariant::WatchesLast, format!("of the configuration: {error}")),
        };
        let shown = change.snapshot.get(&path()).and_then(|entry| number(&entry.value));
        let revision = change.snapshot.revision().get();
        world.log(|| format!("watcher {number_of} of the configuration: {shown:?} at {revision}"));
        world.count(Observed::ConfigChanged);
        let config = &mut world.shared().config;
        config.shown.push((revision, shown));
        config.last.insert(number_of, shown);
    }
}

/// Returns the watchers whose last view differs from the stored value.
pub(crate) fn behind(world: &World) -> Vec<usize> {
    let stored = world.fake.under(CONFIG.as_bytes()).first().and_then(|(_, value)| number(value));
    let shared = world.shared();
    shared.config.last.iter().filter(|(_, shown)| **shown != stored).map(|(watcher, _)| *watcher).collect()
}

/// Returns the violations, and counts the checks.
pub(crate) fn judge(world: &World, journal: &[KeyChange]) -> Vec<Verdict> {
    let mut stored = BTreeMap::new();
    let mut verdicts = Vec::new();
    let mut before = 0;
    for change in journal.iter().filter(|change| change.key == CONFIG.as_bytes()) {
        world.count(Invariant::ConfigGuarded);
        let value = change.value.as_deref().and_then(number);
        if value != Some(before + 1) {
            verdicts.push(Verdict::of(Invariant::ConfigGuarded, format!("{value:?} follows {before}")));
        }
        before = value.unwrap_or(0);
        stored.insert(u64::try_from(change.revision).unwrap_or(0), value);
    }
    let (config, delivery) = {
        let shared = world.shared();
        (shared.config.clone(), shared.delivery)
    };
    for (revision, value) in config.confirmed {
        world.count(Invariant::ConfigConfirmed);
        let found = stored.get(&revision);
        if found != Some(&Some(value)) {
            let detail = format!("{value} was written at {revision}, where {found:?} is stored");
            verdicts.push(Verdict::of(Invariant::ConfigConfirmed, detail));
        }
    }
    // A watch that lost an event shows a former value until the next audit.
    for (revision, shown) in config.shown.into_iter().filter(|_| delivery != Delivery::Lossy) {
        world.count(Invariant::ConfigViewsExist);
        let found = stored.range(..=revision).next_back().and_then(|(_, value)| *value);
        if shown != found {
            let detail = format!("{shown:?} was shown at {revision}, where {found:?} is stored");
            verdicts.push(Verdict::of(Invariant::ConfigViewsExist, detail));
        }
    }
    verdicts
}
