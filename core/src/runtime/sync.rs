//! Locking of a `std` mutex without regard to poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Extension of [`Mutex`] for data that are valid after every step of a short critical section. A panic in one leaves
/// the data usable. Implemented for every [`Mutex`].
pub trait MutexExt<T: ?Sized> {
    /// Locks the mutex. The poison of a panic is ignored.
    fn locked(&self) -> MutexGuard<'_, T>;
}

impl<T: ?Sized> MutexExt<T> for Mutex<T> {
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_leaves_the_data_usable() {
        let mutex = Mutex::new(1);
        let panicked = std::panic::catch_unwind(|| {
            let mut data = mutex.locked();
            *data = 2;
            panic!("while the mutex is locked");
        });
        assert!(panicked.is_err() && mutex.is_poisoned());
        assert_eq!(*mutex.locked(), 2);
    }
}
