//! Asks the endpoints of a pool again and again whether they are well (`health` of the model). Beside the request
//! path: a task per pool, few at a time in all pools together, each over a short connection of its own: the pool's
//! size is not touched, and nobody waits in its line. The policy of `probe.rs` says which addresses are dialled.
//!
//! A check tells what it found, and no more; what follows is for the core. One that is not answered in time says
//! nothing while something comes from that endpoint: it is busy.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use forebay_proto::{Endpoint, EndpointId, ModelId, failure::HealthSpec};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderValue, Request, header, uri::PathAndQuery};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Common, Pool,
    conn::{self, Conn},
    core::{OriginId, Pulse},
    probe::may_dial,
    request_body::RequestBody,
    target::{Place, Target},
};

/// One address that is checked, as the pool knows it now.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) origin: OriginId,
    pub(super) target: Target,
    pub(super) pulse: Arc<Pulse>,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Well,
    Unwell,
    /// Nothing can be said.
    Unclear,
}

/// When each address is checked next.
type Schedule = HashMap<(EndpointId, Place), (Arc<Endpoint>, Instant)>;

/// Takes in what is to be checked now, and gives what is due.
fn due(
    schedule: &mut Schedule,
    now: Instant,
    spec: &HealthSpec,
    checked: Vec<Checked>,
) -> Vec<Checked> {
    let every = spec.interval();
    let key = |checked: &Checked| {
        let target = &checked.target;
        (target.endpoint.id.clone(), target.place.clone())
    };
    schedule.retain(|known, (endpoint, at)| {
        // Nor is one waited for that a longer interval put off.
        *at = (*at).min(now + every);
        let mut same = checked.iter();
        same.any(|c| key(c) == *known && c.target.endpoint.same_connections(endpoint))
    });
    let due = checked.into_iter().filter(|checked| {
        let (_, at) = schedule.entry(key(checked)).or_insert_with(|| {
            // A fleet that was pushed a new endpoint does not ask at once.
            let first = now + every.mul_f64(fastrand::f64());
            (checked.target.endpoint.clone(), first)
        });
        let is_due = *at <= now;
        if is_due {
            *at = now + every.mul_f64(0.9 + fastrand::f64() * 0.2);
        }
        is_due
    });
    due.collect()
}

/// Runs until the pool is gone or stops.
pub(super) async fn follow(
    (model, pool): (ModelId, Weak<Pool>),
    common: Common,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    let run = async {
        let mut schedule = Schedule::new();
        loop {
            let Some(to_check) = pool.upgrade().map(|pool| pool.to_check()) else {
                return;
            };
            let Some((spec, checked)) = to_check else {
                schedule.clear();
                changed.notified().await;
                continue;
            };
            let now = Instant::now();
            let due = due(&mut schedule, now, &spec, checked);
            let checks = due.iter().map(async |checked| {
                let found = check_in_turn(&model, checked, &spec, &common).await;
                (checked.origin, found)
            });
            // Each is acted on as it comes: one that does not answer holds up no other.
            let mut checks: FuturesUnordered<_> = checks.collect();
            while let Some((origin, found)) = checks.next().await {
                let Some(pool) = pool.upgrade() else { return };
                pool.checked(origin, found);
            }
            let next = schedule.values().map(|(_, at)| *at).min();
            let next = next.unwrap_or(now + spec.interval());
            tokio::select! {
                () = sleep_until(next) => {}
                () = changed.notified() => {}
            }
        }
    };
    tokio::select! {
        () = run => {}
        () = stop.cancelled() => {}
    }
}

impl Pool {
    fn to_check(&self) -> Option<(HealthSpec, Vec<Checked>)> {
        self.desk.with(|inner, _| inner.to_check())
    }

    fn checked(&self, origin: OriginId, found: Found) {
        match found {
            Found::Well => self.desk.checked(origin, true),
            Found::Unwell => self.desk.checked(origin, false),
            Found::Unclear => {}
        }
    }
}

async fn check_in_turn(
    model: &ModelId,
    checked: &Checked,
    spec: &HealthSpec,
    common: &Common,
) -> Found {
    let Ok(_turn) = common.probing.checks.acquire().await else {
        return Found::Unclear;
    };
    if may_dial(&checked.target, &common.probing.policy).is_err() {
        return Found::Unclear;
    }
    let Some(path) = spec.path.as_ref() else {
        return Found::Unclear;
    };
    let before = checked.pulse.movement();
    let whose = checked.target.whose_credential();
    let credential = whose.and_then(|endpoint| common.keys.open(model, endpoint));
    let asked = (path.as_str(), credential);
    let check = check(&checked.target, asked, spec.timeout(), common);
    match timeout(spec.timeout(), check).await {
        Ok(true) => Found::Well,
        Ok(false) => Found::Unwell,
        Err(_) if checked.pulse.movement() != before => Found::Unclear,
        Err(_) => Found::Unwell,
    }
}

/// Asks over a connection of its own, which is closed after it.
async fn check(
    target: &Target,
    (path, credential): (&str, Option<HeaderValue>),
    within: Duration,
    common: &Common,
) -> bool {
    let Ok((conn, driver)) = conn::connect(target, &common.tasks, within).await else {
        return false;
    };
    let (mut answer, mut driver) = (
        pin!(answer(conn, path, credential)),
        pin!(driver.run(|_| {})),
    );
    tokio::select! {
        biased;
        well = &mut answer => return well,
        // How that ended is told to the answer.
        _ = &mut driver => {}
    }
    answer.await
}

async fn answer(mut conn: Conn, path: &str, credential: Option<HeaderValue>) -> bool {
    let request = Request::get("/")
        .header(header::USER_AGENT, "forebay-health")
        .header(header::CONNECTION, HeaderValue::from_static("close"))
        .body(RequestBody::default());
    let (Ok(mut request), true) = (request, conn.ready().await) else {
        return false;
    };
    let Ok(path) = PathAndQuery::try_from(path) else {
        return false;
    };
    if let Some(credential) = credential {
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, credential);
    }
    conn.address(path, &mut request);
    match conn.send(request).await {
        Some(Ok(response)) => response.status().is_success(),
        Some(Err(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::EndpointUrl;

    use super::*;

    fn checked(n: u64) -> Checked {
        let url = EndpointUrl::parse(&format!("http://127.0.0.{n}:8000")).unwrap();
        let endpoint = Endpoint::new(EndpointId::new(format!("e{n}")).unwrap(), url);
        Checked {
            origin: OriginId(n),
            target: Target::all(&Arc::new(endpoint), None, &[]).remove(0),
            pulse: Arc::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_checked_once_within_the_first_interval_and_then_about_as_often() {
        let (mut schedule, spec, began) = (Schedule::new(), HealthSpec::default(), Instant::now());
        let mut count = HashMap::<u64, usize>::new();
        for tenth in 0..1_000 {
            let now = began + Duration::from_millis(tenth * 100);
            let checked = (1..4).map(checked).collect();
            for due in due(&mut schedule, now, &spec, checked) {
                *count.entry(due.origin.0).or_default() += 1;
            }
        }
        for n in 1..4 {
            assert!((18..=23).contains(&count[&n]), "{count:?} in 100 s");
        }
        // What is gone is forgotten; a shorter interval holds at once.
        let short = HealthSpec {
            interval: Some(Duration::from_millis(500)),
            ..HealthSpec::default()
        };
        let now = began + Duration::from_secs(100);
        drop(due(&mut schedule, now, &short, vec![checked(1)]));
        assert_eq!(schedule.len(), 1);
        let soon = now + Duration::from_millis(500);
        assert_eq!(due(&mut schedule, soon, &short, vec![checked(1)]).len(), 1);
    }
}
