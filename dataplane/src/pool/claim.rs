//! Whose request it is, and what it may claim of a pool: flow, weight, priority, cost, and how long it can wait.

use tokio::time::Instant;

/// Requests that share one turn: a client's key, or a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId(u64);

impl FlowId {
    /// All who belong to none.
    pub const SHARED: Self = Self(0);
    /// All who are not told apart, because there are too many.
    pub(super) const OVERFLOW: Self = Self(1);

    /// Of a number that stands for a name; a keyed hash, so that nobody can choose to be another.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(number.max(2))
    }
}

/// Who goes first when a slot is free. None is ever taken back for a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// What nobody waits for: batches.
    Low,
    /// Everything that says nothing else.
    #[default]
    Normal,
    /// Before everything else.
    High,
}

impl From<forebay_proto::Priority> for Priority {
    fn from(of_key: forebay_proto::Priority) -> Self {
        match of_key {
            forebay_proto::Priority::Low => Self::Low,
            forebay_proto::Priority::Normal => Self::Normal,
            forebay_proto::Priority::High => Self::High,
        }
    }
}

impl Priority {
    /// All of them, the lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// The word of a header.
    #[must_use]
    pub fn from_word(word: &[u8]) -> Option<Self> {
        match word {
            b"low" => Some(Self::Low),
            b"normal" => Some(Self::Normal),
            b"high" => Some(Self::High),
            _ => None,
        }
    }
}

/// Its place among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Whose it is.
    pub flow: FlowId,
    /// The flow's share relative to the others of its priority; 0 counts as 1.
    pub weight: u32,
    /// Its band.
    pub priority: Priority,
    /// How much of the flow's turns it takes, in any unit that is the same for all of a model.
    pub cost: u32,
}

impl Default for Ask {
    /// One request of no flow.
    fn default() -> Self {
        Self {
            flow: FlowId::SHARED,
            weight: 1,
            priority: Priority::Normal,
            cost: 1,
        }
    }
}

/// A request's claim to a connection.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Its place among the others.
    pub ask: Ask,
    /// It waits until then.
    pub deadline: Instant,
    /// When its client gives up, if that said so: in time before that an answer has to begin.
    pub patience: Option<Instant>,
}

impl Claim {
    /// One that waits in no flow's turn until this deadline.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self {
            ask: Ask::default(),
            deadline,
            patience: None,
        }
    }
}
