//! `Health`.

use crate::{
    health::{BUCKETS, Health},
    wire,
};

impl From<&Health> for wire::Health {
    fn from(health: &Health) -> Self {
        Self {
            requests: health.requests,
            errors: health.errors,
            // One of nothing takes no bytes.
            latency: match health.latency.iter().all(|count| *count == 0) {
                true => Vec::new(),
                false => health.latency.to_vec(),
            },
        }
    }
}

impl From<wire::Health> for Health {
    /// Buckets beyond ours are of a later version and count for the last.
    fn from(wire: wire::Health) -> Self {
        let mut latency = [0_u64; BUCKETS];
        for (bucket, count) in wire.latency.into_iter().enumerate() {
            if let Some(own) = latency.get_mut(bucket.min(BUCKETS - 1)) {
                *own = own.saturating_add(count);
            }
        }
        Self {
            requests: wire.requests,
            errors: wire.errors,
            latency,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_it_is_the_same() {
        let mut health = Health {
            requests: 7,
            errors: 2,
            ..Health::default()
        };
        health.latency[3] = 5;
        assert_eq!(Health::from(wire::Health::from(&health)), health);
    }

    #[test]
    fn buckets_of_a_later_version_count_for_the_last() {
        let wire = wire::Health {
            latency: vec![1; BUCKETS + 5],
            ..Default::default()
        };
        assert_eq!(Health::from(wire).latency[BUCKETS - 1], 6);
    }
}
