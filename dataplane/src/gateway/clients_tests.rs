//! What the sweep and the caps do to clients' connections, on a paused clock.

use std::net::Ipv4Addr;

use prometheus::Registry;
use tokio::task::JoinSet;

use super::*;

fn limits() -> ClientLimits {
    ClientLimits::default()
}

fn presence(speaks: Speaks) -> (Arc<Clock>, Arc<Presence>) {
    let clock = Arc::<Clock>::default();
    let presence = Arc::new(Presence::new(&clock));
    presence.speaks(speaks);
    (clock, presence)
}

fn at(clock: &Clock, seconds: u64) {
    clock.0.store(seconds * 1_000, Relaxed);
}

#[test]
fn who_says_nothing_goes_and_who_says_it_slowly_too() {
    let (clock, silent) = presence(Speaks::Nothing);
    at(&clock, 10);
    assert_eq!(silent.verdict(&limits()), None);
    at(&clock, 11);
    assert_eq!(silent.verdict(&limits()), Some(ClientClosed::Silent));

    let (clock, slow) = presence(Speaks::Http1);
    at(&clock, 100);
    assert_eq!(slow.verdict(&limits()), None, "at rest");
    for seconds in 100..=110 {
        at(&clock, seconds);
        slow.came(1);
        assert_eq!(slow.verdict(&limits()), None);
    }
    at(&clock, 111);
    assert_eq!(slow.verdict(&limits()), Some(ClientClosed::SlowHead));
    let busy = slow.begin().unwrap();
    at(&clock, 5_000);
    slow.came(1);
    assert_eq!(
        slow.verdict(&limits()),
        None,
        "a request has its own limits"
    );
    drop(busy);
    at(&clock, 5_620);
    assert_eq!(slow.verdict(&limits()), None);
    at(&clock, 5_621);
    assert_eq!(slow.verdict(&limits()), Some(ClientClosed::Idle));
}

#[test]
fn pings_are_no_head_but_a_flood_of_them_is_one() {
    let (clock, pings) = presence(Speaks::Http2);
    pings.came(17);
    at(&clock, 60);
    assert_eq!(pings.verdict(&limits()), None);
    pings.came(2 << 20);
    assert_eq!(pings.verdict(&limits()), Some(ClientClosed::Flood));
    drop(pings.begin());
    assert_eq!(pings.verdict(&limits()), None, "a request came after all");
}

#[test]
fn who_takes_nothing_goes_even_with_requests() {
    let (clock, full) = presence(Speaks::Http1);
    let _busy = full.begin().unwrap();
    full.wrote(false);
    at(&clock, 40);
    full.wrote(true);
    full.wrote(false);
    at(&clock, 88);
    full.wrote(false);
    assert_eq!(
        full.verdict(&limits()),
        None,
        "it took something in between"
    );
    at(&clock, 89);
    assert_eq!(full.verdict(&limits()), Some(ClientClosed::Unread));
}

#[test]
fn a_connection_that_is_given_up_begins_nothing() {
    let (_, presence) = presence(Speaks::Http1);
    let busy = presence.begin().unwrap();
    assert!(!presence.give_up());
    drop(busy);
    assert!(presence.give_up());
    assert!(presence.begin().is_none());
}

#[test]
fn one_network_is_one_peer() {
    let peer = |text: &str| Peer::of(text.parse().unwrap());
    assert_eq!(peer("10.0.0.1"), peer("::ffff:10.0.0.1"));
    assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1"));
    assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
}

struct Crowd {
    clients: Clients,
    tasks: JoinSet<()>,
    metrics: Arc<Metrics>,
}

impl Crowd {
    fn new(most: usize, per_peer: Option<usize>) -> Self {
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        let limits = ClientLimits {
            per_peer,
            ..limits()
        };
        Self {
            clients: Clients::new(limits, most, metrics.clone()),
            tasks: JoinSet::new(),
            metrics,
        }
    }

    fn come(&mut self, last: u8) -> Option<Arc<Presence>> {
        let peer = Peer::of(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        if !self.clients.has_room() || !self.clients.admits(peer) {
            return None;
        }
        let presence = self.clients.presence();
        let task = self.tasks.spawn(std::future::pending());
        self.clients.add(peer, presence.clone(), task);
        Some(presence)
    }

    fn closed(&self, why: ClientClosed) -> u64 {
        self.metrics.clients_closed(why)
    }
}

#[tokio::test]
async fn when_all_are_there_the_one_that_rested_longest_gives_way() {
    let mut crowd = Crowd::new(3, Some(0));
    let first = crowd.come(1).unwrap();
    at(&crowd.clients.clock, 1);
    let second = crowd.come(2).unwrap();
    at(&crowd.clients.clock, 2);
    let third = crowd.come(3).unwrap();
    let busy = first.begin();
    assert!(crowd.come(4).is_some());
    assert!(second.begin().is_none(), "the second had to go");
    let busy = (busy, third.begin());
    assert!(crowd.come(5).is_some(), "the fourth goes");
    let fifth = crowd.clients.all.values().find(|c| c.presence.is_at_rest());
    let busy = (busy, fifth.unwrap().presence.begin());
    assert!(crowd.come(6).is_none(), "all are in use: it waits");
    assert_eq!(crowd.closed(ClientClosed::Evicted), 2);
    drop(busy);
    assert!(crowd.come(6).is_some());
    assert_eq!(crowd.clients.all.len(), 3);
}

#[tokio::test]
async fn a_peer_takes_no_more_than_its_share_and_gives_way_to_itself() {
    let mut crowd = Crowd::new(4, None);
    let mine: Vec<_> = (0..2).map(|_| crowd.come(1).unwrap()).collect();
    let busy: Vec<_> = mine.iter().map(Presence::begin).collect();
    assert!(crowd.come(1).is_none());
    assert_eq!(crowd.closed(ClientClosed::PeerLimit), 1);
    assert!(crowd.come(2).is_some(), "others have theirs");
    drop(busy);
    assert!(crowd.come(1).is_some());
    assert_eq!(crowd.closed(ClientClosed::Evicted), 1);
    while let Some(id) = crowd.clients.all.keys().next().copied() {
        crowd.clients.remove(id);
    }
    assert!(crowd.clients.peers.is_empty(), "nothing is left of them");
}
