//! The body of a request to an upstream: up to three pieces that belong together, so that a word in the middle
//! can be another without a copy of what is around it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Most pieces.
const PIECES: usize = 3;

/// A body whose length is known.
#[derive(Debug, Clone, Default)]
pub struct RequestBody {
    pieces: [Bytes; PIECES],
    /// The one that is sent next.
    next: usize,
}

impl From<Bytes> for RequestBody {
    fn from(whole: Bytes) -> Self {
        Self {
            pieces: [whole, Bytes::new(), Bytes::new()],
            next: 0,
        }
    }
}

impl From<[Bytes; PIECES]> for RequestBody {
    fn from(pieces: [Bytes; PIECES]) -> Self {
        Self { pieces, next: 0 }
    }
}

impl RequestBody {
    fn rest(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter().skip(self.next)
    }

    fn left(&self) -> usize {
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
