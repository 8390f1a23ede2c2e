//! One direction of a link, without a socket and without a clock: what becomes of a packet that is put on it, and when
//! it comes out.
//!
//! A packet is lost when it is put on: cut, by chance, or because the queue is full. What was taken comes out, in order,
//! never earlier than it should. So: taken = passed + cut + lost + overflowed + under way.

use std::{collections::VecDeque, time::Duration};

use fastrand::Rng;

/// Most packets under way on one lane.
pub const MOST_PACKETS: usize = 4_096;
/// Their bytes: what a second of a fast link holds.
pub const MOST_BYTES: usize = 16 << 20;

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cut {
    /// Nothing.
    #[default]
    Nothing,
    /// Everything: silence, not an error.
    Everything,
    /// All that carries bytes or ends a connection. Connections are made, and then nothing comes.
    AllButHandshakes,
}

/// What one direction of a link is like.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shape {
    /// How long a packet takes.
    pub delay: Duration,
    /// How much longer it may take; it overtakes none.
    pub jitter: Duration,
    /// The share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// What does not come through at all.
    pub cut: Cut,
    /// Bytes a second; 0: as many as come.
    pub rate: u64,
}

impl Shape {
    /// Nothing comes through.
    #[must_use]
    pub fn cut() -> Self {
        Self {
            cut: Cut::Everything,
            ..Self::default()
        }
    }

    /// Packets take this long.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// This share of packets is lost.
    #[must_use]
    pub fn lossy(loss: f64) -> Self {
        Self {
            loss,
            ..Self::default()
        }
    }
}

/// What became of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Put on.
    pub taken: u64,
    /// Came out.
    pub passed: u64,
    /// Bytes of these.
    pub passed_bytes: u64,
    /// Of these, how many took longer than the link would have by itself.
    pub delayed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost because the link was cut.
    pub cut: u64,
    /// Lost because the queue was full.
    pub overflowed: u64,
}

#[derive(Debug)]
struct UnderWay {
    due: Duration,
    delayed: bool,
    packet: Vec<u8>,
}

/// One direction. Times are since whatever the caller likes.
#[derive(Debug)]
pub struct Lane {
    shape: Shape,
    dice: Rng,
    queue: VecDeque<UnderWay>,
    queued_bytes: usize,
    /// When the last packet that was taken comes out.
    last_due: Duration,
    /// When the line is free for the next one.
    free: Duration,
    counts: Counts,
}

impl Lane {
    /// One that does nothing to packets.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            shape: Shape::default(),
            dice: Rng::with_seed(seed),
            queue: VecDeque::new(),
            queued_bytes: 0,
            last_due: Duration::ZERO,
            free: Duration::ZERO,
            counts: Counts::default(),
        }
    }

    /// From now on it is like this. What is under way is not concerned.
    pub fn shape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// What became of packets so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many packets are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.queue.len()
    }

    /// A packet is put on.
    pub fn put(&mut self, now: Duration, packet: &[u8]) {
        self.counts.taken += 1;
        let is_cut = match self.shape.cut {
            Cut::Nothing => false,
            Cut::Everything => true,
            Cut::AllButHandshakes => !is_handshake(packet),
        };
        if is_cut {
            self.counts.cut += 1;
        } else if self.dice.f64() < self.shape.loss {
            self.counts.lost += 1;
        } else if self.queue.len() >= MOST_PACKETS || self.queued_bytes + packet.len() > MOST_BYTES
        {
            self.counts.overflowed += 1;
        } else {
            let due = self.due(now, packet.len());
            self.queued_bytes += packet.len();
            self.queue.push_back(UnderWay {
                due,
                delayed: due > now,
                packet: packet.to_vec(),
            });
        }
    }

    fn due(&mut self, now: Duration, bytes: usize) -> Duration {
        let mut left = now;
        if self.shape.rate > 0 {
            let takes = Duration::from_secs_f64(bytes as f64 / self.shape.rate as f64);
            self.free = self.free.max(now) + takes;
            left = self.free;
        }
        let late = self.shape.jitter.mul_f64(self.dice.f64());
        self.last_due = (left + self.shape.delay + late).max(self.last_due);
        self.last_due
    }

    /// When the next packet comes out, if one is under way.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.front().map(|next| next.due)
    }

    /// A packet that comes out by now.
    pub fn take(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        let next = self.queue.pop_front()?;
        self.queued_bytes -= next.packet.len();
        self.counts.passed += 1;
        self.counts.passed_bytes += next.packet.len() as u64;
        self.counts.delayed += u64::from(next.delayed);
        Some(next.packet)
    }
}

/// It makes a connection, or only says that something came: a packet of TCP over IPv4 without bytes, FIN or RST.
fn is_handshake(packet: &[u8]) -> bool {
    const TCP: u8 = 6;
    const FIN_OR_RST: u8 = 0b101;
    let (Some(first), Some(protocol)) = (packet.first(), packet.get(9)) else {
        return false;
    };
    if first >> 4 != 4 || *protocol != TCP {
        return false;
    }
    let header = usize::from(first & 0xf) * 4;
    let offset = packet
        .get(header + 12)
        .map(|byte| usize::from(byte >> 4) * 4);
    let flags = packet.get(header + 13);
    let (Some(offset), Some(flags)) = (offset, flags) else {
        return false;
    };
    packet.len() == header + offset && flags & FIN_OR_RST == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn drain(lane: &mut Lane, now: Duration) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| lane.take(now)).collect()
    }

    #[test]
    fn a_plain_lane_passes_everything_at_once() {
        let mut lane = Lane::new(1);
        lane.put(MS, b"a");
        lane.put(MS, b"b");
        assert_eq!(drain(&mut lane, MS), [b"a", b"b"]);
        assert_eq!((lane.counts().passed, lane.counts().delayed), (2, 0));
    }

    #[test]
    fn a_cut_lane_is_silent_and_what_was_under_way_arrives() {
        let mut lane = Lane::new(1);
        lane.shape(Shape::delayed(100 * MS));
        lane.put(MS, b"before");
        lane.shape(Shape::cut());
        lane.put(2 * MS, b"meanwhile");
        lane.shape(Shape::default());
        lane.put(3 * MS, b"after");
        assert!(drain(&mut lane, 100 * MS).is_empty());
        assert_eq!(
            drain(&mut lane, 101 * MS),
            [b"before".to_vec(), b"after".to_vec()]
        );
        assert_eq!(lane.counts().cut, 1);
    }

    #[test]
    fn the_rate_is_kept() {
        let mut lane = Lane::new(1);
        lane.shape(Shape {
            rate: 1_000,
            ..Shape::default()
        });
        for _ in 0..10 {
            lane.put(Duration::ZERO, &[0; 100]);
        }
        assert_eq!(drain(&mut lane, 499 * MS).len(), 4);
        assert_eq!(drain(&mut lane, Duration::from_secs(1)).len(), 6);
    }

    #[test]
    fn the_queue_is_bounded_and_what_does_not_fit_is_counted() {
        let mut lane = Lane::new(1);
        lane.shape(Shape::delayed(MS));
        for _ in 0..MOST_PACKETS + 5 {
            lane.put(Duration::ZERO, b"x");
        }
        assert_eq!(lane.counts().overflowed, 5);
        let mut lane = Lane::new(1);
        for _ in 0..MOST_BYTES / 65_535 + 3 {
            lane.put(Duration::ZERO, &[0; 65_535]);
        }
        assert_eq!(lane.counts().overflowed, 3);
    }

    #[test]
    fn a_third_is_lost() {
        let mut lane = Lane::new(7);
        lane.shape(Shape::lossy(0.3));
        for _ in 0..4_000 {
            lane.put(Duration::ZERO, b"x");
        }
        // Nine standard deviations.
        assert!((940..=1_460).contains(&lane.counts().lost));
    }

    /// A packet of TCP over IPv4 with these flags and bytes.
    fn tcp(flags: u8, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0; 20 + 24 + bytes];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[32] = 6 << 4;
        packet[33] = flags;
        packet
    }

    #[test]
    fn handshakes_are_told_from_all_else() {
        let [fin, syn, rst, psh, ack] = [1, 2, 4, 8, 16];
        assert!(is_handshake(&tcp(syn, 0)));
        assert!(is_handshake(&tcp(syn | ack, 0)));
        assert!(is_handshake(&tcp(ack, 0)));
        assert!(!is_handshake(&tcp(psh | ack, 1)));
        assert!(!is_handshake(&tcp(fin | ack, 0)));
        assert!(!is_handshake(&tcp(rst, 0)));
        let mut udp = tcp(syn, 0);
        udp[9] = 17;
        assert!(!is_handshake(&udp));
        assert!(!is_handshake(&[0x60; 60]), "IPv6");
        assert!(!is_handshake(&[0x45]));
        let mut lane = Lane::new(1);
        lane.shape(Shape {
            cut: Cut::AllButHandshakes,
            ..Shape::default()
        });
        lane.put(MS, &tcp(syn, 0));
        lane.put(MS, &tcp(ack, 9));
        assert_eq!((drain(&mut lane, MS).len(), lane.counts().cut), (1, 1));
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let cuts = prop_oneof![
            4 => Just(Cut::Nothing),
            1 => Just(Cut::Everything),
            1 => Just(Cut::AllButHandshakes)
        ];
        (0..500_u64, 0..200_u64, 0.0..1.0, cuts, 0..100_000_u64).prop_map(
            |(delay, jitter, loss, cut, rate)| Shape {
                delay: Duration::from_millis(delay),
                jitter: Duration::from_millis(jitter),
                loss,
                cut,
                rate,
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_is_made_up_overtaken_or_early(
            seed in any::<u64>(),
            steps in prop::collection::vec((0..50_u64, prop::option::weighted(0.1, shapes()), 1..1_500_usize), 1..200),
        ) {
            let mut lane = Lane::new(seed);
            let (mut now, mut shape, mut earliest) = (Duration::ZERO, Shape::default(), Vec::new());
            let mut came = Vec::new();
            for (number, (pause, next, bytes)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                if let Some(next) = next {
                    lane.shape(next);
                    shape = next;
                }
                let mut packet = vec![0; bytes.max(4)];
                packet[..4].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
                lane.put(now, &packet);
                earliest.push(now + shape.delay);
                came.extend(drain(&mut lane, now).into_iter().map(|packet| (now, packet)));
                let counts = lane.counts();
                let known = counts.passed + counts.lost + counts.cut + counts.overflowed;
                prop_assert_eq!(counts.taken, known + lane.under_way() as u64);
                prop_assert!(lane.next_due().is_none_or(|due| due > now));
            }
            let end = now + Duration::from_secs(100_000);
            came.extend(drain(&mut lane, end).into_iter().map(|packet| (end, packet)));
            prop_assert_eq!(lane.under_way(), 0);
            let numbers: Vec<usize> = came
                .iter()
                .map(|(_, packet)| u32::from_be_bytes(packet[..4].try_into().unwrap()) as usize)
                .collect();
            prop_assert!(numbers.is_sorted_by(|a, b| a < b), "in order, each once");
            for ((at, _), number) in came.iter().zip(numbers) {
                prop_assert!(*at >= earliest[number]);
            }
        }
    }
}
