//! Responses that are kept in this process alone, as an engine keeps them: read again, and cancelled.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

/// Most that are kept.
const KEPT: usize = 1_000;

/// What is kept of one.
#[derive(Debug)]
struct Kept {
    id: String,
    whole: Value,
    /// Made behind the client's back, until then.
    until: Option<Instant>,
    cancelled: bool,
}

impl Kept {
    fn now(&self) -> Value {
        let mut value = self.whole.clone();
        let busy = self.until.is_some_and(|until| Instant::now() < until);
        let status = match (self.cancelled, busy) {
            (true, _) => "cancelled",
            (false, true) => "in_progress",
            (false, false) => return value,
        };
        if let Value::Object(fields) = &mut value {
            fields.insert("status".to_owned(), json!(status));
            fields.insert("output".to_owned(), json!([]));
        }
        value
    }
}

/// The responses of one engine.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    kept: VecDeque<Kept>,
}

impl Responses {
    /// A new id; no two engines have the same.
    pub(crate) fn new_id() -> String {
        format!("resp_{:08x}{}", std::process::id(), Self::new_number())
    }

    /// A new number; no two of one engine are the same.
    pub(crate) fn new_number() -> String {
        static MADE: AtomicU64 = AtomicU64::new(0);
        format!("{:016x}", MADE.fetch_add(1, Ordering::Relaxed))
    }

    /// Keeps one, made at once or in the background for so long.
    pub(crate) fn keep(&mut self, id: &str, whole: Value, background: Option<Duration>) {
        self.kept.push_back(Kept {
            id: id.to_owned(),
            whole,
            until: background.map(|time| Instant::now() + time),
            cancelled: false,
        });
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// As it is now.
    pub(crate) fn get(&self, id: &str) -> Option<Value> {
        let kept = self.kept.iter().find(|kept| kept.id == id);
        kept.map(Kept::now)
    }

    /// Cancels one. Inside: whether it could be.
    pub(crate) fn cancel(&mut self, id: &str) -> Option<Result<Value, &'static str>> {
        let kept = self.kept.iter_mut().find(|kept| kept.id == id)?;
        if kept.until.is_none() {
            return Some(Err("Cannot cancel a synchronous response."));
        }
        kept.cancelled |= kept.until.is_some_and(|until| Instant::now() < until);
        Some(Ok(kept.now()))
    }
}
