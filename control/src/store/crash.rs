//! Named points at which a test ends the process as `kill -9` does, and steps of a commit that it leaves out
//! to see that it would be noticed. Only in test builds and with the feature `crash-points`; in what is
//! shipped a point is an empty function, and nothing can be left out.

#[cfg(any(test, feature = "crash-points"))]
pub(crate) use self::armed::{at, step};
#[cfg(not(any(test, feature = "crash-points")))]
pub(crate) use self::unarmed::{at, step};

/// The variable that asks: `POINT:N` ends the process at the N-th pass.
#[cfg(test)]
pub(crate) const VARIABLE: &str = armed::CRASH;

#[cfg(not(any(test, feature = "crash-points")))]
mod unarmed {
    /// Does nothing.
    #[inline]
    pub(crate) const fn at(_point: &'static str) {}

    /// Takes the step.
    #[inline]
    pub(crate) fn step<E>(
        _name: &'static str,
        take: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        take()
    }
}

#[cfg(any(test, feature = "crash-points"))]
mod armed {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    use rustix::process::{Signal, getpid, kill_process};

    pub(super) const CRASH: &str = "FOREBAY_TEST_CRASH";
    /// Names one step.
    const OMIT: &str = "FOREBAY_TEST_OMIT";

    /// Ends the process here if a test asked for it.
    pub(crate) fn at(point: &'static str) {
        static ASKED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
            let asked = std::env::var(CRASH).ok()?;
            let (point, pass) = asked.split_once(':')?;
            Some((point.to_owned(), pass.parse().ok()?))
        });
        static PASSES: AtomicU64 = AtomicU64::new(0);
        if let Some((asked, pass)) = &*ASKED
            && asked == point
            && PASSES.fetch_add(1, Ordering::Relaxed) + 1 == *pass
        {
            let _own = kill_process(getpid(), Signal::KILL);
            // Until it is gone; another thread of it may be where the signal is taken.
            loop {
                std::hint::spin_loop();
            }
        }
    }

    /// Takes the step, unless a test asked for it to be left out.
    pub(crate) fn step<E>(
        name: &'static str,
        take: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        static OMITTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(OMIT).ok());
        match OMITTED.as_deref() == Some(name) {
            true => Ok(()),
            false => take(),
        }
    }
}
