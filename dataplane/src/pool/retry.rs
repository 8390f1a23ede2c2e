//! Requests that are sent again to another endpoint: where each was, and how many of them there may be at a time.

use std::sync::{Arc, atomic::Ordering};

use forebay_proto::limits;

use super::{Lease, Pool, core::OriginId};

/// The part of a pool's requests that may be sent again to another endpoint at a time.
const RETRY_SHARE: usize = 5;
/// As many may always.
const RETRIES_AT_LEAST: usize = 3;

impl Pool {
    /// Leave to send a request again to another endpoint than these, if there is one that does not fail as well and
    /// not too many are sent again already.
    pub fn retry(self: &Arc<Self>, tried: &Tried) -> Result<Retrying, NoRetry> {
        let (other, active) = self.desk.with(|inner, now| {
            let other = inner.core.has_other(now, &tried.origins());
            (other, inner.core.census(now).in_flight)
        });
        if !other {
            return Err(NoRetry::NoOther);
        }
        let most = (active / RETRY_SHARE).max(RETRIES_AT_LEAST);
        let taken = self.retries.fetch_add(1, Ordering::AcqRel);
        let retrying = Retrying(self.clone());
        match taken < most {
            true => Ok(retrying),
            // Dropping it gives its place back.
            false => Err(NoRetry::Budget),
        }
    }
}

/// The addresses that a request was sent to.
#[derive(Debug, Clone, Default)]
pub struct Tried([Option<OriginId>; *limits::RETRY_ATTEMPTS.end() as usize]);

impl Tried {
    /// To this one, too. Who has been to more than there is room for has been to as many as he may.
    pub fn add(&mut self, lease: &Lease) {
        if let Some(free) = self.0.iter_mut().find(|tried| tried.is_none()) {
            *free = lease.origin();
        }
    }

    /// It did not go to the last one after all.
    pub fn forget_last(&mut self) {
        if let Some(last) = self.0.iter_mut().rfind(|tried| tried.is_some()) {
            *last = None;
        }
    }

    pub(super) fn origins(&self) -> Vec<OriginId> {
        self.0.iter().flatten().copied().collect()
    }
}

/// A request is being sent again; dropped when that is answered, or will never be.
#[derive(Debug)]
pub struct Retrying(Arc<Pool>);

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why a request is not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRetry {
    /// There is no other endpoint, or the others fail as well.
    NoOther,
    /// Too many are sent again already.
    Budget,
}
