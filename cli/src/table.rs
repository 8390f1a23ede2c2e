//! Tables for people: no lines, numbers to the right, what matters first.

mod endpoints;
mod parameters;

use std::time::{Duration, SystemTime};

use crate::leases_table::of_worker;

pub(crate) use self::endpoints::probe_results;
use self::{
    endpoints::{endpoint_of, place_of, probe_of},
    parameters::{admission, failure, streams_of, turns},
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use forebay_proto::wire;

/// A table with these columns; those named with a leading `>` are numbers.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|name| name.trim_start_matches('>')));
    for (n, name) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(n) {
            column.set_padding((0, 3));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// Without the blanks at the ends of lines.
pub(crate) fn text(table: &Table) -> String {
    let lines: Vec<_> = table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// All models.
pub(crate) fn models(models: &[wire::Model]) -> String {
    if models.is_empty() {
        return "no models; register one with\n  \
                forebay models create NAME --endpoint http://HOST:8000"
            .to_owned();
    }
    let mut table = table(&[
        "MODEL",
        ">SIZE",
        ">KEEPALIVE",
        ">WARM",
        "IDLE",
        "ENDPOINTS",
        "ALIASES",
        ">REVISION",
    ]);
    for model in models {
        let pool = model.resolved_pool.clone().unwrap_or_default();
        let urls: Vec<_> = model.endpoints.iter().map(place_of).collect();
        let urls = match urls.as_slice() {
            [first, _, ..] => format!("{first} +{}", urls.len() - 1),
            _ => urls.join(""),
        };
        table.add_row([
            model.id.clone(),
            match pool.scope() {
                wire::PoolScope::Fleet => format!("{} fleet", number(pool.max_concurrent)),
                _ => number(pool.max_concurrent),
            },
            number(pool.keepalive),
            number(pool.warm),
            duration(pool.idle_timeout.as_ref()),
            urls,
            model.aliases.join(","),
            model.revision.to_string(),
        ]);
    }
    text(&table)
}

/// One model in full.
pub(crate) fn model(model: &wire::Model) -> String {
    let mut rows = vec![
        ("model", model.id.clone()),
        ("aliases", dash(model.aliases.join(", "))),
    ];
    let endpoints = model.endpoints.iter();
    rows.extend(endpoints.map(|endpoint| ("endpoint", endpoint_of(endpoint))));
    if let Some(probe) = &model.probe {
        rows.push(("probe", probe_of(probe)));
    }
    rows.extend(failure(model));
    if let Some(streaming) = &model.streaming {
        rows.push(("streams", streams_of(streaming)));
    }
    rows.extend(pool_of(model));
    rows.extend([
        ("revision", model.revision.to_string()),
        ("etag", model.etag.clone()),
    ]);
    match model.probe_results.as_slice() {
        [] => facts(&rows),
        results => format!("{}\n\n{}", facts(&rows), probe_results(results)),
    }
}

/// Its pool and deadlines.
fn pool_of(model: &wire::Model) -> [(&'static str, String); 7] {
    let pool = model.resolved_pool.clone().unwrap_or_default();
    let own = model.pool.clone().unwrap_or_default();
    let queue = pool.queue.clone().unwrap_or_default();
    let timeouts = model.resolved_timeouts.unwrap_or_default();
    let inherited = |own: bool| if own { "" } else { "   inherited" };
    let size = number(pool.max_concurrent);
    [
        (
            "pool size",
            format!(
                "{size}{}{}",
                scope_of(&pool),
                inherited(own.max_concurrent.is_some())
            ),
        ),
        (
            "keepalive",
            format!("{} (always the pool size)", number(pool.keepalive)),
        ),
        (
            "warm",
            format!("{}{}", number(pool.warm), inherited(own.warm.is_some())),
        ),
        (
            "idle timeout",
            format!(
                "{}{}",
                duration(pool.idle_timeout.as_ref()),
                inherited(own.idle_timeout.is_some())
            ),
        ),
        (
            "queue",
            format!(
                "{} waiting, {} at most{}",
                number(queue.max_waiting),
                duration(queue.max_wait.as_ref()),
                turns(&queue)
            ),
        ),
        ("admission", admission(pool.adaptive.as_ref())),
        (
            "timeouts",
            format!(
                "connect {}, first byte {}, silence {}, total {}",
                duration(timeouts.connect.as_ref()),
                duration(timeouts.first_byte.as_ref()),
                duration(timeouts.idle.as_ref()),
                duration(timeouts.total.as_ref()),
            ),
        ),
    ]
}

fn scope_of(pool: &wire::Pool) -> String {
    match (pool.scope(), pool.fleet_floor) {
        (wire::PoolScope::Fleet, floor) => format!(
            " of all workers together, {} for each in any case",
            floor.unwrap_or(0)
        ),
        _ => String::new(),
    }
}

/// The pool settings.
pub(crate) fn settings(settings: &wire::PoolDefaults) -> String {
    let queue = settings.queue.clone().unwrap_or_default();
    let (size, models) = (
        number(settings.max_concurrent),
        number(settings.max_models_concurrent),
    );
    let or = |value: String, default: &str| {
        if value == "-" {
            default.to_owned()
        } else {
            value
        }
    };
    facts(&[
        (
            "pool size",
            format!("{size} per model, unless the model says otherwise"),
        ),
        (
            "budget",
            format!(
                "{size} x {models} = {} connections per worker",
                settings.budget
            ),
        ),
        (
            "keepalive",
            format!(
                "{} (always the budget: coverage 100 %)",
                number(settings.keepalive)
            ),
        ),
        ("warm", or(number(settings.warm), "0")),
        (
            "idle timeout",
            or(duration(settings.idle_timeout.as_ref()), "4s"),
        ),
        (
            "queue",
            format!(
                "{} waiting, {} at most",
                or(number(queue.max_waiting), "twice the size"),
                or(duration(queue.max_wait.as_ref()), "30s"),
            ) + &turns(&queue),
        ),
        ("admission", admission(settings.adaptive.as_ref())),
        ("revision", settings.revision.to_string()),
        ("etag", settings.etag.clone()),
    ])
}

/// All workers.
pub(crate) fn workers(workers: &[wire::Worker]) -> String {
    if workers.is_empty() {
        return "no workers; start one with\n  forebay worker --control http://HOST:50051"
            .to_owned();
    }
    let mut table = table(&[
        "WORKER",
        "STATE",
        ">REVISION",
        ">LAG",
        "APPLIED",
        ">TOOK",
        ">DRAINING",
        "LEASES",
        "SEEN",
        "GATEWAY",
        "CONTROL",
        "VERSION",
    ]);
    for worker in workers {
        table.add_row([
            worker.id.clone(),
            match (worker.draining, worker.in_ring) {
                (true, _) => format!("{}, ending", state(worker.state())),
                (false, true) => format!("{}, in ring", state(worker.state())),
                (false, false) => state(worker.state()).to_owned(),
            },
            worker.applied_revision.to_string(),
            worker.lag_revisions.to_string(),
            worker
                .applied_time
                .as_ref()
                .map_or("-".to_owned(), |time| ago(Some(time))),
            format!("{}ms", worker.apply_millis),
            worker.draining_requests.to_string(),
            of_worker(&worker.leases),
            ago(worker.last_seen_time.as_ref()),
            worker.gateway_address.clone(),
            dash(worker.control.trim_start_matches("http://").to_owned()),
            worker.build.clone(),
        ]);
    }
    let mut text = text(&table);
    for worker in workers {
        if let Some(twin) = &worker.twin {
            text.push_str(&format!(
                "\n{} is the id of another process, too ({}, from {}, {}), which is turned away: give each its own \
                 --worker-id",
                worker.id,
                twin.instance_id,
                twin.peer,
                ago(twin.last_seen_time.as_ref())
            ));
        }
        for refusal in &worker.refusals {
            text.push_str(&refused(worker, refusal));
        }
    }
    text
}

/// A model of what the worker runs, or a whole revision.
fn refused(worker: &wire::Worker, refusal: &wire::Refusal) -> String {
    let what = match (refusal.model.as_str(), worker.refused_revision) {
        ("", 0) => format!("could not take all of revision {}", worker.applied_revision),
        ("", revision) => format!("refused revision {revision}"),
        (model, _) => format!("could not take `{model}`"),
    };
    let (
        id,
        wire::Refusal {
            reason,
            field,
            message,
            ..
        },
    ) = (&worker.id, refusal);
    format!("\n{id} {what}: {reason} {field}: {message}")
}

/// How far a revision has come.
pub(crate) fn rollout(rollout: &wire::Rollout) -> String {
    let done = if rollout.complete {
        "complete"
    } else {
        "not complete"
    };
    format!(
        "revision {} of {}: {done}; {} applied, {} partial, {} pending, {} refused, {} gone\n{}\n{}",
        rollout.revision,
        rollout.newest_revision,
        rollout.applied,
        rollout.partial,
        rollout.pending,
        rollout.refused,
        rollout.gone,
        match rollout.rings {
            0 => String::new(),
            _ => format!("{}\n", stage(rollout)),
        },
        workers(&rollout.workers)
    )
}

/// Where a revision is on its way through the rings.
pub(crate) fn stage(rollout: &wire::Rollout) -> String {
    use wire::RolloutStage as Stage;
    let wire::Rollout {
        ring,
        rings,
        stable_revision: stable,
        return_revision: by,
        return_reason: reason,
        ..
    } = rollout;
    match rollout.stage() {
        Stage::Unspecified => "all at once".to_owned(),
        Stage::Waiting => format!("waits for the rollout before it; the others run {stable}"),
        Stage::Ring => format!("ring {ring} of {rings}; the others run {stable}"),
        Stage::Everywhere => "offered to all".to_owned(),
        Stage::Returning => format!("being taken back: {reason}"),
        Stage::Returned => format!("taken back by revision {by}: {reason}"),
    }
}

/// The history, the newest first.
pub(crate) fn revisions(list: &wire::ListRevisionsResponse) -> String {
    let mut table = table(&[">REVISION", "WHEN", "AUTHOR", "WHAT", "OF", "REASON"]);
    for revision in &list.revisions {
        let more = (revision.changes as usize).saturating_sub(revision.targets.len());
        let targets = match more {
            0 => revision.targets.join(", "),
            more => format!("{} +{more}", revision.targets.join(", ")),
        };
        let what = match revision.rolled_back_to {
            0 => revision.method.clone(),
            to => format!("{} {to}", revision.method),
        };
        table.add_row([
            revision.revision.to_string(),
            ago(revision.create_time.as_ref()),
            dash(revision.author.clone()),
            what,
            targets,
            revision.reason.clone(),
        ]);
    }
    let text = text(&table);
    match list.earliest_revision {
        0 | 1 => text,
        earliest => format!("{text}\n\nrevisions from {earliest} on can be gone back to"),
    }
}

/// What became of resources: `+` new, `-` gone, `~` different.
pub(crate) fn changes(changes: &[wire::ResourceChange]) -> String {
    use wire::resource_change::Kind;
    let mut lines = Vec::new();
    for change in changes {
        let sign = match change.kind() {
            Kind::Created => '+',
            Kind::Deleted => '-',
            Kind::Updated | Kind::Unspecified => '~',
        };
        let name = match change.model.as_str() {
            "" => "pool settings",
            model => model,
        };
        lines.push(format!("{sign} {name}"));
        let width = change.fields.iter().map(|field| field.path.chars().count());
        let width = width.max().unwrap_or_default();
        // Of what is gone the name says enough.
        for field in change.fields.iter().filter(|_| sign != '-') {
            let value = match (field.before.as_str(), field.after.as_str()) {
                ("", after) => after.to_owned(),
                (before, "") => format!("{before} → not set"),
                (before, after) => format!("{before} → {after}"),
            };
            lines.push(format!("    {:<width$}   {value}", field.path));
        }
        if change.more_fields > 0 {
            lines.push(format!("    and {} more fields", change.more_fields));
        }
    }
    lines.join("\n")
}

pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let lines: Vec<_> = rows
        .iter()
        .map(|(name, value)| format!("{name:<14}{value}"))
        .collect();
    lines.join("\n")
}

fn state(state: wire::WorkerState) -> &'static str {
    match state {
        wire::WorkerState::Unspecified => "-",
        wire::WorkerState::Applied => "applied",
        wire::WorkerState::Partial => "partial",
        wire::WorkerState::Pending => "pending",
        wire::WorkerState::Refused => "refused",
        wire::WorkerState::Gone => "gone",
    }
}

pub(crate) fn number(number: Option<u32>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
}

pub(crate) fn dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

fn duration(wire: Option<&prost_types::Duration>) -> String {
    let duration = wire.and_then(|wire| Duration::try_from(*wire).ok());
    duration.map_or("-".to_owned(), |duration| {
        humantime::format_duration(duration).to_string()
    })
}

fn ago(wire: Option<&prost_types::Timestamp>) -> String {
    let time = wire.and_then(|wire| SystemTime::try_from(*wire).ok());
    let elapsed = time
        .and_then(|time| time.elapsed().ok())
        .unwrap_or_default();
    format!(
        "{} ago",
        humantime::format_duration(Duration::from_secs(elapsed.as_secs()))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_model_is_told_from_a_refused_revision() {
        let refusal = |model: &str, reason: &str| wire::Refusal {
            model: model.into(),
            field: "f".into(),
            reason: reason.into(),
            message: "why".into(),
        };
        let worker = wire::Worker {
            id: "w".into(),
            applied_revision: 5,
            refused_revision: 6,
            refusals: vec![refusal("", "OPEN_FILES"), refusal("m", "INVALID_FIELD")],
            ..Default::default()
        };
        let told = rollout(&wire::Rollout {
            partial: 1,
            workers: vec![worker],
            ..Default::default()
        });
        assert!(told.contains("0 applied, 1 partial, 0 pending"), "{told}");
        assert!(
            told.contains("w refused revision 6: OPEN_FILES f: why"),
            "{told}"
        );
        assert!(
            told.contains("w could not take `m`: INVALID_FIELD f: why"),
            "{told}"
        );
    }

    #[test]
    fn what_was_found_at_endpoints_stands_below_the_model() {
        let result = |id: &str, verdict: wire::ProbeVerdict, what: &str| wire::ProbeResult {
            endpoint_id: id.into(),
            verdict: verdict.into(),
            message: what.into(),
            listed: vec![],
        };
        let llama = wire::Model {
            id: "llama".into(),
            probe: Some(wire::EndpointProbe {
                mode: wire::ProbeMode::Report.into(),
                served_name: "/models/llama".into(),
            }),
            probe_results: vec![
                result("e1", wire::ProbeVerdict::Ok, "it serves `llama`"),
                result("e2", wire::ProbeVerdict::NotProbed, "TLS"),
            ],
            ..Default::default()
        };
        let shown = model(&llama);
        assert!(
            shown.contains("\nprobe         report, as /models/llama\n"),
            "{shown}"
        );
        let found = "\n\nENDPOINT   FOUND        WHAT\n\
                     e1         ok           it serves `llama`\n\
                     e2         not probed   TLS";
        assert!(shown.ends_with(found), "{shown}");
    }

    #[test]
    fn models_stand_in_columns() {
        let pool = wire::Pool {
            max_concurrent: Some(50),
            keepalive: Some(50),
            warm: Some(0),
            idle_timeout: Some(prost_types::Duration {
                seconds: 4,
                nanos: 0,
            }),
            ..Default::default()
        };
        let endpoint = |url: &str| wire::Endpoint {
            url: url.into(),
            ..Default::default()
        };
        let llama = wire::Model {
            id: "llama".into(),
            aliases: vec!["default".into()],
            endpoints: vec![endpoint("http://a:80"), endpoint("http://b:80")],
            resolved_pool: Some(pool),
            revision: 7,
            ..Default::default()
        };
        assert_eq!(
            models(&[llama]),
            "MODEL   SIZE   KEEPALIVE   WARM   IDLE   ENDPOINTS        ALIASES   REVISION\n\
             llama     50          50      0   4s     http://a:80 +1   default          7"
        );
        assert!(models(&[]).contains("forebay models create"));
    }
}
