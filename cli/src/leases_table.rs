//! Fleet-wide limits and leases as tables.

use forebay_proto::wire;

use crate::table::{table, text};

/// All limits, each with who has what of it.
pub(crate) fn pools(pools: &[wire::FleetPool]) -> String {
    if pools.is_empty() {
        return "no fleet-wide limits; give a model one with\n  \
                forebay models update NAME --scope fleet --max-concurrent N"
            .to_owned();
    }
    let shown: Vec<String> = pools.iter().map(pool).collect();
    shown.join("\n\n")
}

fn pool(pool: &wire::FleetPool) -> String {
    let wire::FleetPool {
        model,
        limit,
        allotted,
        in_flight,
        waiting,
        held_back,
        utilisation,
        ..
    } = pool;
    let held_back = match held_back {
        0 => String::new(),
        held => format!(", {held} held back"),
    };
    let mut shown = format!(
        "{model}: {in_flight} of {limit} in flight ({:.1} %), {waiting} waiting, {allotted} lent{held_back}",
        utilisation * 100.0
    );
    if !pool.waits_for.is_empty() {
        shown.push_str(&format!("\nwaits for {}", pool.waits_for));
    }
    if pool.leases.is_empty() {
        return shown;
    }
    let mut table = table(&[
        "WORKER",
        "STATE",
        ">LEASE",
        ">FLOOR",
        ">IN FLIGHT",
        ">WAITING",
        ">COUNTS",
        "WHY",
    ]);
    for lease in &pool.leases {
        table.add_row([
            lease.worker_id.clone(),
            state(lease.state()).to_owned(),
            lease.size.to_string(),
            lease.floor.to_string(),
            lease.in_flight.to_string(),
            lease.waiting.to_string(),
            lease.may_use.to_string(),
            lease.reason.clone(),
        ]);
    }
    format!("{shown}\n{}", text(&table))
}

/// What a worker has, in one cell: the first few.
pub(crate) fn of_worker(leases: &[wire::Lease]) -> String {
    const SHOWN: usize = 3;
    if leases.is_empty() {
        return "-".to_owned();
    }
    let first = leases.iter().take(SHOWN);
    let mut cells: Vec<String> = first
        .map(|lease| format!("{} {}/{}", lease.model, lease.in_flight, lease.size))
        .collect();
    if let Some(more) = leases.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        cells.push(format!("+{more}"));
    }
    cells.join(", ")
}

fn state(state: wire::LeaseState) -> &'static str {
    use wire::LeaseState as State;
    match state {
        State::Unspecified => "-",
        State::Held => "held",
        State::Shrinking => "shrinking",
        State::RunningOut => "running out",
        State::Floor => "floor",
        State::Unknown => "unknown",
        State::OwnPool => "own pool",
        State::TooOld => "too old",
        State::Pending => "pending",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_shown_with_who_has_what() {
        let lease = wire::Lease {
            model: "m".to_owned(),
            worker_id: "w1".to_owned(),
            state: wire::LeaseState::Held.into(),
            size: 96,
            floor: 1,
            in_flight: 90,
            waiting: 3,
            may_use: 96,
            reason: String::new(),
        };
        let text = pools(&[wire::FleetPool {
            model: "m".to_owned(),
            limit: 192,
            allotted: 96,
            in_flight: 90,
            waiting: 3,
            held_back: 1,
            utilisation: 90.0 / 192.0,
            waits_for: "w2 to come back".to_owned(),
            leases: vec![lease.clone()],
        }]);
        assert!(
            text.starts_with("m: 90 of 192 in flight (46.9 %), 3 waiting, 96 lent, 1 held back")
        );
        assert!(text.contains("waits for w2 to come back"));
        assert!(text.contains("w1") && text.contains("held"));
        assert!(pools(&[]).contains("--scope fleet"));
        assert_eq!(of_worker(std::slice::from_ref(&lease)), "m 90/96");
        assert!(of_worker(&vec![lease; 5]).ends_with("+2"));
        assert_eq!(of_worker(&[]), "-");
    }
}
