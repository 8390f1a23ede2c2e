//! Which endpoint made which response. An engine keeps its responses in its own process, so what is asked about
//! one must go where it was made.
//!
//! Engines choose the ids, and bodies go upstream untouched, so an id says nothing of its endpoint: it is
//! remembered, as the answer passes by. That is a bounded memory and may be lost or be another worker's; then the
//! endpoints are asked. Nothing here delays or changes a byte.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use forebay_proto::{EndpointId, ModelId};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use super::json_body::{Found, find_text};

/// Most that are remembered; older ones are asked for.
const REMEMBERED: usize = 32_768;
/// Longest time for which one is.
const FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest id that is remembered.
const LONGEST_ID: usize = 128;
/// How much of an answer is looked at.
const LOOKED_AT: usize = 16 << 10;
/// Searches at a time: each asks several endpoints.
const SEARCHES: usize = 8;

/// The endpoint that made a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Maker {
    pub(super) model: ModelId,
    pub(super) endpoint: EndpointId,
}

#[derive(Debug)]
struct Noted {
    /// Which note it was.
    number: u64,
    at: Instant,
    maker: Maker,
}

#[derive(Debug, Default)]
struct Memory {
    makers: HashMap<Arc<str>, Noted>,
    /// Oldest in front; an id that was noted again is there twice.
    order: VecDeque<(u64, Instant, Arc<str>)>,
    notes: u64,
}

impl Memory {
    fn note(&mut self, id: &str, maker: Maker) {
        let (id, at): (Arc<str>, _) = (id.into(), Instant::now());
        self.notes += 1;
        let number = self.notes;
        self.order.push_back((number, at, id.clone()));
        self.makers.insert(id, Noted { number, at, maker });
        while let Some((_, noted, _)) = self.order.front()
            && (self.order.len() > REMEMBERED || at.duration_since(*noted) > FOR)
            && let Some((number, _, id)) = self.order.pop_front()
        {
            if self.makers.get(&id).is_some_and(|n| n.number == number) {
                self.makers.remove(&id);
            }
        }
    }
}

/// The memory of a worker.
#[derive(Debug)]
pub(super) struct Responses {
    memory: Arc<Mutex<Memory>>,
    pub(super) searches: Semaphore,
}

impl Default for Responses {
    fn default() -> Self {
        Self {
            memory: Arc::default(),
            searches: Semaphore::new(SEARCHES),
        }
    }
}

impl Responses {
    /// Who made it, if that is remembered.
    pub(super) fn maker(&self, id: &str) -> Option<Maker> {
        let memory = self.memory.lock();
        let noted = memory.makers.get(id)?;
        (noted.at.elapsed() <= FOR).then(|| noted.maker.clone())
    }

    /// Remembers it.
    pub(super) fn note(&self, id: &str, maker: Maker) {
        if id.len() <= LONGEST_ID {
            self.memory.lock().note(id, maker);
        }
    }

    /// Looks at an answer that passes by, for the response that this one made.
    pub(super) fn tap(&self, maker: Maker, events: bool) -> Box<ResponseTap> {
        Box::new(ResponseTap {
            memory: self.memory.clone(),
            maker,
            events,
            head: Vec::new(),
        })
    }
}

/// Looks for the id of a response in the beginning of an answer.
#[derive(Debug)]
pub(super) struct ResponseTap {
    memory: Arc<Mutex<Memory>>,
    maker: Maker,
    /// It comes as server-sent events.
    events: bool,
    head: Vec<u8>,
}

impl ResponseTap {
    /// These bytes pass by. True if it has seen enough.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> bool {
        let room = LOOKED_AT.saturating_sub(self.head.len());
        self.head.extend(bytes.iter().take(room));
        let found = match self.events {
            true => in_events(&self.head),
            false => find_text(&self.head, &["id"]),
        };
        match found {
            Found::Text(id) => {
                if id.len() <= LONGEST_ID {
                    self.memory.lock().note(&id, self.maker.clone());
                }
                true
            }
            Found::NotYet => self.head.len() >= LOOKED_AT,
            Found::Never => true,
        }
    }
}

/// The first event tells of the response that is made. Comments may come before it.
fn in_events(head: &[u8]) -> Found {
    const DATA: &[u8] = b"data:";
    let mut lines = head.split_inclusive(|byte| matches!(byte, b'\n' | b'\r'));
    lines
        .find_map(|line| line.strip_prefix(DATA))
        .map_or(Found::NotYet, |data| find_text(data, &["response", "id"]))
}

/// The id that an answer about a response begins with.
pub(super) fn id_of(answer: &[u8]) -> Found {
    find_text(answer, &["id"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker(endpoint: &str) -> Maker {
        Maker {
            model: ModelId::new("m").unwrap(),
            endpoint: EndpointId::new(endpoint).unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_are_remembered_for_a_while() {
        let responses = Responses::default();
        for n in 0..REMEMBERED + 10 {
            responses.note(&format!("resp_{n}"), maker("a"));
        }
        assert_eq!(responses.maker("resp_9"), None);
        assert_eq!(responses.maker("resp_10"), Some(maker("a")));
        responses.note("resp_10", maker("b"));
        responses.note("resp_x", maker("a"));
        assert_eq!(responses.maker("resp_10"), Some(maker("b")), "noted again");
        assert!(responses.memory.lock().makers.len() <= REMEMBERED);
        tokio::time::advance(FOR + Duration::from_secs(1)).await;
        assert_eq!(responses.maker("resp_10"), None);
        responses.note("resp_y", maker("a"));
        assert_eq!(
            responses.memory.lock().makers.len(),
            1,
            "the old ones are gone"
        );
        responses.note(&"x".repeat(200), maker("a"));
        assert_eq!(responses.memory.lock().makers.len(), 1);
    }

    #[test]
    fn an_id_is_seen_in_passing_however_it_is_cut() {
        let whole = br#"{"metadata":{"id":"resp_no"},"id":"resp_1","output":[]}"#;
        let stream = b": ping\n\nevent: response.created\ndata: {\"type\":\"response.created\",\"id\":\"no\",\
            \"response\":{\"metadata\":{\"id\":\"no\"},\"id\":\"resp_1\"}}\n\nevent: x\ndata: {}\n\n";
        for (bytes, events) in [(&whole[..], false), (&stream[..], true)] {
            for size in 1..bytes.len() {
                let responses = Responses::default();
                let mut tap = responses.tap(maker("a"), events);
                let enough = bytes.chunks(size).any(|chunk| tap.pass(chunk));
                assert!(enough);
                assert_eq!(responses.maker("resp_1"), Some(maker("a")), "{size}");
                assert_eq!(responses.maker("no"), None);
            }
        }
        let responses = Responses::default();
        let mut tap = responses.tap(maker("a"), false);
        assert!(tap.pass(b"<html>"), "no more of what is none");
        let mut tap = responses.tap(maker("a"), false);
        let long = format!("{{\"a\":\"{}", "x".repeat(LOOKED_AT));
        assert!(tap.pass(long.as_bytes()), "nor of what is too long");
    }
}
