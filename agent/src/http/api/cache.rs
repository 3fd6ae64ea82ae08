//! Reads of the store that requests share: at most one at a time and per interval for each key, so that many clients
//! load the store as one does.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use enlist::{Error, Moment, backend::MutexExt as _};
use tokio::sync::Mutex;

use crate::http::messages::{
    error::{ApiError, Code},
    freshness::FreshnessJson,
};

/// Maximum number of keys that are read at a time. Namespaces above it are refused until others are forgotten.
const KEYS: usize = 256;

/// Maximum time of a read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A value, and the time at which its read began.
#[derive(Debug)]
pub(crate) struct Read<V> {
    pub(crate) value: Arc<V>,
    began: Moment,
}

impl<V> Clone for Read<V> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), began: self.began }
    }
}

impl<V> Read<V> {
    /// Returns the freshness of the value.
    pub(crate) fn freshness(&self) -> FreshnessJson {
        FreshnessJson::live(self.began.elapsed())
    }
}

/// The value of a key, with the lock of its read; `None` before the first.
type Cell<V> = Arc<Mutex<Option<Read<V>>>>;

/// Values by key.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    max_age: Duration,
    cells: std::sync::Mutex<HashMap<K, Cell<V>>>,
}

impl<K: Eq + Hash + Clone, V> Cache<K, V> {
    /// Creates a cache of values that are reused up to an age.
    pub(crate) fn new(max_age: Duration) -> Self {
        Self { max_age, cells: std::sync::Mutex::default() }
    }

    /// Returns the value of a key, read anew if it is too old. Failures are not kept.
    pub(crate) async fn read<F>(&self, key: K, read: impl FnOnce() -> F) -> Result<Read<V>, ApiError>
    where
        F: Future<Output = Result<V, Error>>,
    {
        let cell = self.cell(key)?;
        let reading = async {
            let mut cell = cell.lock().await;
            if let Some(known) = cell.as_ref().filter(|known| known.began.elapsed() < self.max_age) {
                return Ok(known.clone());
            }
            let began = Moment::now();
            let value = read().await?;
            Ok(cell.insert(Read { value: Arc::new(value), began }).clone())
        };
        match tokio::time::timeout(READ_TIMEOUT, reading).await {
            Ok(read) => read.map_err(|error: Error| ApiError::of_store(&error)),
            Err(_) => Err(ApiError::new(Code::StoreUnavailable, "the store did not answer in time")),
        }
    }

    /// Returns the cell of a key. If there are too many cells, those that no request uses are forgotten.
    fn cell(&self, key: K) -> Result<Cell<V>, ApiError> {
        let mut cells = self.cells.locked();
        if !cells.contains_key(&key) && cells.len() >= KEYS {
            cells.retain(|_, cell| Arc::strong_count(cell) > 1);
        }
        if !cells.contains_key(&key) && cells.len() >= KEYS {
            return Err(ApiError::new(Code::TooManyViews, "too many namespaces are read at a time"));
        }
        Ok(Arc::clone(cells.entry(key).or_insert_with(|| Arc::new(Mutex::new(None)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn requests_share_a_read() {
        let cache = Cache::new(Duration::from_secs(1));
        let reads = AtomicUsize::new(0);
        let read = || async { Ok(reads.fetch_add(1, Ordering::Relaxed)) };
        let (one, two) = tokio::join!(cache.read("a", read), cache.read("a", read));
        assert_eq!((*one.unwrap().value, *two.unwrap().value), (0, 0));
        assert_eq!(*cache.read("b", read).await.unwrap().value, 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(*cache.read("a", read).await.unwrap().value, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_kept() {
        let cache = Cache::new(Duration::from_secs(1));
        let failed = cache.read("a", || async { Err(Error::Closed) }).await;
        assert_eq!(failed.unwrap_err().code(), Code::StoreUnavailable);
        assert_eq!(*cache.read("a", || async { Ok(1) }).await.unwrap().value, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_without_a_response_ends() {
        let cache = Cache::new(Duration::from_secs(1));
        let hung = cache.read(0, std::future::pending::<Result<(), Error>>).await;
        assert_eq!(hung.unwrap_err().code(), Code::StoreUnavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_keys_is_bounded() {
        let cache = Cache::new(Duration::from_secs(1));
        for key in 0..2 * KEYS {
            cache.read(key, || async { Ok(()) }).await.unwrap();
        }
        assert!(cache.cells.locked().len() <= KEYS);
    }
}
