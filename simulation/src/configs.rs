//! Writers and watchers of one value of the configuration. The value is a number, which each write raises by one under
//! the condition that the value is unchanged since it was read.

use std::collections::BTreeMap;

use enlist::{Config, ConfigPath, ConfigScope, Error, Expect, Namespace, Revision};
use enlist_etcd::Etcd;
use enlist_testkit::KeyChange;

use crate::{
    kinds::{Observed, Operation},
    operations::of_request,
    verdicts::{Invariant, Verdict},
    world::{CONFIG, ConfigRecord, Delivery, World, between},
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
        let from = world.micros();
        let found = etcd.get(&namespace, &path).await;
        world.suspect(Invariant::ErrorsJustified, found.as_ref().err().map(of_request), from, format!("{found:?}"));
        let Ok(found) = found else { continue };
        let (value, modified) = match &found {
            Some(entry) => (number(&entry.value).unwrap_or(0) + 1, entry.modified),
            None => (1, Revision::default()),
        };
        world.count(Operation::WriteConfig);
        let from = world.micros();
        let written = etcd.put(&namespace, &path, value.to_string().into_bytes(), Expect::Revision(modified)).await;
        world.log(|| format!("configuration {value}: {written:?}"));
        match written {
            Ok(revision) => {
                world.count(Observed::ConfigWritten);
                world.shared().config.confirmed.push((revision.get(), value));
            }
            Err(Error::Conflict { revision, .. }) if revision != modified => world.count(Observed::ConfigConflict),
            Err(error) => {
                world.count(Observed::ConfigNotWritten);
                world.suspect(
                    Invariant::ErrorsJustified,
                    Some(of_request(&error)),
                    from,
                    format!("{value}: {error:?}"),
                );
            }
        }
    }
}

/// Records each view of the value.
pub(crate) async fn watcher(world: World, etcd: Etcd, number_of: usize) {
    world.count(Operation::WatchConfig);
    world.shared().config.watchers += 1;
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

/// Returns the watchers whose last view differs from the stored value, and those that have shown nothing.
pub(crate) fn behind(world: &World) -> Vec<usize> {
    let stored = world.fake.under(CONFIG.as_bytes()).first().and_then(|(_, value)| number(value));
    behind_of(&world.shared().config, stored)
}

fn behind_of(config: &ConfigRecord, stored: Option<u64>) -> Vec<usize> {
    (0..config.watchers).filter(|watcher| config.last.get(watcher) != Some(&stored)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_without_a_view_is_behind() {
        let last = BTreeMap::from([(0, Some(7)), (1, Some(6))]);
        let config = ConfigRecord { watchers: 3, last, ..ConfigRecord::default() };
        assert_eq!(behind_of(&config, Some(7)), [1, 2]);
        assert_eq!(behind_of(&config, None), [0, 1, 2], "not even that there is no value");
        assert_eq!(behind_of(&ConfigRecord::default(), None), [0; 0]);
    }
}
