//! What is read of an upstream's body in passing, by its kind: events, JSON, or nothing.

use super::{
    facts::{Finish, JsonScan, Usage},
    sse::{Ended, Seen, Sse, TooLong},
    stream_style::StreamStyle,
};

/// What comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Server-sent events.
    Events(StreamStyle),
    /// A whole answer.
    Json,
    /// Nothing of which we know what it says.
    Other,
}

/// What an answer said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    /// What its engine said that it took.
    pub(crate) usage: Option<Usage>,
    /// Events of a stream that may have carried a token each.
    pub(crate) events: u64,
    pub(crate) finish: Option<Finish>,
}

/// Reads along.
#[derive(Debug)]
pub(super) enum Passing {
    Events(Sse),
    Json(JsonScan),
    Nothing,
}

impl Passing {
    pub(super) fn of(content: Content) -> Self {
        match content {
            Content::Events(style) => Self::Events(Sse::new(style.dialect())),
            Content::Json => Self::Json(JsonScan::default()),
            Content::Other => Self::Nothing,
        }
    }

    /// The next piece. Told of each event that ends in it.
    pub(super) fn push(&mut self, piece: &[u8], ended: impl FnMut(Ended)) -> Result<(), TooLong> {
        match self {
            Self::Events(sse) => sse.push(piece, ended)?,
            Self::Json(json) => json.push(piece),
            Self::Nothing => {}
        }
        Ok(())
    }

    /// An event of ours may follow.
    pub(super) fn is_between_events(&self) -> bool {
        matches!(self, Self::Events(sse) if sse.is_between_events())
    }

    /// What a stream said.
    pub(super) fn stream(&self) -> Option<&Seen> {
        match self {
            Self::Events(sse) => Some(sse.seen()),
            Self::Json(_) | Self::Nothing => None,
        }
    }

    /// True if what came is known to be all, whatever the framing says; none if it cannot be known.
    pub(super) fn is_complete(&self) -> Option<bool> {
        match self {
            // Some engines give a reason and no end.
            Self::Events(sse) => {
                let seen = sse.seen();
                Some(seen.ended || (seen.finish.is_some() && sse.is_between_events()))
            }
            Self::Json(json) => Some(json.is_closed()),
            Self::Nothing => None,
        }
    }

    pub(super) fn told(&mut self) -> Told {
        let (usage, finish, events) = match self {
            Self::Events(sse) => (sse.seen().usage, sse.seen().finish, sse.seen().events),
            Self::Json(json) => {
                let facts = json.facts();
                (facts.usage, facts.finish.or(facts.stop), 0)
            }
            Self::Nothing => return Told::default(),
        };
        Told {
            usage: Some(usage).filter(Usage::is_known),
            events,
            finish,
        }
    }
}
