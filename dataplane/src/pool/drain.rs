//! How fast the line drains, and how soon answers begin: what `retry-after` and the patience of clients are
//! measured by. Pure: the time is an argument.

use std::time::Duration;

/// A slot that came free counts for 1/e after so much time with a line.
const FADES_IN: Duration = Duration::from_secs(20);
/// Less time than this with a line says too little.
const ENOUGH: Duration = Duration::from_secs(2);
/// The shortest and longest time after which to come again: the SDKs do not wait longer.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);
/// Those who are sent away at once shall not come again at once: up to so much later, in parts of the time.
const SPREAD: f64 = 0.5;

/// The rate at which slots came free while somebody waited for one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drain {
    rate: f64,
    /// Time with a line so far.
    seen: Duration,
    last: Duration,
    waited: bool,
    /// Decayed mean of how long a slot is in use.
    mean_use: Option<Duration>,
}

impl Drain {
    /// A slot came free after so long, and somebody waited for it, or nobody.
    pub(super) fn note(&mut self, now: Duration, used: Duration, waiting: bool) {
        self.mean_use = Some(match self.mean_use {
            Some(mean) => mean.mul_f64(0.9) + used.mul_f64(0.1),
            None => used,
        });
        if self.waited {
            let passed = now.saturating_sub(self.last);
            self.rate *= (-passed.as_secs_f64() / FADES_IN.as_secs_f64()).exp();
            self.seen = self.seen.saturating_add(passed);
        }
        if waiting {
            self.rate += 1.0 / FADES_IN.as_secs_f64();
        }
        (self.last, self.waited) = (now, waiting);
    }

    /// Slots a second that come free while somebody waits.
    pub(super) fn per_second(&self, now: Duration, slots: usize) -> f64 {
        let since = match self.waited {
            true => now.saturating_sub(self.last),
            false => Duration::ZERO,
        };
        let fading = |time: Duration| (-time.as_secs_f64() / FADES_IN.as_secs_f64()).exp();
        let seen = self.seen.saturating_add(since);
        let rate = self.rate * fading(since);
        match seen >= ENOUGH && rate > 0.0 {
            true => rate / (1.0 - fading(seen)),
            // As many as are in use, each for as long as they are.
            false => {
                let mean = self.mean_use.unwrap_or(Duration::from_secs(1));
                slots.max(1) as f64 / mean.as_secs_f64().max(0.001)
            }
        }
    }

    /// When one who would be at this place in line should come again; `dice` from 0 to 1 says how much later.
    pub(super) fn retry_after(
        &self,
        now: Duration,
        place: usize,
        slots: usize,
        dice: f64,
    ) -> Duration {
        let seconds = place.max(1) as f64 / self.per_second(now, slots);
        let (least, most) = (SHORTEST.as_secs_f64(), LONGEST.as_secs_f64());
        let seconds = seconds.clamp(least, most / (1.0 + SPREAD));
        Duration::from_secs_f64(seconds * (1.0 + SPREAD * dice.clamp(0.0, 1.0)))
    }
}

/// The time within which a quarter of the answers begin: who has less left is hardly served in time.
#[derive(Debug, Default)]
pub(super) struct Prompt(Option<f64>);

impl Prompt {
    /// An answer began after this time.
    pub(super) fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64().max(1e-6);
        let step = match self.0 {
            Some(known) if took > known => known * 1.025,
            Some(known) => known * 0.925,
            None => took,
        };
        self.0 = Some(step.clamp(1e-6, 86_400.0));
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_secs_f64(self.0.unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_rate_is_that_of_times_with_a_line() {
        let mut drain = Drain::default();
        // An hour with a request a minute: no line, no rate.
        for n in 0..60 {
            drain.note(ms(n * 60_000), ms(200), false);
        }
        assert!(
            (drain.per_second(ms(3_600_000), 10) - 50.0).abs() < 1.0,
            "10 slots of 200 ms"
        );
        // Then 5 a second.
        let began = 3_600_000;
        for n in 0..200 {
            drain.note(ms(began + n * 200), ms(2_000), true);
        }
        let rate = drain.per_second(ms(began + 40_000), 10);
        assert!((4.5..5.5).contains(&rate), "{rate}");
        // And 50 a second, which is known within a minute.
        let began = began + 40_000;
        for n in 0..3_000 {
            drain.note(ms(began + n * 20), ms(200), true);
        }
        let rate = drain.per_second(ms(began + 60_000), 10);
        assert!((45.0..51.0).contains(&rate), "{rate}");
        // A night without a line takes nothing from it.
        drain.note(ms(began + 60_100), ms(200), false);
        let rate = drain.per_second(ms(began + 9_000_000), 10);
        assert!((45.0..51.0).contains(&rate), "{rate}");
    }

    #[test]
    fn when_to_come_again_is_bounded_and_spread() {
        let mut drain = Drain::default();
        drain.note(ms(0), ms(1_000), true);
        assert_eq!(drain.retry_after(ms(0), 100, 10, 0.0), ms(10_000));
        assert_eq!(drain.retry_after(ms(0), 100, 10, 1.0), ms(15_000));
        assert_eq!(drain.retry_after(ms(0), 0, 10, 0.0), ms(1_000));
        for dice in [0.0, 0.5, 1.0] {
            let longest = drain.retry_after(ms(0), 1_000_000, 1, dice);
            assert!(
                longest <= ms(120_000) && longest >= ms(80_000),
                "{longest:?}"
            );
        }
        assert_eq!(Drain::default().retry_after(ms(9), 1, 0, 0.0), ms(1_000));
    }

    #[test]
    fn a_quarter_of_the_answers_are_quicker() {
        let mut dice = fastrand::Rng::with_seed(3);
        let mut prompt = Prompt::default();
        for _ in 0..2_000 {
            prompt.note(ms(dice.u64(100..1_100)));
        }
        let known = prompt.get();
        assert!((ms(230)..ms(500)).contains(&known), "{known:?}");
    }
}
