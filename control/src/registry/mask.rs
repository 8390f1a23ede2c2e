//! Field masks (AIP-134): which fields of a message a write sets.
//!
//! One table per message says how each leaf is copied and whether it is set. A path that names a
//! parent stands for its leaves; naming an unset leaf clears it.

use forebay_proto::{Violations, wire};

/// One leaf: its path, whether it is set, and how it is copied.
struct Leaf<T> {
    path: &'static str,
    is_set: fn(&T) -> bool,
    copy: fn(&mut T, &T),
}

/// Makes the table of a message.
macro_rules! leaves {
    ($message:ty: $($path:literal => $($field:ident).+ ;)+) => {
        &[$(Leaf::<$message> {
            path: $path,
            is_set: |from| leaves!(@get from, $($field).+).is_some(),
            copy: |to, from| leaves!(@set to, leaves!(@get from, $($field).+), $($field).+),
        }),+]
    };
    (@get $from:ident, $a:ident) => { $from.$a.clone() };
    (@get $from:ident, $a:ident . $b:ident) => {
        $from.$a.as_ref().and_then(|part| part.$b.clone())
    };
    (@get $from:ident, $a:ident . $b:ident . $c:ident) => {
        $from.$a.as_ref().and_then(|part| part.$b.as_ref()).and_then(|part| part.$c.clone())
    };
    (@set $to:ident, $value:expr, $a:ident) => { $to.$a = $value };
    (@set $to:ident, $value:expr, $a:ident . $b:ident) => {
        $to.$a.get_or_insert_default().$b = $value
    };
    (@set $to:ident, $value:expr, $a:ident . $b:ident . $c:ident) => {
        $to.$a.get_or_insert_default().$b.get_or_insert_default().$c = $value
    };
}

const MODEL_LISTS: &[Leaf<wire::Model>] = &[
    Leaf {
        path: "aliases",
        is_set: |from| !from.aliases.is_empty(),
        copy: |to, from| to.aliases.clone_from(&from.aliases),
    },
    Leaf {
        path: "endpoints",
        is_set: |from| !from.endpoints.is_empty(),
        copy: |to, from| to.endpoints.clone_from(&from.endpoints),
    },
    Leaf {
        path: "pool.scope",
        is_set: |from| from.pool.as_ref().is_some_and(|pool| pool.scope != 0),
        copy: |to, from| {
            let scope = from.pool.as_ref().map_or(0, |pool| pool.scope);
            to.pool.get_or_insert_default().scope = scope;
        },
    },
    Leaf {
        path: "probe.mode",
        is_set: |from| from.probe.as_ref().is_some_and(|probe| probe.mode != 0),
        copy: |to, from| {
            let mode = from.probe.as_ref().map_or(0, |probe| probe.mode);
            to.probe.get_or_insert_default().mode = mode;
        },
    },
    Leaf {
        path: "probe.served_name",
        is_set: |from| {
            let probe = from.probe.as_ref();
            probe.is_some_and(|probe| !probe.served_name.is_empty())
        },
        copy: |to, from| {
            let name = from.probe.as_ref().map(|probe| probe.served_name.clone());
            to.probe.get_or_insert_default().served_name = name.unwrap_or_default();
        },
    },
    Leaf {
        path: "health.path",
        is_set: |from| {
            let health = from.health.as_ref();
            health.is_some_and(|health| !health.path.is_empty())
        },
        copy: |to, from| {
            let path = from.health.as_ref().map(|health| health.path.clone());
            to.health.get_or_insert_default().path = path.unwrap_or_default();
        },
    },
    Leaf {
        path: "retry.on",
        is_set: |from| {
            from.retry
                .as_ref()
                .is_some_and(|retry| !retry.on.is_empty())
        },
        copy: |to, from| {
            let on = from.retry.as_ref().map(|retry| retry.on.clone());
            to.retry.get_or_insert_default().on = on.unwrap_or_default();
        },
    },
    Leaf {
        path: "fallbacks",
        is_set: |from| !from.fallbacks.is_empty(),
        copy: |to, from| to.fallbacks.clone_from(&from.fallbacks),
    },
    Leaf {
        path: "streaming.usage",
        is_set: |from| from.streaming.as_ref().is_some_and(|s| s.usage != 0),
        copy: |to, from| {
            let usage = from.streaming.as_ref().map_or(0, |s| s.usage);
            to.streaming.get_or_insert_default().usage = usage;
        },
    },
];

const MODEL: &[Leaf<wire::Model>] = leaves!(wire::Model:
    "pool.max_concurrent" => pool.max_concurrent;
    "pool.queue.max_waiting" => pool.queue.max_waiting;
    "pool.queue.max_wait" => pool.queue.max_wait;
    "pool.queue.tenant_header" => pool.queue.tenant_header;
    "pool.queue.priority_header" => pool.queue.priority_header;
    "pool.queue.cost" => pool.queue.cost;
    "pool.fleet_floor" => pool.fleet_floor;
    "pool.warm" => pool.warm;
    "pool.idle_timeout" => pool.idle_timeout;
    "pool.max_connection_age" => pool.max_connection_age;
    "pool.replay_unanswered" => pool.replay_unanswered;
    "pool.adaptive.min" => pool.adaptive.min;
    "pool.adaptive.target_first_byte" => pool.adaptive.target_first_byte;
    "pool.adaptive.tolerance_percent" => pool.adaptive.tolerance_percent;
    "timeouts.connect" => timeouts.connect;
    "timeouts.first_byte" => timeouts.first_byte;
    "timeouts.idle" => timeouts.idle;
    "timeouts.total" => timeouts.total;
    "health.interval" => health.interval;
    "health.timeout" => health.timeout;
    "health.unhealthy_after" => health.unhealthy_after;
    "health.healthy_after" => health.healthy_after;
    "ejection.failures" => ejection.failures;
    "ejection.base_time" => ejection.base_time;
    "ejection.max_time" => ejection.max_time;
    "ejection.panic_percent" => ejection.panic_percent;
    "retry.max_attempts" => retry.max_attempts;
    "streaming.keep_alive" => streaming.keep_alive;
);

const SETTINGS: &[Leaf<wire::PoolDefaults>] = leaves!(wire::PoolDefaults:
    "max_concurrent" => max_concurrent;
    "max_models_concurrent" => max_models_concurrent;
    "queue.max_waiting" => queue.max_waiting;
    "queue.max_wait" => queue.max_wait;
    "queue.tenant_header" => queue.tenant_header;
    "queue.priority_header" => queue.priority_header;
    "queue.cost" => queue.cost;
    "warm" => warm;
    "idle_timeout" => idle_timeout;
    "max_connection_age" => max_connection_age;
    "replay_unanswered" => replay_unanswered;
    "adaptive.min" => adaptive.min;
    "adaptive.target_first_byte" => adaptive.target_first_byte;
    "adaptive.tolerance_percent" => adaptive.tolerance_percent;
    "timeouts.connect" => timeouts.connect;
    "timeouts.first_byte" => timeouts.first_byte;
    "timeouts.idle" => timeouts.idle;
    "timeouts.total" => timeouts.total;
);

const KEY_LISTS: &[Leaf<wire::Key>] = &[
    Leaf {
        path: "display_name",
        is_set: |from| !from.display_name.is_empty(),
        copy: |to, from| to.display_name.clone_from(&from.display_name),
    },
    Leaf {
        path: "models",
        is_set: |from| !from.models.is_empty(),
        copy: |to, from| to.models.clone_from(&from.models),
    },
    Leaf {
        path: "priority",
        is_set: |from| from.priority != 0,
        copy: |to, from| to.priority = from.priority,
    },
];

const KEY: &[Leaf<wire::Key>] = leaves!(wire::Key:
    "expire_time" => expire_time;
    "requests_per_minute" => requests_per_minute;
    "tokens_per_minute" => tokens_per_minute;
    "max_concurrent" => max_concurrent;
    "weight" => weight;
);

const KEY_IGNORED: &[&str] = &[
    "id",
    "etag",
    "state",
    "version",
    "create_time",
    "create_author",
    "create_reason",
    "update_time",
    "revoke_time",
    "revoke_author",
    "revoke_reason",
];

/// Ignored in a mask: the name itself, and what only the server says.
const MODEL_IGNORED: &[&str] = &[
    "id",
    "etag",
    "revision",
    "create_time",
    "update_time",
    "resolved_pool",
    "resolved_timeouts",
    "probe_results",
    "pool.keepalive",
    "pool.coverage",
];
const SETTINGS_IGNORED: &[&str] = &[
    "etag",
    "revision",
    "update_time",
    "keepalive",
    "budget",
    "coverage",
];

/// The model with the masked fields taken from `from`.
pub(super) fn merge_model(
    mut to: wire::Model,
    from: &wire::Model,
    mask: Option<&[String]>,
) -> Result<wire::Model, Violations> {
    let leaves: Vec<_> = MODEL_LISTS.iter().chain(MODEL).collect();
    merge(&mut to, from, mask, &leaves, MODEL_IGNORED)?;
    Ok(to)
}

/// The key with the masked fields taken from `from`.
pub(super) fn merge_key(
    mut to: wire::Key,
    from: &wire::Key,
    mask: Option<&[String]>,
) -> Result<wire::Key, Violations> {
    let leaves: Vec<_> = KEY_LISTS.iter().chain(KEY).collect();
    merge(&mut to, from, mask, &leaves, KEY_IGNORED)?;
    Ok(to)
}

/// The settings with the masked fields taken from `from`.
pub(super) fn merge_settings(
    mut to: wire::PoolDefaults,
    from: &wire::PoolDefaults,
    mask: Option<&[String]>,
) -> Result<wire::PoolDefaults, Violations> {
    let leaves: Vec<_> = SETTINGS.iter().collect();
    merge(&mut to, from, mask, &leaves, SETTINGS_IGNORED)?;
    Ok(to)
}

/// True if the mask (or its absence) lets this path of the message have a say.
pub(super) fn covers(mask: Option<&[String]>, path: &str) -> bool {
    mask.is_none_or(|mask| {
        mask.iter()
            .any(|named| named == "*" || is_within(path, named))
    })
}

fn merge<T>(
    to: &mut T,
    from: &T,
    mask: Option<&[String]>,
    leaves: &[&Leaf<T>],
    ignored: &[&str],
) -> Result<(), Violations> {
    let Some(mask) = mask else {
        let set = leaves.iter().filter(|leaf| (leaf.is_set)(from));
        set.for_each(|leaf| (leaf.copy)(to, from));
        return Ok(());
    };
    let mut violations = Violations::new();
    for named in mask {
        let mut known = named == "*" || ignored.iter().any(|path| is_within(named, path));
        for leaf in leaves
            .iter()
            .filter(|leaf| named == "*" || is_within(leaf.path, named))
        {
            (leaf.copy)(to, from);
            known = true;
        }
        if !known {
            let paths: Vec<_> = leaves.iter().map(|leaf| leaf.path).collect();
            let message = format!("`{named}` is not a field; known are {}", paths.join(", "));
            violations.add("update_mask", message);
        }
    }
    violations.finish(Some(()))
}

/// `pool.queue.max_wait` is within `pool`, `pool.queue` and itself.
fn is_within(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(max_concurrent: u32) -> wire::Model {
        wire::Model {
            id: "a".into(),
            aliases: vec!["x".into()],
            pool: Some(wire::Pool {
                max_concurrent: Some(max_concurrent),
                warm: Some(3),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn mask(paths: &[&str]) -> Vec<String> {
        paths.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn without_a_mask_what_is_set_is_taken() {
        let from = wire::Model {
            pool: Some(wire::Pool {
                warm: Some(7),
                ..Default::default()
            }),
            ..Default::default()
        };
        let merged = merge_model(pool(5), &from, None).unwrap();
        assert_eq!(merged.aliases, ["x"]);
        assert_eq!(
            merged.pool.unwrap(),
            wire::Pool {
                warm: Some(7),
                max_concurrent: Some(5),
                ..Default::default()
            }
        );
    }

    #[test]
    fn a_named_field_that_is_unset_is_cleared() {
        let empty = wire::Model::default();
        let merged = merge_model(pool(5), &empty, Some(&mask(&["pool.warm", "aliases"]))).unwrap();
        assert!(merged.aliases.is_empty());
        assert_eq!(
            merged.pool.unwrap(),
            wire::Pool {
                max_concurrent: Some(5),
                ..Default::default()
            }
        );
    }

    #[test]
    fn what_becomes_of_failures_is_changed_field_by_field_or_as_a_whole() {
        let old = wire::Model {
            health: Some(wire::HealthCheck {
                path: "/health".into(),
                unhealthy_after: Some(2),
                ..wire::HealthCheck::default()
            }),
            retry: Some(wire::Retry {
                max_attempts: Some(3),
                on: vec![1, 2],
            }),
            fallbacks: vec!["a".into()],
            ..pool(5)
        };
        let merged = |from: &wire::Model, named: &[&str]| {
            merge_model(old.clone(), from, Some(&mask(named))).unwrap()
        };
        let none = pool(5);
        let health = merged(&none, &["health.path"]).health.unwrap();
        assert_eq!(
            (health.path.as_str(), health.unhealthy_after),
            ("", Some(2))
        );
        assert_eq!(
            merged(&none, &["health"]).health,
            Some(wire::HealthCheck::default())
        );
        let retry = merged(&none, &["retry.on"]).retry.unwrap();
        assert_eq!((retry.max_attempts, retry.on), (Some(3), vec![]));
        assert!(merged(&none, &["fallbacks"]).fallbacks.is_empty());
        let ejection = wire::Model {
            ejection: Some(wire::Ejection {
                failures: Some(0),
                ..wire::Ejection::default()
            }),
            ..pool(5)
        };
        let set = merge_model(old.clone(), &ejection, None).unwrap();
        assert_eq!(set.ejection, ejection.ejection);
        assert_eq!((set.health, set.fallbacks), (old.health, old.fallbacks));
    }

    #[test]
    fn a_probe_is_changed_field_by_field_or_as_a_whole() {
        let probe = |mode: wire::ProbeMode, name: &str| wire::Model {
            probe: Some(wire::EndpointProbe {
                mode: mode.into(),
                served_name: name.into(),
            }),
            ..pool(5)
        };
        let old = probe(wire::ProbeMode::Report, "x");
        let merged = |from: &wire::Model, named: Option<&[String]>| {
            merge_model(old.clone(), from, named).unwrap().probe
        };
        let on = probe(wire::ProbeMode::Enforce, "");
        let both = probe(wire::ProbeMode::Enforce, "x");
        assert_eq!(merged(&on, None), both.probe);
        assert_eq!(merged(&on, Some(&mask(&["probe.mode"]))), both.probe);
        assert_eq!(merged(&on, Some(&mask(&["probe"]))), on.probe);
        let off = merged(&pool(5), Some(&mask(&["probe"])));
        assert_eq!(off, Some(wire::EndpointProbe::default()));
    }

    #[test]
    fn a_parent_and_a_star_stand_for_their_leaves() {
        for named in ["pool", "*"] {
            let from = wire::Model {
                aliases: vec!["x".into()],
                ..pool(9)
            };
            let from = wire::Model {
                pool: Some(wire::Pool {
                    warm: None,
                    ..from.pool.unwrap()
                }),
                ..pool(9)
            };
            let merged = merge_model(pool(5), &from, Some(&mask(&[named]))).unwrap();
            let merged = merged.pool.unwrap();
            assert_eq!(
                (merged.max_concurrent, merged.warm),
                (Some(9), None),
                "{named}"
            );
        }
    }

    #[test]
    fn unknown_paths_are_all_named_and_output_only_ones_ignored() {
        let named = mask(&[
            "revision",
            "pool.keepalive",
            "resolved_pool.warm",
            "pol",
            "pool.x",
        ]);
        let violations = merge_model(pool(5), &pool(6), Some(&named)).unwrap_err();
        assert_eq!(violations.as_slice().len(), 2, "{violations}");
        assert!(violations.to_string().contains("`pol`"), "{violations}");
        assert!(
            merge_settings(
                Default::default(),
                &Default::default(),
                Some(&mask(&["pool"]))
            )
            .is_err()
        );
    }
}
