//! Tables of clients' keys, for people. They have no secret to show.

use std::time::SystemTime;

use forebay_proto::wire;

use crate::table::{dash, facts, number, table, text};

/// All keys.
pub(crate) fn all(keys: &[wire::Key]) -> String {
    if keys.is_empty() {
        return "no keys; make one with\n  forebay keys create NAME".to_owned();
    }
    let mut table = table(&[
        "KEY",
        "NAME",
        "STATE",
        "MODELS",
        ">RPM",
        ">TPM",
        ">CONCURRENT",
        "PRIORITY",
        "EXPIRES",
    ]);
    for key in keys {
        let models = match key.models.as_slice() {
            [first, _, ..] => format!("{first} +{}", key.models.len() - 1),
            [first] => first.clone(),
            [] => "all".to_owned(),
        };
        table.add_row([
            key.id.clone(),
            dash(key.display_name.clone()),
            state(key.state()).to_owned(),
            models,
            number(key.requests_per_minute),
            number(key.tokens_per_minute),
            number(key.max_concurrent),
            priority(key.priority()).to_owned(),
            time(key.expire_time.as_ref()),
        ]);
    }
    text(&table)
}

/// One key in full.
pub(crate) fn one(key: &wire::Key) -> String {
    let models = match key.models.is_empty() {
        true => "all".to_owned(),
        false => key.models.join(", "),
    };
    let by = |author: &str, reason: &str| match reason {
        "" => author.to_owned(),
        reason => format!("{author} ({reason})"),
    };
    let mut rows = vec![
        ("key", dash(key.id.clone())),
        ("name", dash(key.display_name.clone())),
        ("state", state(key.state()).to_owned()),
        ("models", models),
        ("requests/min", number(key.requests_per_minute)),
        ("tokens/min", number(key.tokens_per_minute)),
        ("concurrent", number(key.max_concurrent)),
        ("priority", priority(key.priority()).to_owned()),
        ("weight", number(key.weight)),
        ("expires", time(key.expire_time.as_ref())),
        ("created", time(key.create_time.as_ref())),
        (
            "created by",
            dash(by(&key.create_author, &key.create_reason)),
        ),
    ];
    if key.revoke_time.is_some() {
        rows.push(("revoked", time(key.revoke_time.as_ref())));
        rows.push((
            "revoked by",
            dash(by(&key.revoke_author, &key.revoke_reason)),
        ));
    }
    rows.push(("etag", key.etag.clone()));
    facts(&rows)
}

fn state(state: wire::KeyState) -> &'static str {
    match state {
        wire::KeyState::Unspecified => "-",
        wire::KeyState::Active => "active",
        wire::KeyState::Expired => "expired",
        wire::KeyState::Revoked => "revoked",
    }
}

fn priority(priority: wire::KeyPriority) -> &'static str {
    match priority {
        wire::KeyPriority::Low => "low",
        wire::KeyPriority::Unspecified | wire::KeyPriority::Normal => "normal",
        wire::KeyPriority::High => "high",
    }
}

fn time(wire: Option<&prost_types::Timestamp>) -> String {
    let time = wire.and_then(|wire| SystemTime::try_from(*wire).ok());
    time.map_or("-".to_owned(), |time| {
        humantime::format_rfc3339_seconds(time).to_string()
    })
}
