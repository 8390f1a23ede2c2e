//! `Health`.

use crate::{
    health::{BUCKETS, Health, ModelHealth, Tally},
    ids::ModelId,
    revision::Revision,
    violation::InvalidValue,
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

impl From<&ModelHealth> for wire::ModelHealth {
    fn from(health: &ModelHealth) -> Self {
        Self {
            model: health.model.to_string(),
            revision: health.revision.get(),
            requests_before: health.before.requests,
            errors_before: health.before.errors,
            requests_since: health.since.requests,
            errors_since: health.since.errors,
        }
    }
}

impl TryFrom<wire::ModelHealth> for ModelHealth {
    type Error = InvalidValue;

    fn try_from(wire: wire::ModelHealth) -> Result<Self, InvalidValue> {
        Ok(Self {
            model: ModelId::new(wire.model)?,
            revision: Revision::new(wire.revision),
            before: Tally {
                requests: wire.requests_before,
                errors: wire.errors_before,
            },
            since: Tally {
                requests: wire.requests_since,
                errors: wire.errors_since,
            },
        })
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
        let of_model = ModelHealth {
            model: ModelId::new("m").unwrap(),
            revision: Revision::new(7),
            before: health.tally(),
            since: Tally {
                requests: 3,
                errors: 1,
            },
        };
        let wire = wire::ModelHealth::from(&of_model);
        assert_eq!(ModelHealth::try_from(wire), Ok(of_model));
        assert!(ModelHealth::try_from(wire::ModelHealth::default()).is_err());
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
