//! [`Config`] of a client of etcd. `enlist-memory` has the same steps in its file of the same name.

use std::sync::Arc;

use async_trait::async_trait;
use enlist::{
    Config, ConfigPath, ConfigScope, ConfigSnapshot, ConfigVersion, ConfigWatcher, ConfigWrite, Epoch, Error,
    Namespace, Revision, backend::check_writes,
};

use crate::{
    config::{
        history,
        transaction::Transaction,
        watcher::{EtcdScopeWatcher, Projection},
    },
    etcd::Etcd,
    watch::replica::Replica,
};

#[async_trait]
impl Config for Etcd {
    async fn list(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<ConfigSnapshot, Error> {
        self.session.check_open()?;
        let config = &self.session.config;
        let range = config.layout.range(namespace, scope)?;
        let listed = config.client.list(&range).await;
        let (records, revision) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let mut replica = Replica::new(revision, Epoch::default());
        replica.relist(records, revision, Epoch::default());
        Ok(Projection::new(config, namespace).follow(None, &replica))
    }

    async fn watch(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<Box<dyn ConfigWatcher>, Error> {
        let config = &self.session.config;
        let reader = config.range_watches.view(&config.layout.range(namespace, scope)?)?;
        Ok(Box::new(EtcdScopeWatcher::new(reader, Projection::new(config, namespace))))
    }

    async fn write(&self, namespace: &Namespace, writes: Vec<ConfigWrite>) -> Result<Revision, Error> {
        check_writes(&writes)?;
        self.session.check_open()?;
        let config = &self.session.config;
        Transaction::new(&config.layout, namespace, writes)?.commit(&config.client).await
    }

    async fn history(
        &self,
        namespace: &Namespace,
        path: &ConfigPath,
        limit: usize,
    ) -> Result<Vec<ConfigVersion>, Error> {
        self.session.check_open()?;
        let config = &self.session.config;
        let key: Arc<[u8]> = config.layout.key(namespace, path)?.into();
        history::versions(&config.client, &key, limit).await
    }
}
