//! Named points at which a test ends the process as `kill -9` does. Outside of this crate's own tests a
//! point is an empty function.

/// Ends the process here if a test asked for it.
#[cfg(not(test))]
#[inline]
pub(crate) fn at(_point: &'static str) {}

/// The variable that asks: `POINT:N` ends the process at the N-th pass.
#[cfg(test)]
pub(crate) const VARIABLE: &str = "FOREBAY_TEST_CRASH";

#[cfg(test)]
pub(crate) fn at(point: &'static str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    static ASKED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let asked = std::env::var(VARIABLE).ok()?;
        let (point, pass) = asked.split_once(':')?;
        Some((point.to_owned(), pass.parse().ok()?))
    });
    static PASSES: AtomicU64 = AtomicU64::new(0);
    if let Some((asked, pass)) = &*ASKED
        && asked == point
        && PASSES.fetch_add(1, Ordering::Relaxed) + 1 == *pass
    {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
        loop {
            std::hint::spin_loop();
        }
    }
}
