//! The body of a request to an upstream: a few pieces that belong together, so that words in the middle can be others
//! without a copy of what is around them.

use std::{
    convert::Infallible,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Most pieces.
const PIECES: usize = 5;

/// A body whose length is known.
#[derive(Debug, Clone, Default)]
pub struct RequestBody {
    pieces: [Bytes; PIECES],
    /// The one that is sent next.
    next: usize,
}

/// What stands in place of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) at: Range<usize>,
    pub(crate) text: Bytes,
}

impl From<Bytes> for RequestBody {
    fn from(whole: Bytes) -> Self {
        Self {
            pieces: [
                whole,
                Bytes::new(),
                Bytes::new(),
                Bytes::new(),
                Bytes::new(),
            ],
            next: 0,
        }
    }
}

impl RequestBody {
    /// A body with other words in it. They stand in order, and apart.
    pub(crate) fn edited(body: &Bytes, edits: [Option<&Edit>; 2]) -> Self {
        let mut pieces: [Bytes; PIECES] = Default::default();
        let (mut next, mut from) = (0, 0);
        let mut push = |piece: Bytes| {
            if let Some(place) = pieces.get_mut(next) {
                *place = piece;
                next += 1;
            }
        };
        for edit in edits.into_iter().flatten() {
            let start = edit.at.start.clamp(from, body.len());
            push(body.slice(from..start));
            push(edit.text.clone());
            from = edit.at.end.clamp(start, body.len());
        }
        push(body.slice(from..));
        Self { pieces, next: 0 }
    }

    fn rest(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter().skip(self.next)
    }

    /// Bytes that are still to be sent.
    pub(crate) fn left(&self) -> usize {
        self.rest().map(Bytes::len).sum()
    }

    /// All of it in one piece.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn concat(&self) -> Vec<u8> {
        self.rest()
            .flat_map(|piece| piece.iter().copied())
            .collect()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        while let Some(piece) = this.pieces.get_mut(this.next) {
            this.next += 1;
            if !piece.is_empty() {
                let piece = std::mem::take(piece);
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left() as u64)
    }
}
