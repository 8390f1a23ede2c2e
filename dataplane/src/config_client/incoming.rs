//! What is pushed, until it is a whole configuration: chunks put together, deltas spliced into what the worker
//! holds. Pure: messages and the time in, a configuration or a way out.
//!
//! Sizes are announced before the bytes come and checked against the limit first; what does not keep to its
//! announcement is an error of the protocol, and ends the stream. A delta whose base or result is another is not:
//! the whole is asked for. Nothing here is in force, and nothing of it outlives its stream.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_proto::{Digest, Parts, Position, limits, wire};
use prost::Message as _;
use tokio::time::Instant;

use super::Kept;

/// From the announcement to the last chunk.
pub(super) const WITHIN: Duration = Duration::from_secs(60);

/// A push that is whole.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pushed {
    pub(super) push_id: u64,
    pub(super) to: Position,
    pub(super) config: Bytes,
    pub(super) traceparent: String,
}

/// What came of a message.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Came {
    /// A push is whole.
    Push(Pushed),
    /// More is to come.
    More,
    /// The delta cannot be used, because of this.
    Useless { push_id: u64, why: &'static str },
}

/// The peer does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(&'static str);

impl Broken {
    /// What it does.
    pub(super) fn text(self) -> &'static str {
        self.0
    }
}

/// What a push is besides its bytes.
#[derive(Debug, Clone)]
struct Head {
    push_id: u64,
    /// What a delta begins with.
    from: Option<Position>,
    to: Position,
    traceparent: String,
}

/// Chunks so far.
#[derive(Debug)]
struct Coming {
    head: Head,
    size: usize,
    got: BytesMut,
    next: u32,
    deadline: Instant,
}

/// The push that is under way on one stream.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    coming: Option<Coming>,
    /// A delta that was of no use: chunks of it may be on their way still.
    useless: Option<u64>,
}

impl Incoming {
    /// When the chunks must be there.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.coming.as_ref().map(|coming| coming.deadline)
    }

    /// A whole configuration, or its announcement.
    pub(super) fn push(&mut self, push: wire::Push) -> Result<Came, Broken> {
        let head = Head {
            push_id: push.push_id,
            from: None,
            to: position(push.to)?,
            traceparent: push.traceparent,
        };
        self.begin(head, push.config, push.chunked_bytes, None)
    }

    /// What changed, or its announcement.
    pub(super) fn delta(
        &mut self,
        delta: wire::Delta,
        held: Option<&Kept>,
    ) -> Result<Came, Broken> {
        let head = Head {
            push_id: delta.push_id,
            from: Some(position(delta.from)?),
            to: position(delta.to)?,
            traceparent: delta.traceparent,
        };
        self.begin(head, delta.change, delta.chunked_bytes, held)
    }

    /// A part of what was announced.
    pub(super) fn chunk(
        &mut self,
        chunk: wire::Chunk,
        held: Option<&Kept>,
    ) -> Result<Came, Broken> {
        let coming = match self.coming.take() {
            Some(coming) if coming.head.push_id == chunk.push_id => coming,
            coming if self.useless == Some(chunk.push_id) => {
                self.coming = coming;
                return Ok(Came::More);
            }
            _ => return Err(Broken("a chunk of a push that was not announced")),
        };
        let Coming { size, next, .. } = coming;
        let (mut got, data) = (coming.got, chunk.data);
        if chunk.index != next || data.is_empty() {
            return Err(Broken("a chunk out of order"));
        }
        if data.len() > size.saturating_sub(got.len()) {
            return Err(Broken("more bytes than were announced"));
        }
        got.extend_from_slice(&data);
        match (chunk.last, got.len() == size) {
            (true, true) => Ok(self.whole(coming.head, got.freeze(), held)),
            (false, false) => {
                let next = next.saturating_add(1);
                self.coming = Some(Coming {
                    got,
                    next,
                    ..coming
                });
                Ok(Came::More)
            }
            (true, false) => Err(Broken("fewer bytes than were announced")),
            (false, true) => Err(Broken("all bytes came, and the last chunk is not marked")),
        }
    }

    fn begin(
        &mut self,
        head: Head,
        here: Bytes,
        chunked: u64,
        held: Option<&Kept>,
    ) -> Result<Came, Broken> {
        if self.coming.is_some() {
            return Err(Broken("a push while another one is under way"));
        }
        if head.from.is_some() && held.map(|held| &held.position) != head.from.as_ref() {
            return Ok(self.useless(head.push_id, "it begins with another configuration"));
        }
        if chunked == 0 {
            return Ok(self.whole(head, here, held));
        }
        let most = limits::MESSAGE_BYTES;
        let size = usize::try_from(chunked).ok().filter(|size| *size <= most);
        let size = size.ok_or(Broken("a push larger than any configuration may be"))?;
        if !here.is_empty() {
            return Err(Broken(
                "a push that is in its message and in chunks as well",
            ));
        }
        self.coming = Some(Coming {
            head,
            size,
            got: BytesMut::with_capacity(size),
            next: 0,
            deadline: Instant::now() + WITHIN,
        });
        Ok(Came::More)
    }

    fn whole(&mut self, head: Head, bytes: Bytes, held: Option<&Kept>) -> Came {
        let config = match (&head.from, held) {
            (None, _) => Ok(bytes),
            // The base was looked at when the push was announced; it cannot change while one is unanswered.
            (Some(_), Some(held)) => splice(held, bytes, &head.to),
            (Some(_), None) => Err("nothing is held that it could change"),
        };
        match config {
            Err(why) => self.useless(head.push_id, why),
            Ok(config) => Came::Push(Pushed {
                push_id: head.push_id,
                to: head.to,
                config,
                traceparent: head.traceparent,
            }),
        }
    }

    fn useless(&mut self, push_id: u64, why: &'static str) -> Came {
        self.useless = Some(push_id);
        Came::Useless { push_id, why }
    }
}

fn splice(held: &Kept, change: Bytes, to: &Position) -> Result<Bytes, &'static str> {
    let change = wire::Change::decode(change).map_err(|_| "it cannot be decoded")?;
    let parts = Parts::split(&held.config);
    let parts = parts.map_err(|_| "what is held cannot be taken apart")?;
    let changed = parts.changed(change);
    let config = changed.map_err(|_| "it does not fit what is held")?.join();
    match Digest::of(&config) == to.digest {
        true => Ok(config),
        false => Err("its result has another digest"),
    }
}

fn position(wire: Option<wire::Position>) -> Result<Position, Broken> {
    let wire = wire.ok_or(Broken("a push without a position"))?;
    Position::try_from(wire).map_err(|_| Broken("a push with a malformed position"))
}

#[cfg(test)]
mod tests {
    use forebay_proto::{Epoch, Revision};
    use proptest::prelude::*;

    use super::*;

    fn kept(revision: u64, models: &[(&str, u64)]) -> Kept {
        let models = models.iter().map(|(id, content)| wire::Model {
            id: (*id).to_owned(),
            revision: *content,
            ..wire::Model::default()
        });
        let config = wire::Config {
            budget: 7,
            models: models.collect(),
        };
        let config = Bytes::from(config.encode_to_vec());
        let position = Position {
            epoch: Epoch::new("aa").unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&config),
        };
        Kept {
            position,
            config,
            retained: Vec::new(),
        }
    }

    fn old() -> Kept {
        kept(1, &[("a", 1), ("b", 1), ("c", 1)])
    }

    fn new() -> Kept {
        kept(2, &[("a", 1), ("b", 2), ("d", 1)])
    }

    fn change() -> Bytes {
        let (old, new) = (old(), new());
        let (old, new) = (
            Parts::split(&old.config).unwrap(),
            Parts::split(&new.config).unwrap(),
        );
        let ids = old.differences(&new);
        let change = new.change(ids.iter().map(String::as_str));
        change.encode_to_vec().into()
    }

    fn delta(from: &Kept, to: &Kept) -> wire::Delta {
        wire::Delta {
            push_id: 1,
            from: Some((&from.position).into()),
            to: Some((&to.position).into()),
            change: change(),
            ..wire::Delta::default()
        }
    }

    fn announced(size: usize) -> wire::Push {
        wire::Push {
            push_id: 1,
            to: Some((&new().position).into()),
            chunked_bytes: size as u64,
            ..wire::Push::default()
        }
    }

    fn chunk(index: u32, last: bool, data: &[u8]) -> wire::Chunk {
        wire::Chunk {
            push_id: 1,
            index,
            last,
            data: Bytes::copy_from_slice(data),
        }
    }

    fn config(came: Came) -> Bytes {
        match came {
            Came::Push(pushed) => pushed.config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_delta_on_what_is_held_gives_the_new_whole() {
        let came = Incoming::default().delta(delta(&old(), &new()), Some(&old()));
        assert_eq!(config(came.unwrap()), new().config);
    }

    #[test]
    fn a_delta_that_does_not_fit_is_useless_and_no_error() {
        let other = kept(1, &[("a", 1)]);
        let wrong_result = kept(2, &[("a", 9)]);
        let garbled = wire::Delta {
            change: Bytes::from_static(&[0xff]),
            ..delta(&old(), &new())
        };
        for (what, delta, held) in [
            ("nothing is held", delta(&old(), &new()), None),
            ("another base", delta(&old(), &new()), Some(other)),
            ("another result", delta(&old(), &wrong_result), Some(old())),
            ("garbled", garbled, Some(old())),
        ] {
            let came = Incoming::default().delta(delta, held.as_ref()).unwrap();
            assert!(
                matches!(came, Came::Useless { push_id: 1, .. }),
                "{what}: {came:?}"
            );
        }
    }

    #[test]
    fn chunks_of_a_useless_delta_are_passed_over_until_the_whole_comes() {
        let mut incoming = Incoming::default();
        let delta = wire::Delta {
            change: Bytes::new(),
            chunked_bytes: 2,
            ..delta(&new(), &new())
        };
        let came = incoming.delta(delta, Some(&old())).unwrap();
        assert!(matches!(came, Came::Useless { .. }));
        assert_eq!(incoming.chunk(chunk(0, false, b"x"), None), Ok(Came::More));
        let whole = wire::Push {
            push_id: 2,
            config: new().config,
            chunked_bytes: 0,
            ..announced(0)
        };
        assert_eq!(config(incoming.push(whole).unwrap()), new().config);
    }

    #[test]
    fn what_does_not_keep_to_its_announcement_is_broken() {
        for (what, chunks) in [
            ("from the middle", vec![chunk(1, false, b"ab")]),
            (
                "twice",
                vec![chunk(0, false, b"ab"), chunk(0, false, b"ab")],
            ),
            ("too much", vec![chunk(0, true, b"abcdef")]),
            ("too little", vec![chunk(0, true, b"abcd")]),
            ("without an end", vec![chunk(0, false, b"abcde")]),
            ("empty", vec![chunk(0, false, b"")]),
        ] {
            let mut incoming = Incoming::default();
            assert_eq!(incoming.push(announced(5)), Ok(Came::More));
            let came: Vec<_> = chunks
                .into_iter()
                .map(|c| incoming.chunk(c, None))
                .collect();
            assert!(came.last().unwrap().is_err(), "{what}");
        }
        let mut incoming = Incoming::default();
        assert!(incoming.push(announced(limits::MESSAGE_BYTES + 1)).is_err());
        assert!(
            incoming.chunk(chunk(0, true, b"a"), None).is_err(),
            "not announced"
        );
        assert_eq!(incoming.push(announced(5)), Ok(Came::More));
        assert!(incoming.push(announced(5)).is_err(), "one at a time");
        let both = wire::Push {
            config: new().config,
            ..announced(5)
        };
        assert!(Incoming::default().push(both).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn chunks_have_a_deadline_from_the_announcement_on() {
        let mut incoming = Incoming::default();
        assert_eq!(incoming.deadline(), None);
        incoming.push(announced(5)).unwrap();
        let deadline = Instant::now() + WITHIN;
        tokio::time::advance(Duration::from_secs(10)).await;
        incoming.chunk(chunk(0, false, b"ab"), None).unwrap();
        assert_eq!(incoming.deadline(), Some(deadline));
        incoming.chunk(chunk(1, true, b"cde"), None).unwrap();
        assert_eq!(incoming.deadline(), None);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_same_comes_out(cuts in proptest::collection::vec(1_usize..9, 1..9), as_delta: bool) {
            let mut incoming = Incoming::default();
            let body = if as_delta { change() } else { new().config };
            let size = body.len();
            let began = match as_delta {
                false => incoming.push(announced(size)),
                true => {
                    let delta = delta(&old(), &new());
                    let (change, chunked_bytes) = (Bytes::new(), size as u64);
                    incoming.delta(wire::Delta { change, chunked_bytes, ..delta }, Some(&old()))
                }
            };
            prop_assert_eq!(began, Ok(Came::More));
            let (mut rest, mut index, mut cuts) = (body, 0, cuts.into_iter().cycle());
            let came = loop {
                let data = rest.split_to(cuts.next().unwrap().min(rest.len()));
                let came = incoming.chunk(chunk(index, rest.is_empty(), &data), Some(&old())).unwrap();
                index += 1;
                if rest.is_empty() { break came } else { prop_assert_eq!(came, Came::More) }
            };
            prop_assert_eq!(config(came), new().config);
        }
    }
}
