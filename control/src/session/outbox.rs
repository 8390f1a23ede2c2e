//! What is on its way to one worker: words, and the body of at most one push, cut into chunks as they are sent. It
//! shares the bytes of the push with all other sessions, and is dropped with the stream.
//!
//! It must not know the stream: who takes words out says when that happened.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use forebay_proto::{limits, wire};
use tokio::time::Instant;
use wire::to_worker::Message as Say;

/// How long the stream may be full before the worker counts as stalled.
const WITHIN: Duration = Duration::from_secs(30);

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    words: VecDeque<Say>,
    body: Option<Body>,
    /// When the stream took something last, or the first word came that it did not take yet.
    progress: Option<Instant>,
}

#[derive(Debug)]
struct Body {
    push_id: u64,
    index: u32,
    rest: Bytes,
}

impl Outbox {
    /// One more word.
    pub(super) fn say(&mut self, word: Say) {
        if self.is_empty() {
            self.progress = Some(Instant::now());
        }
        self.words.push_back(word);
    }

    /// The body of the push that was announced just now. What is left of an earlier one is not wanted any more.
    pub(super) fn body(&mut self, push_id: u64, rest: Bytes) {
        self.body = (!rest.is_empty()).then_some(Body {
            push_id,
            index: 0,
            rest,
        });
    }

    /// True if there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty() && self.body.is_none()
    }

    /// The next message, which the stream takes now.
    pub(super) fn take(&mut self) -> Option<wire::ToWorker> {
        self.progress = Some(Instant::now());
        let word = self.words.pop_front();
        let message = word.or_else(|| self.chunk().map(Say::Chunk))?;
        Some(wire::ToWorker {
            message: Some(message),
        })
    }

    /// When a worker that takes nothing counts as stalled.
    pub(super) fn stalled_at(&self) -> Option<Instant> {
        let waits = self.progress.filter(|_| !self.is_empty());
        waits.map(|since| since + WITHIN)
    }

    fn chunk(&mut self) -> Option<wire::Chunk> {
        let body = self.body.as_mut()?;
        let index = body.index;
        body.index = index.saturating_add(1);
        let data = body.rest.split_to(limits::CHUNK_BYTES.min(body.rest.len()));
        let (push_id, last) = (body.push_id, body.rest.is_empty());
        if last {
            self.body = None;
        }
        Some(wire::Chunk {
            push_id,
            index,
            last,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(outbox: &mut Outbox) -> Vec<wire::Chunk> {
        let mut all = Vec::new();
        while let Some(message) = outbox.take() {
            if let Some(Say::Chunk(chunk)) = message.message {
                all.push(chunk);
            }
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_goes_in_chunks_after_its_announcement() {
        for len in [
            1,
            limits::CHUNK_BYTES,
            limits::CHUNK_BYTES + 1,
            limits::CONFIG_BYTES,
        ] {
            let mut outbox = Outbox::default();
            outbox.say(Say::Push(wire::Push::default()));
            outbox.body(7, Bytes::from(vec![1; len]));
            let first = outbox.take().unwrap();
            assert!(matches!(first.message, Some(Say::Push(_))));
            let chunks = chunks(&mut outbox);
            assert!(outbox.is_empty());
            assert_eq!(chunks.iter().map(|c| c.data.len()).sum::<usize>(), len);
            for (n, chunk) in chunks.iter().enumerate() {
                assert_eq!((chunk.push_id, chunk.index as usize), (7, n));
                assert_eq!(chunk.last, n + 1 == chunks.len());
                assert!((1..=limits::CHUNK_BYTES).contains(&chunk.data.len()));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_push_takes_the_place_of_what_is_left_of_the_older() {
        let mut outbox = Outbox::default();
        outbox.body(1, Bytes::from(vec![1; 2 * limits::CHUNK_BYTES]));
        assert!(outbox.take().is_some());
        outbox.body(2, Bytes::from_static(b"two"));
        let chunks = chunks(&mut outbox);
        assert_eq!(chunks.len(), 1);
        assert_eq!(
            (chunks[0].push_id, chunks[0].index, chunks[0].last),
            (2, 0, true)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_stalled_and_who_takes_little_is_not() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.stalled_at(), None);
        let began = Instant::now();
        outbox.say(Say::Tick(wire::Tick::default()));
        tokio::time::advance(Duration::from_secs(10)).await;
        outbox.say(Say::Tick(wire::Tick::default()));
        assert_eq!(outbox.stalled_at(), Some(began + WITHIN), "since the first");
        assert!(outbox.take().is_some());
        assert_eq!(outbox.stalled_at(), Some(Instant::now() + WITHIN));
        assert!(outbox.take().is_some());
        assert_eq!(outbox.stalled_at(), None);
    }
}
