use std::sync::{Mutex, MutexGuard, PoisonError};

/// Things that own memory which is used again: one for each computation that runs at the same time.
#[derive(Debug, Default)]
pub struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    /// One that was given back, or a new one.
    pub fn take(&self) -> T {
        self.list().pop().unwrap_or_default()
    }

    /// Gives one back.
    pub fn give(&self, used: T) {
        self.list().push(used);
    }

    fn list(&self) -> MutexGuard<'_, Vec<T>> {
        // A poisoned lock means that another thread panicked between taking and giving: the list is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
