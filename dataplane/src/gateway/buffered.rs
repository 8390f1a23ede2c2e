//! The memory that bodies of requests take, all of them together: bounded, and counted as bytes arrive, so that
//! a client that announces much and sends nothing takes nothing from others.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Bytes of bodies that are held now.
#[derive(Debug)]
pub(super) struct Buffers {
    most: usize,
    held: AtomicUsize,
}

impl Buffers {
    /// At most so many.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: AtomicUsize::new(0),
        })
    }

    /// Most bytes.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// True if so many would fit as well.
    pub(super) fn have_room(&self, bytes: u64) -> bool {
        let held = self.held.load(Ordering::Relaxed) as u64;
        held.saturating_add(bytes) <= self.most as u64
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.most;
        if !fits {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

/// What one body holds of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Buffered {
    buffers: Arc<Buffers>,
    bytes: usize,
}

impl Buffered {
    /// Nothing yet.
    pub(super) fn none(buffers: &Arc<Buffers>) -> Self {
        Self {
            buffers: buffers.clone(),
            bytes: 0,
        }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.buffers.take(bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.buffers.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// There is no memory left for bodies.
#[derive(Debug, thiserror::Error)]
#[error("no memory is left for bodies")]
pub(super) struct NoRoom;

/// A body that is counted as it arrives.
pub(super) struct Counted<'a, B> {
    pub(super) body: &'a mut B,
    pub(super) held: &'a mut Buffered,
}

impl<B> Body for Counted<'_, B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut *self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match self.held.take(bytes) {
                true => Ok(frame),
                false => Err(NoRoom.into()),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn what_is_held_is_bounded_and_given_back() {
        let buffers = Buffers::new(10);
        let read = async |bytes: &'static [u8]| {
            let mut held = Buffered::none(&buffers);
            let mut body = Full::new(Bytes::from_static(bytes));
            let counted = Counted {
                body: &mut body,
                held: &mut held,
            };
            counted.collect().await.map(|_| held)
        };
        let first = read(b"123456").await.unwrap();
        let refused = read(b"12345").await.unwrap_err();
        assert!(refused.is::<NoRoom>());
        assert!(buffers.have_room(4) && !buffers.have_room(5));
        let second = read(b"1234").await.unwrap();
        drop(first);
        assert!(buffers.have_room(6));
        drop(second);
        assert_eq!(buffers.held.load(Ordering::Relaxed), 0);
    }
}
