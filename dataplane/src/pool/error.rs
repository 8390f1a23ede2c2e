//! Why no connection was to be had, in words and numbers.

use std::{sync::Arc, time::Duration};

use forebay_proto::ModelId;

/// Why no connection was to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The waiting line is full, and this request's flow has more of it than others.
    #[error("{0}")]
    QueueFull(Busy),
    /// The waiting line is full of others' requests.
    #[error("{0}, all of them others'")]
    Crowded(Busy),
    /// The client will have given up before it could be served.
    #[error(
        "no connection within {waited:?}, and the client said that it waits no longer than {patience:?}: {busy}"
    )]
    Impatient {
        /// How long it waited.
        waited: Duration,
        /// What the client said.
        patience: Duration,
        /// The pool at that instant.
        busy: Busy,
    },
    /// The deadline passed in the line.
    #[error("no connection within {waited:?}: {busy}")]
    Timeout {
        /// How long it waited.
        waited: Duration,
        /// The pool at that instant.
        busy: Busy,
    },
    /// No endpoint can be reached.
    #[error("no endpoint of model `{model}` can be reached: {error}")]
    Connect {
        /// The model.
        model: ModelId,
        /// The last error.
        error: Arc<str>,
    },
    /// None that the request may go to.
    #[error("no endpoint of model `{model}` can take this request: {why}")]
    NoEndpoint {
        /// The model.
        model: ModelId,
        /// Why none can.
        why: &'static str,
    },
    /// This process leaves, and the one that takes its place has what there is of a fleet-wide limit.
    #[error(
        "this process of the worker leaves, and has none of the limit of all workers of model `{model}` for a request \
         that has not begun; retry: the next connection is to the process that takes its place"
    )]
    Leaving {
        /// The model.
        model: ModelId,
    },
    /// Every endpoint was found to serve something else.
    #[error(
        "no endpoint of model `{model}` serves it: {why}; it is asked again until it does, or its registration is \
         put right"
    )]
    WrongModel {
        /// The model.
        model: ModelId,
        /// What one of them serves.
        why: Arc<str>,
    },
}

/// A pool with no slot left, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    pub(super) model: ModelId,
    pub(super) size: usize,
    pub(super) active: usize,
    pub(super) waiting: usize,
    pub(super) max_waiting: usize,
    /// The worker's budget, where it leaves the pool less than its size.
    pub(super) budget: Option<usize>,
    /// When a retry may find a slot.
    pub retry_after: Duration,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "model `{}` has {} of {} slots in use and {} of {} requests waiting",
            self.model, self.active, self.size, self.waiting, self.max_waiting
        )?;
        match self.budget {
            Some(budget) => write!(
                f,
                "; the worker's budget of {budget} connections is in use, and shared among its models"
            ),
            None => Ok(()),
        }
    }
}
