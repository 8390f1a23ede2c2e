//! How rollouts in rings go: what an operator says.

use std::{str::FromStr, time::Duration};

/// Most rings before the last.
const MOST: usize = 8;

/// The rings before the last, which is every worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rings(Vec<Share>);

/// How many workers are in a ring, those of the rings before it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    Workers(usize),
    Percent(usize),
}

/// Text that names no rings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?} is not a ring; write numbers of workers (1 or more) and shares (1% to 100%), at most {MOST}, each kind \
     growing, such as 1,25%"
)]
pub struct BadRings {
    part: String,
}

/// How rollouts in rings go.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutSettings {
    /// The rings before the last.
    pub rings: Rings,
    /// How long a ring runs a revision before the next ring gets it.
    pub soak: Duration,
    /// By how much the share of failed requests may be above that of the other workers: 0 to 1.
    pub max_errors: f64,
    /// How many times the others' p99 time to an answer's head is allowed.
    pub max_slowdown: f64,
}

impl Share {
    /// How many that is of so many; at least one.
    pub(super) fn of(self, workers: usize) -> usize {
        let count = match self {
            Self::Workers(count) => count,
            Self::Percent(percent) => workers.saturating_mul(percent).div_ceil(100),
        };
        count.max(1).min(workers)
    }
}

impl Rings {
    /// How many there are before the last.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many workers this ring has, of so many; nothing for the last.
    pub(super) fn size(&self, ring: usize, workers: usize) -> Option<usize> {
        self.0.get(ring).map(|share| share.of(workers))
    }
}

impl FromStr for Rings {
    type Err = BadRings;

    fn from_str(text: &str) -> Result<Self, BadRings> {
        let (mut workers, mut percent) = (0, 0);
        let mut rings = Vec::new();
        for part in text.split(',') {
            let bad = || BadRings {
                part: part.chars().take(32).collect(),
            };
            let trimmed = part.trim();
            let number = trimmed.strip_suffix('%').unwrap_or(trimmed);
            let number: usize = number.parse().map_err(|_| bad())?;
            let (last, share) = match trimmed.ends_with('%') {
                true if number > 100 => return Err(bad()),
                true => (&mut percent, Share::Percent(number)),
                false => (&mut workers, Share::Workers(number)),
            };
            if number <= *last || rings.len() == MOST {
                return Err(bad());
            }
            *last = number;
            rings.push(share);
        }
        Ok(Self(rings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_read_and_what_is_none_is_named() {
        let rings: Rings = "1, 25%,50%".parse().unwrap();
        assert_eq!(rings.len(), 3);
        let of_twenty = [0, 1, 2, 3].map(|ring| rings.size(ring, 20));
        assert_eq!(of_twenty, [Some(1), Some(5), Some(10), None]);
        assert_eq!(rings.size(1, 3), Some(1), "rounded up");
        assert_eq!(rings.size(0, 0), Some(0));
        for bad in [
            "", "0", "1,1", "0%", "101%", "5%,5%", "one", "1;2", "1,", "-1",
        ] {
            assert!(bad.parse::<Rings>().is_err(), "{bad}");
        }
        let error = "1,2x".parse::<Rings>().unwrap_err().to_string();
        assert!(
            error.contains("\"2x\"") && error.contains("1,25%"),
            "{error}"
        );
        assert!("1,2,3,4,5,6,7,8,9".parse::<Rings>().is_err());
    }
}
