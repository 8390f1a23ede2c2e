//! The worker's budget: the open connections of all its pools together.
//!
//! With no more models than it holds at full size it never binds: every pool may have its own size.
//! With more, each pool has a cap, and one task moves the caps: level-triggered, by what the pools
//! have and want at that moment. It shrinks first and grows only into what is free then, so that the
//! sum of what is open and what may be opened never exceeds the budget, however stale its picture is:
//! a pool opens nothing above its cap, and only this task raises one.
//!
//! Requests in flight are never cut: a pool above its cap gives back as they end.

mod allot;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::allot::Need;
use self::allot::allot;
use crate::{live::LiveCell, pool::Pool};

/// The full pass, whatever was noticed.
const EVERY: Duration = Duration::from_millis(100);

/// The shortest rest that a timer can keep.
const SHORTEST_REST: Duration = Duration::from_millis(1);

/// What the pools and the task that divides share.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicUsize,
    /// The pools' sizes exceed the limit: caps bind.
    binds: AtomicBool,
    changed: Notify,
    /// Held while caps are moved, and while a configuration is put in force: neither sees the other's
    /// work half done. Never on the request path.
    turn: Mutex<()>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            limit: AtomicUsize::new(usize::MAX),
            binds: AtomicBool::new(false),
            changed: Notify::new(),
            turn: Mutex::new(()),
        }
    }
}

impl Budget {
    /// A configuration is put in force while this is held; afterwards the caps are looked at.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn {
            budget: self,
            _held: self.turn.lock(),
        }
    }

    /// A configuration is about to be put in force under which the pools may come to have so many
    /// connections. Returns the cap of pools that are made for it.
    pub(crate) fn configure(&self, limit: usize, committed: usize) -> usize {
        let binds = committed > limit;
        self.limit.store(limit, Ordering::Release);
        self.binds.store(binds, Ordering::Release);
        if binds { 0 } else { usize::MAX }
    }

    /// Most connections of all pools together.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    /// True while pools may not all have their own size.
    pub(crate) fn binds(&self) -> bool {
        self.binds.load(Ordering::Acquire)
    }

    /// A pool has or wants something else than before.
    pub(crate) fn note_change(&self) {
        if self.binds() {
            self.changed.notify_one();
        }
    }

    /// Divides until told to stop.
    pub(crate) async fn run(self: Arc<Self>, live: Arc<LiveCell>, stop: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut owed = Duration::ZERO;
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let began = Instant::now();
            self.pass(&live);
            // However many pools there are: no more than a fifth of a core. Short rests are saved up, as a
            // timer knows none below a millisecond.
            owed += began.elapsed() * 4;
            if owed >= SHORTEST_REST {
                sleep(owed.min(EVERY)).await;
                owed = Duration::ZERO;
            }
        }
    }

    fn pass(&self, live: &LiveCell) {
        let _turn = self.turn.lock();
        self.divide(&live.all_pools());
    }

    /// One pass: look, shrink, look again, grow.
    fn divide(&self, members: &[impl Member]) {
        let needs: Vec<Need> = members.iter().map(Member::need).collect();
        let committed = needs.iter().map(Need::committed).sum::<usize>();
        let binds = committed > self.limit();
        self.binds.store(binds, Ordering::Release);
        if !binds {
            members.iter().for_each(|member| member.set_cap(usize::MAX));
            return;
        }
        let targets = allot(self.limit(), &needs);
        let mut taken = 0;
        let mut growing = Vec::new();
        for (member, target) in members.iter().zip(targets) {
            let cap = member.lower_cap(target);
            let has = cap.max(member.need().open());
            taken += has;
            if target > cap {
                growing.push((member, has, target));
            }
        }
        grow(growing, self.limit().saturating_sub(taken));
    }
}

/// Gives what is free to those that are to grow, one at a time to who has least: a slot that a stream
/// gave back must not wait until another has all of his.
fn grow<M: Member>(growing: Vec<(&M, usize, usize)>, free: usize) {
    let mut order: BinaryHeap<Reverse<(usize, usize)>> = growing
        .iter()
        .enumerate()
        .map(|(n, (_, has, _))| Reverse((*has, n)))
        .collect();
    let mut given = vec![0; growing.len()];
    let mut free = free;
    while free > 0
        && let Some(Reverse((has, n))) = order.pop()
    {
        let (Some((_, _, target)), Some(given)) = (growing.get(n), given.get_mut(n)) else {
            continue;
        };
        // What it has above its cap is counted already.
        if has < *target {
            *given += 1;
            free -= 1;
            order.push(Reverse((has + 1, n)));
        }
    }
    for ((member, has, target), given) in growing.into_iter().zip(given) {
        member.set_cap((has + given).min(target));
    }
}

/// The right to put a configuration in force.
pub(crate) struct Turn<'a> {
    budget: &'a Budget,
    _held: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.budget.changed.notify_one();
    }
}

/// One who has a cap.
trait Member {
    fn need(&self) -> Need;
    /// Nothing is opened above it from now on.
    fn set_cap(&self, cap: usize);
    /// The same, but never more than before. Returns the cap that holds.
    fn lower_cap(&self, cap: usize) -> usize;
}

impl Member for Arc<Pool> {
    fn need(&self) -> Need {
        Pool::need(self)
    }

    fn set_cap(&self, cap: usize) {
        Pool::set_cap(self, cap);
    }

    fn lower_cap(&self, cap: usize) -> usize {
        Pool::lower_cap(self, cap)
    }
}

#[cfg(test)]
mod tests;
