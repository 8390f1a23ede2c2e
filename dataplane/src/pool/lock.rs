//! The pool's lock, and the points between which others may run. In production it is a mutex and nothing
//! else; the tests of interleavings let another thread go on at each of them.

use parking_lot::{Mutex, MutexGuard};

/// A mutex that is held for bookkeeping only.
#[derive(Debug)]
pub(super) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        others_may_run();
        self.0.lock()
    }
}

/// A point at which it must not matter whether others run in between.
#[cfg(not(test))]
#[inline]
pub(super) fn others_may_run() {}

#[cfg(test)]
pub(super) use interleaved::others_may_run;

#[cfg(test)]
pub(super) mod interleaved {
    //! Which thread goes on is the checker's choice, in the tests that say so.

    use std::cell::Cell;

    thread_local! {
        static CHECKED: Cell<bool> = const { Cell::new(false) };
    }

    /// While this thread runs a checker, it decides at every point who goes on.
    pub(in crate::pool) fn checked<T>(check: impl FnOnce() -> T) -> T {
        CHECKED.set(true);
        let result = check();
        CHECKED.set(false);
        result
    }

    pub(in crate::pool) fn others_may_run() {
        if CHECKED.get() {
            shuttle::thread::yield_now();
        }
    }
}
