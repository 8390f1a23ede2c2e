//! How many requests are let in at a time, where the engine's own latency says that it has enough: additive
//! increase, multiplicative decrease, never above the pool's size and never below what the operator says.
//! Pure: the time is an argument.
//!
//! What counts is the time to the first byte of a *stream*: that of a whole answer is the generation's length
//! and says nothing of a queue inside the engine. It grows with the prompt, so each is compared with the
//! quickest of its own size of late; or with the operator's target. A 429 or 503 of the engine says it outright.

use std::time::Duration;

use forebay_proto::AdaptiveParams;

/// The limit moves at most this often.
const PERIOD: Duration = Duration::from_secs(2);
/// And on no fewer answers, unless the engine refuses.
const ENOUGH: u32 = 8;
/// However few there are, they count for this long.
const LONGEST: Duration = Duration::from_secs(20);
/// What is left when answers are slow, and when the engine refuses, in percent.
const AFTER_SLOW: usize = 90;
const AFTER_REFUSAL: usize = 70;
/// Prompts are told apart by size, by the power of four of their bytes.
const SIZES: usize = 16;
/// The quickest counts for one to two of these: engines change.
const REMEMBERED: Duration = Duration::from_secs(300);

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Answered {
    /// When it was sent.
    pub(in crate::pool) sent: Duration,
    /// Of the request.
    pub(in crate::pool) bytes: usize,
    pub(in crate::pool) how: How,
}

/// What the head of an answer says of the engine's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum How {
    /// A stream began after this time.
    Stream(Duration),
    /// 429 or 503.
    Refused,
}

/// The quickest of late.
#[derive(Debug, Clone, Copy, Default)]
struct Quickest {
    now: Option<Duration>,
    before: Option<Duration>,
    since: Duration,
}

impl Quickest {
    fn note(&mut self, now: Duration, took: Duration) {
        if now.saturating_sub(self.since) >= REMEMBERED {
            (self.before, self.now, self.since) = (self.now, None, now);
        }
        self.now = Some(self.now.map_or(took, |known| known.min(took)));
    }

    fn get(&self) -> Option<Duration> {
        self.now.into_iter().chain(self.before).min()
    }
}

#[derive(Debug)]
pub(super) struct Adaptive {
    params: AdaptiveParams,
    limit: usize,
    /// Answers to what was sent before say nothing of the limit that holds.
    since: Duration,
    answers: u32,
    slow: u32,
    refused: u32,
    /// All that may be in flight was, in this period.
    used: bool,
    quickest: [Quickest; SIZES],
}

impl Adaptive {
    pub(super) fn new(params: AdaptiveParams, size: usize, now: Duration) -> Self {
        Self {
            params,
            limit: size,
            since: now,
            answers: 0,
            slow: 0,
            refused: 0,
            used: false,
            quickest: [Quickest::default(); SIZES],
        }
    }

    /// Other parameters, or another size. What is known of the engine stays.
    pub(super) fn reshape(&mut self, params: AdaptiveParams, before: usize, size: usize) {
        // One that did not hold anything back goes along.
        if self.limit >= before {
            self.limit = size;
        }
        self.params = params;
        self.limit = self.clamp(self.limit, size);
    }

    /// Most requests in flight now.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A request was answered while so many were in flight. True if the limit moved.
    pub(super) fn answered(
        &mut self,
        now: Duration,
        answered: &Answered,
        in_flight: usize,
        size: usize,
    ) -> bool {
        self.used |= in_flight >= self.limit;
        if answered.sent < self.since {
            return false;
        }
        match answered.how {
            How::Refused => self.refused += 1,
            How::Stream(took) => {
                self.answers += 1;
                self.slow += u32::from(self.is_slow(now, answered.bytes, took));
            }
        }
        let period = now.saturating_sub(self.since);
        let enough = self.refused > 0 || self.answers >= ENOUGH || period >= LONGEST;
        period >= PERIOD && enough && self.move_limit(now, size)
    }

    fn is_slow(&mut self, now: Duration, bytes: usize, took: Duration) -> bool {
        if let Some(target) = self.params.target_first_byte {
            return took > target;
        }
        let size = bytes.max(1).ilog(4) as usize;
        let Some(quickest) = self.quickest.get_mut(size.min(SIZES - 1)) else {
            return false;
        };
        quickest.note(now, took);
        let known = quickest.get().unwrap_or(took);
        took > known.mul_f64(f64::from(self.params.tolerance_percent) / 100.0)
    }

    fn move_limit(&mut self, now: Duration, size: usize) -> bool {
        let before = self.limit;
        let wanted = match (self.refused > 0, self.slow * 2 > self.answers) {
            (true, _) => before * AFTER_REFUSAL / 100,
            (false, true) => before * AFTER_SLOW / 100,
            // What was not used was not tried.
            (false, false) if self.used => before + (before / 20).max(1),
            (false, false) => before,
        };
        // A tenth of nine is nothing, and yet nine are too many.
        let wanted = match wanted < before || self.refused > 0 || self.slow * 2 > self.answers {
            true => wanted.min(before.saturating_sub(1)),
            false => wanted,
        };
        self.limit = self.clamp(wanted, size);
        self.since = now;
        (self.answers, self.slow, self.refused, self.used) = (0, 0, 0, false);
        self.limit != before
    }

    fn clamp(&self, limit: usize, size: usize) -> usize {
        let least = (self.params.min as usize).clamp(1, size.max(1));
        limit.clamp(least, size.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 50;

    fn adaptive(target: Option<Duration>) -> Adaptive {
        let params = AdaptiveParams {
            min: 4,
            target_first_byte: target,
            tolerance_percent: 200,
        };
        Adaptive::new(params, SIZE, Duration::ZERO)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// An engine with so many slots: what is over queues, and each turn of the queue takes 500 ms.
    fn play(adaptive: &mut Adaptive, slots: usize, seconds: u64) -> (usize, usize) {
        let mut seen = (usize::MAX, 0);
        for tick in 0..seconds * 10 {
            let now = ms(tick * 100) + ms(1);
            let in_flight = adaptive.limit();
            let turns = in_flight.div_ceil(slots).saturating_sub(1) as u64;
            let took = ms(100 + turns * 500);
            let answered = Answered {
                sent: now.saturating_sub(took),
                bytes: 1_000,
                how: How::Stream(took),
            };
            adaptive.answered(now, &answered, in_flight, SIZE);
            if tick >= seconds * 5 {
                seen = (seen.0.min(adaptive.limit()), seen.1.max(adaptive.limit()));
            }
        }
        seen
    }

    #[test]
    fn it_settles_at_what_the_engine_carries() {
        for target in [Some(ms(300)), None] {
            let mut adaptive = adaptive(target);
            // The quickest is not known before it was seen.
            play(&mut adaptive, SIZE, 10);
            assert_eq!(adaptive.limit(), SIZE);
            let (least, most) = play(&mut adaptive, 20, 400);
            assert!(least >= 15 && most <= 22, "{least} to {most} of 20");
        }
    }

    #[test]
    fn it_comes_back_when_the_engine_does() {
        let mut adaptive = adaptive(Some(ms(300)));
        play(&mut adaptive, 10, 200);
        assert!(adaptive.limit() <= 12);
        let mut again = Adaptive {
            since: Duration::ZERO,
            ..adaptive
        };
        play(&mut again, SIZE, 400);
        assert_eq!(again.limit(), SIZE);
    }

    #[test]
    fn a_refusal_counts_at_once_and_what_was_sent_before_does_not_count_twice() {
        let mut adaptive = adaptive(None);
        let refused = |sent| Answered {
            sent,
            bytes: 10,
            how: How::Refused,
        };
        assert!(!adaptive.answered(ms(1_000), &refused(ms(900)), SIZE, SIZE));
        assert!(adaptive.answered(ms(2_500), &refused(ms(2_400)), SIZE, SIZE));
        assert_eq!(adaptive.limit(), 35);
        for n in 0..100 {
            assert!(!adaptive.answered(ms(5_000 + n), &refused(ms(2_400)), SIZE, SIZE));
        }
        assert!(adaptive.answered(ms(5_200), &refused(ms(2_600)), SIZE, SIZE));
        assert_eq!(adaptive.limit(), 24);
    }

    #[test]
    fn long_prompts_are_compared_with_long_prompts() {
        let mut adaptive = adaptive(None);
        for n in 0..1_000_u64 {
            let now = ms(n * 100);
            let (bytes, took) = if n % 3 == 0 {
                (400_000, ms(4_000))
            } else {
                (800, ms(90))
            };
            let sent = now.saturating_sub(took);
            let how = How::Stream(took);
            adaptive.answered(now, &Answered { sent, bytes, how }, SIZE, SIZE);
            assert_eq!(adaptive.limit(), SIZE, "at {now:?}");
        }
    }

    proptest! {
        #[test]
        fn it_stays_between_the_least_and_the_size(
            answers in prop::collection::vec((0_u64..3_000, 0_usize..1_000_000, 0_u64..9_000, any::<bool>(), 1_usize..60), 1..300),
        ) {
            let mut adaptive = adaptive(None);
            let (mut now, mut before) = (Duration::ZERO, SIZE);
            for (later, bytes, took, refused, size) in answers {
                now += ms(later);
                let params = adaptive.params;
                adaptive.reshape(params, before, size);
                before = size;
                let how = if refused { How::Refused } else { How::Stream(ms(took)) };
                let sent = now.saturating_sub(ms(took));
                adaptive.answered(now, &Answered { sent, bytes, how }, size, size);
                prop_assert!((4.min(size)..=size).contains(&adaptive.limit()));
            }
        }
    }
}
