//! The connections of clients: how many, whose, what each is about, and which one has to go.
//!
//! Who closes a connection that does nothing is one sweep over all of them, once a second, and not a timer
//! for each; so time is told by a clock that the sweep moves, and a request costs a few stores. Whether a
//! connection has to go is pure. It knows nothing of requests but how many there are.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    task::{AbortHandle, Id},
    time::Instant,
};

use crate::metrics::{ClientClosed, Metrics};

/// Set in the count of requests once the connection is given up.
const GIVEN_UP: u32 = 1 << 31;
/// Most bytes that an HTTP/2 client sends between its requests: settings, pings and windows, and what was on its way for
/// requests that were refused, which may be as much as the connection's window.
const MOST_BETWEEN: u64 = 2 * 1024 * 1024;
/// When all are in use, this share of them gives way at once, so that they are not gone through for each new one.
const SHARE_THAT_YIELDS: usize = 256;

/// What a worker takes from its clients.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// Most connections of one peer: an IPv4 address or the first half of an IPv6 one. Half of all if absent, as many as
    /// there are if 0.
    pub per_peer: Option<usize>,
    /// Hosts that are served; all if empty.
    pub allowed_hosts: Vec<String>,
    /// Longest time to the first bytes of a connection.
    pub first_bytes: Duration,
    /// Longest time to the whole head of a request, from its first byte.
    pub head: Duration,
    /// How long a connection may rest between requests.
    pub rest: Duration,
    /// How long a client may take nothing of what it is sent.
    pub unread: Duration,
    /// How long a request's body may come slower than 1 KiB/s.
    pub slow_body: Duration,
    /// Longest time to the whole of it.
    pub body: Duration,
    /// How often an HTTP/2 client is asked whether it is there.
    pub ping: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            per_peer: None,
            allowed_hosts: Vec::new(),
            first_bytes: Duration::from_secs(10),
            head: Duration::from_secs(10),
            // Longer than any pool or load balancer is known to keep its own (docs/adr/0021), so that it is
            // never us who close while a request is on its way.
            rest: Duration::from_secs(620),
            // After the watchdog, which knows which answer it is that nobody reads.
            unread: Duration::from_secs(48),
            slow_body: Duration::from_secs(10),
            body: Duration::from_secs(60),
            ping: Duration::from_secs(20),
        }
    }
}

/// Milliseconds, as of the last sweep.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicU64);

impl Clock {
    fn now(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Speaks {
    Nothing = 0,
    Http1 = 1,
    Http2 = 2,
}

/// What one connection is about.
#[derive(Debug)]
pub(super) struct Presence {
    clock: Arc<Clock>,
    speaks: AtomicU8,
    /// Requests that are not over.
    busy: AtomicU32,
    /// When the last of them was over, or the connection came.
    since: AtomicU64,
    /// Bytes read since.
    between: AtomicU64,
    /// One more than when the first byte of a head came; 0 if none did.
    head: AtomicU64,
    /// One more than when a write was first held up; 0 if none is.
    held_up: AtomicU64,
    /// Bytes may still come that nobody reads.
    unread: AtomicBool,
}

/// A request that is not over.
#[derive(Debug)]
pub(super) struct Busy(Arc<Presence>);

impl Presence {
    pub(super) fn new(clock: &Arc<Clock>) -> Self {
        Self {
            clock: clock.clone(),
            speaks: AtomicU8::new(Speaks::Nothing as u8),
            busy: AtomicU32::new(0),
            since: AtomicU64::new(clock.now()),
            between: AtomicU64::new(0),
            head: AtomicU64::new(0),
            held_up: AtomicU64::new(0),
            unread: AtomicBool::new(false),
        }
    }

    /// It is clear what it speaks.
    pub(super) fn speaks(&self, what: Speaks) {
        self.speaks.store(what as u8, Relaxed);
    }

    /// A request began; nothing if the connection was given up the moment before.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Busy> {
        if self.busy.fetch_add(1, SeqCst) & GIVEN_UP != 0 {
            return None;
        }
        self.head.store(0, Relaxed);
        self.between.store(0, Relaxed);
        Some(Busy(self.clone()))
    }

    /// So many bytes came.
    pub(super) fn came(&self, bytes: usize) {
        if bytes == 0 || self.busy.load(Relaxed) != 0 {
            return;
        }
        if self.head.load(Relaxed) == 0 {
            self.head.store(self.clock.now() + 1, Relaxed);
        }
        self.between.fetch_add(bytes as u64, Relaxed);
    }

    /// A write went through, or was held up.
    pub(super) fn wrote(&self, went_through: bool) {
        let held_up = self.held_up.load(Relaxed) != 0;
        match went_through {
            true if held_up => self.held_up.store(0, Relaxed),
            false if !held_up => self.held_up.store(self.clock.now() + 1, Relaxed),
            _ => {}
        }
    }

    /// An answer leaves before all of its request was read.
    pub(super) fn leaves_unread(&self) {
        self.unread.store(true, Relaxed);
    }

    /// Whether there may be bytes that nobody read.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    fn is_at_rest(&self) -> bool {
        self.busy.load(Relaxed) == 0
    }

    /// The less it is, the sooner it may give way.
    fn how_dear(&self) -> (bool, u64) {
        let moves = self.head.load(Relaxed) != 0 || self.held_up.load(Relaxed) != 0;
        (moves, self.since.load(Relaxed))
    }

    /// Why it has to go, if it has to.
    fn verdict(&self, limits: &ClientLimits) -> Option<ClientClosed> {
        let now = self.clock.now();
        let over =
            |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) > limit.as_millis();
        let since = |field: &AtomicU64| field.load(Relaxed).checked_sub(1);
        if since(&self.held_up).is_some_and(|at| over(at, limits.unread)) {
            return Some(ClientClosed::Unread);
        }
        if !self.is_at_rest() {
            return None;
        }
        let speaks = self.speaks.load(Relaxed);
        let rests = self.since.load(Relaxed);
        if speaks == Speaks::Nothing as u8 {
            return over(rests, limits.first_bytes).then_some(ClientClosed::Silent);
        }
        let slow = speaks == Speaks::Http1 as u8
            && since(&self.head).is_some_and(|at| over(at, limits.head));
        let flood = speaks == Speaks::Http2 as u8 && self.between.load(Relaxed) > MOST_BETWEEN;
        match (slow, flood) {
            (true, _) => Some(ClientClosed::SlowHead),
            (_, true) => Some(ClientClosed::Flood),
            _ => over(rests, limits.rest).then_some(ClientClosed::Idle),
        }
    }

    /// Lets no request begin any more; false if one did.
    fn give_up(&self) -> bool {
        let given_up = self.busy.compare_exchange(0, GIVEN_UP, SeqCst, SeqCst);
        given_up.is_ok()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let presence = &self.0;
        if presence.busy.fetch_sub(1, SeqCst) == 1 {
            presence.since.store(presence.clock.now(), Relaxed);
            presence.head.store(0, Relaxed);
            presence.between.store(0, Relaxed);
        }
    }
}

/// Whose a connection is. Somebody with IPv6 has at least 2^64 addresses, all of which count as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Peer(u128);

impl Peer {
    pub(super) fn of(addr: IpAddr) -> Self {
        const NETWORK: u128 = !0 << 64;
        let bits = |v6: Ipv6Addr| u128::from(v6);
        Self(match addr.to_canonical() {
            IpAddr::V4(v4) => bits(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => bits(v6) & NETWORK,
        })
    }
}

#[derive(Debug)]
struct Client {
    peer: Peer,
    presence: Arc<Presence>,
    task: AbortHandle,
}

/// All connections of clients; the loop that accepts them owns it.
#[derive(Debug)]
pub(super) struct Clients {
    limits: ClientLimits,
    most: usize,
    per_peer: usize,
    clock: Arc<Clock>,
    began: Instant,
    all: HashMap<Id, Client>,
    peers: HashMap<Peer, usize>,
    metrics: Arc<Metrics>,
}

impl Clients {
    /// At most so many.
    pub(super) fn new(limits: ClientLimits, most: usize, metrics: Arc<Metrics>) -> Self {
        let per_peer = match limits.per_peer {
            Some(0) => most,
            Some(some) => some.min(most),
            None => most.div_ceil(2),
        };
        Self {
            limits,
            most,
            per_peer,
            clock: Arc::default(),
            began: Instant::now(),
            all: HashMap::new(),
            peers: HashMap::new(),
            metrics,
        }
    }

    /// For a new connection.
    pub(super) fn presence(&self) -> Arc<Presence> {
        Arc::new(Presence::new(&self.clock))
    }

    /// True if there is room for one more, or was made. Otherwise all are in use, and new ones wait.
    pub(super) fn has_room(&mut self) -> bool {
        if self.all.len() >= self.most {
            self.yield_some(None, (self.most / SHARE_THAT_YIELDS).max(1));
        }
        self.all.len() < self.most
    }

    /// True if this peer may have one more, or one of its own gave way.
    pub(super) fn admits(&mut self, peer: Peer) -> bool {
        let full = |this: &Self| this.peers.get(&peer).is_some_and(|n| *n >= this.per_peer);
        if full(self) {
            self.yield_some(Some(peer), (self.per_peer / SHARE_THAT_YIELDS).max(1));
        }
        let admits = !full(self);
        if !admits {
            self.metrics.client_closed(ClientClosed::PeerLimit);
        }
        admits
    }

    /// A connection is served.
    pub(super) fn add(&mut self, peer: Peer, presence: Arc<Presence>, task: AbortHandle) {
        *self.peers.entry(peer).or_default() += 1;
        let client = Client {
            peer,
            presence,
            task,
        };
        self.all.insert(client.task.id(), client);
    }

    /// It is over.
    pub(super) fn remove(&mut self, id: Id) {
        let Some(client) = self.all.remove(&id) else {
            return;
        };
        if let Some(count) = self.peers.get_mut(&client.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&client.peer);
            }
        }
    }

    /// Moves the clock and closes those that have to go.
    pub(super) fn sweep(&mut self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.clock.0.store(now, Relaxed);
        let gone: Vec<(Id, ClientClosed)> = self
            .all
            .iter()
            .filter_map(|(id, client)| Some((*id, client.presence.verdict(&self.limits)?)))
            .collect();
        for (id, why) in gone {
            self.close(id, why);
        }
        let resting = self
            .all
            .values()
            .filter(|c| c.presence.is_at_rest())
            .count();
        self.metrics.clients(resting, self.all.len() - resting);
    }

    /// Those that have rested longest give way: so many of them, if there are as many. Those on which something is on its
    /// way, the end of an answer or the beginning of a request, come last.
    fn yield_some(&mut self, of: Option<Peer>, most: usize) {
        let mut resting: Vec<((bool, u64), Id)> = self
            .all
            .iter()
            .filter(|(_, client)| of.is_none_or(|peer| peer == client.peer))
            .filter(|(_, client)| client.presence.is_at_rest())
            .map(|(id, client)| (client.presence.how_dear(), *id))
            .collect();
        resting.sort_unstable_by_key(|(dear, _)| *dear);
        for (_, id) in resting.into_iter().take(most) {
            self.close(id, ClientClosed::Evicted);
        }
    }

    fn close(&mut self, id: Id, why: ClientClosed) {
        let Some(client) = self.all.get(&id) else {
            return;
        };
        // One that is held up has requests, and loses them; at rest means that it has none.
        if why == ClientClosed::Unread || client.presence.give_up() {
            client.task.abort();
            self.metrics.client_closed(why);
            self.remove(id);
        }
    }
}

#[cfg(test)]
#[path = "clients_tests.rs"]
mod tests;
