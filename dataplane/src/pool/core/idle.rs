//! How long an endpoint leaves a resting connection open, as far as can be seen from here: by what it
//! announces (`Keep-Alive: timeout=`), and by the closes that it was seen to make.
//!
//! It only ever lowers what is configured. Pure: the time is an argument.

use std::{collections::VecDeque, time::Duration};

/// Closes remembered; the shortest of them counts.
const REMEMBERED: usize = 16;
/// A close that comes sooner says nothing of an idle limit.
const SHORTEST: Duration = Duration::from_millis(100);
/// So many closes within this time, of connections that rested for unlike times, are a restart.
const RESTART: usize = 3;
const RESTART_WITHIN: Duration = Duration::from_millis(50);
/// Two closes this far apart are two.
const APART: Duration = Duration::from_millis(500);
/// After this long without a close the estimate is raised by a quarter, and again.
const RAISE_EVERY: Duration = Duration::from_secs(600);
const RAISE_BY: f64 = 1.25;
/// What an announcement may say.
const ANNOUNCED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3_600));
/// The distance that is kept to the endpoint's limit: this, or a tenth of it, but never more than half.
const MARGIN: Duration = Duration::from_millis(500);

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub(in crate::pool) struct IdleLimit {
    announced: Option<Duration>,
    /// How long connections had rested when they were closed, and when that was.
    closes: VecDeque<(Duration, Duration)>,
    restarting_until: Duration,
}

impl IdleLimit {
    /// The endpoint said how long it waits for the next request.
    pub(super) fn announce(&mut self, timeout: Duration) {
        self.announced = Some(timeout.clamp(ANNOUNCED.0, ANNOUNCED.1));
    }

    /// The endpoint closed a connection that had rested for this long.
    pub(super) fn closed(&mut self, now: Duration, rested: Duration) {
        if rested < SHORTEST || now < self.restarting_until {
            return;
        }
        self.closes.push_back((now, rested));
        let together = self.closes.iter().rev();
        let together = together.take_while(|(at, _)| now.saturating_sub(*at) < RESTART_WITHIN);
        let rests: Vec<Duration> = together.map(|(_, rested)| *rested).collect();
        let (least, most) = (rests.iter().min(), rests.iter().max());
        let unlike = least
            .zip(most)
            .is_some_and(|(least, most)| !alike(*least, *most));
        if rests.len() >= RESTART && unlike {
            self.closes.truncate(self.closes.len() - rests.len());
            self.restarting_until = now + APART;
        }
        if self.closes.len() > REMEMBERED {
            self.closes.pop_front();
        }
    }

    /// What the closes say: the shortest rest that was seen at two different times. Once could have been
    /// anything.
    pub(super) fn learned(&self, now: Duration) -> Option<Duration> {
        let seen_twice = |(at, rested): &&(Duration, Duration)| {
            let mut others = self.closes.iter();
            others
                .any(|(other_at, other)| at.abs_diff(*other_at) >= APART && alike(*rested, *other))
        };
        let shortest = self.closes.iter().filter(seen_twice);
        let shortest = shortest.map(|(_, rested)| *rested).min()?;
        let (last, _) = self.closes.back()?;
        let quiet = now.saturating_sub(*last).as_secs() / RAISE_EVERY.as_secs();
        let raises = i32::try_from(quiet).unwrap_or(i32::MAX).min(40);
        Some(shortest.mul_f64(RAISE_BY.powi(raises)))
    }

    /// What the endpoint announced last.
    pub(super) fn announced(&self) -> Option<Duration> {
        self.announced
    }

    /// How long a connection may rest here.
    pub(super) fn limit(&self, now: Duration, configured: Duration) -> Duration {
        let theirs = [self.announced, self.learned(now)];
        let safe = theirs.into_iter().flatten().map(below).min();
        safe.map_or(configured, |safe| safe.min(configured))
    }
}

fn alike(a: Duration, b: Duration) -> bool {
    a.abs_diff(b) <= a.max(b) / 4
}

fn below(theirs: Duration) -> Duration {
    theirs - MARGIN.max(theirs / 10).min(theirs / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const CONFIGURED: Duration = Duration::from_secs(4);

    #[test]
    fn nothing_known_is_what_is_configured_and_nothing_raises_it() {
        let mut limit = IdleLimit::default();
        assert_eq!(limit.limit(ms(0), CONFIGURED), CONFIGURED);
        limit.announce(Duration::from_secs(75));
        limit.closed(ms(0), Duration::from_secs(30));
        assert_eq!(limit.limit(ms(0), CONFIGURED), CONFIGURED);
    }

    #[test]
    fn an_announcement_and_closes_lower_it_below_the_endpoints_own() {
        let mut limit = IdleLimit::default();
        limit.announce(Duration::from_secs(3));
        assert_eq!(limit.limit(ms(0), CONFIGURED), ms(2_500));
        limit.closed(ms(10_000), ms(1_003));
        assert_eq!(
            limit.learned(ms(10_000)),
            None,
            "once could have been anything"
        );
        limit.closed(ms(20_000), ms(1_050));
        assert_eq!(limit.learned(ms(20_000)), Some(ms(1_003)));
        assert_eq!(limit.limit(ms(20_000), CONFIGURED), ms(503));
        // Half of one that is very short.
        limit.closed(ms(30_000), ms(200));
        limit.closed(ms(40_000), ms(210));
        assert_eq!(limit.limit(ms(40_000), CONFIGURED), ms(100));
        limit.announce(Duration::ZERO);
        assert_eq!(limit.announced(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn many_that_rested_alike_are_one_close_and_unlike_ones_are_a_restart() {
        let mut alike = IdleLimit::default();
        (0..5).for_each(|n| alike.closed(ms(1_000 + n), ms(1_000 + n)));
        assert_eq!(alike.learned(ms(2_000)), None);
        alike.closed(ms(5_000), ms(1_000));
        assert_eq!(alike.learned(ms(5_000)), Some(ms(1_000)));
        for size in 2..9 {
            let mut limit = IdleLimit::default();
            limit.closed(ms(1_000), ms(900));
            limit.closed(ms(9_000), ms(910));
            // Two restarts, each closing connections that rested for unlike times.
            for at in [60_000, 90_000] {
                (0..size).for_each(|n| limit.closed(ms(at + n), ms(150 + n * 400)));
            }
            let learned = limit.learned(ms(91_000)).unwrap();
            match size {
                // Of two nothing can be told, and both restarts looked the same.
                2 => assert_eq!(learned, ms(150)),
                _ => assert_eq!(learned, ms(900), "{size}"),
            }
        }
        // A close right after the answer is no idle limit.
        let mut limit = IdleLimit::default();
        (1..5).for_each(|n| limit.closed(ms(n * 1_000), ms(99)));
        assert_eq!(limit.learned(ms(9_000)), None);
    }

    #[test]
    fn without_closes_it_is_raised_slowly_and_what_is_old_is_forgotten() {
        let mut limit = IdleLimit::default();
        limit.closed(ms(0), ms(1_000));
        limit.closed(ms(2_000), ms(1_000));
        assert_eq!(limit.learned(Duration::from_secs(600)), Some(ms(1_000)));
        assert_eq!(
            limit.learned(Duration::from_secs(1_203)),
            Some(ms(1_562) + Duration::from_micros(500))
        );
        assert!(limit.learned(Duration::MAX).is_some());
        for n in 0..20 {
            limit.closed(Duration::from_secs(2_000 + n), ms(3_000));
        }
        assert_eq!(limit.learned(Duration::from_secs(2_020)), Some(ms(3_000)));
    }
}
