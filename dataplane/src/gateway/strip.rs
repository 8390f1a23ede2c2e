//! Takes the event with the usage out of a stream whose client did not ask for it. Everything else passes byte for
//! byte; only of an event that is not whole yet is something held back, until it is, or is too long to be that one.

use bytes::{Bytes, BytesMut};

use super::sse::Ended;

/// The usage takes some hundred bytes.
const MOST_HELD: usize = 16 * 1024;

/// What is held back of a stream.
#[derive(Debug, Default)]
pub(super) struct Strip {
    held: BytesMut,
    /// The event under way is not the one: it passes as it comes.
    passes: bool,
}

impl Strip {
    /// What of a piece, and of what was held back, is to be passed on, given the events that end in it.
    pub(super) fn pass(&mut self, piece: Bytes, ends: &[Ended]) -> Bytes {
        let whole = ends.last().is_some_and(|end| end.at == piece.len());
        let all = whole && self.held.is_empty() && !ends.iter().any(|end| end.usage_alone);
        if all {
            self.passes = false;
            return piece;
        }
        let mut out = BytesMut::with_capacity(self.held.len() + piece.len());
        let mut at = 0;
        for end in ends {
            let event = piece.get(at..end.at).unwrap_or_default();
            if self.passes || !end.usage_alone {
                out.extend_from_slice(&self.held);
                out.extend_from_slice(event);
            }
            self.held.clear();
            (self.passes, at) = (false, end.at);
        }
        let rest = piece.get(at..).unwrap_or_default();
        if self.held.len() + rest.len() > MOST_HELD {
            self.passes = true;
        }
        self.held.extend_from_slice(rest);
        if self.passes {
            out.extend_from_slice(&self.held);
            self.held.clear();
        }
        out.freeze()
    }

    /// What is held back, at the end of the stream.
    pub(super) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// A part of an event is held back.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::sse::{Dialect, Sse},
        *,
    };

    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n";
    const OTHERS: &[&str] = &[
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[]}\n\n",
        ": keep-alive\n\n",
        "data: [DONE]\n\n",
        "data: a\ndata: b\n\n",
        "\n",
        "data: {\"error\":{},\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n",
    ];

    fn stripped(text: &str, cuts: &[usize]) -> String {
        let (mut sse, mut strip) = (Sse::new(Dialect::Plain), Strip::default());
        let (mut out, mut at) = (Vec::new(), 0);
        for cut in cuts.iter().copied().chain([text.len()]) {
            let mut ends = Vec::new();
            let piece = Bytes::copy_from_slice(&text.as_bytes()[at..cut]);
            sse.push(&piece, |end| ends.push(end)).unwrap();
            out.extend_from_slice(&strip.pass(piece, &ends));
            at = cut;
        }
        out.extend_from_slice(&strip.rest());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_whole_passes_as_it_is() {
        let piece = Bytes::from_static(OTHERS[0].as_bytes());
        let (mut sse, mut ends) = (Sse::new(Dialect::Plain), Vec::new());
        sse.push(&piece, |end| ends.push(end)).unwrap();
        let passed = Strip::default().pass(piece.clone(), &ends);
        assert_eq!(passed.as_ptr(), piece.as_ptr(), "not a copy");
    }

    #[test]
    fn a_long_event_is_not_held_back() {
        let mut strip = Strip::default();
        let piece = Bytes::from(vec![b'x'; MOST_HELD]);
        assert!(strip.pass(piece.clone(), &[]).is_empty());
        assert!(strip.is_holding());
        assert_eq!(strip.pass(piece.clone(), &[]).len(), 2 * MOST_HELD);
        assert!(!strip.is_holding());
        assert_eq!(strip.pass(piece.clone(), &[]), piece);
    }

    proptest! {
        #[test]
        fn the_usage_goes_and_nothing_else(
            events in prop::collection::vec(prop::option::of(prop::sample::select(OTHERS)), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let text: String = events.iter().map(|event| event.unwrap_or(USAGE)).collect();
            let wanted: String = events.iter().map(|event| event.unwrap_or("")).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.sort_unstable();
            prop_assert_eq!(stripped(&text, &cuts), wanted);
        }
    }
}
