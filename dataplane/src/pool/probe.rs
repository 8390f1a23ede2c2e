//! Asks the endpoints of a pool what they serve (docs/adr/0016): one that is new, one that has its first
//! connection after it had none, and again and again one that did not say what it should. Beside the request path:
//! a task per pool, few at a time in all pools together.
//!
//! It dials as requests are dialled, but over connections of its own, and only what the policy lets it. It takes
//! an address out of the pool, and puts it back; what that means is the pool's affair.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use forebay_proto::{
    Endpoint, EndpointId, ModelId,
    endpoint::Address,
    limits,
    probe::{AddressPolicy, Cidr, Outcome, PATH, Verdict, judge},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderValue, Request, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Common, Pool,
    conn::{self, Conn},
    inner::Asked,
    request_body::RequestBody,
    target::{Place, Target},
};

/// Most probes under way, in all pools together, and as many checks. Their sockets are in the reserve of `apply/open_files.rs`.
const AT_ONCE: usize = 8;
/// Time for one.
const WITHIN: Duration = Duration::from_secs(2);
/// A probe comes at some time within this, so that a fleet that was pushed a new endpoint does not ask at once.
const SPREAD: Duration = Duration::from_millis(300);
/// However often an endpoint comes and goes, it is asked no sooner again.
const APART: Duration = Duration::from_secs(5);

/// How all pools of a worker ask.
#[derive(Debug)]
pub struct Probing {
    turns: Semaphore,
    /// Of the checks in `check.rs`: slow ones hold up no probe.
    pub(super) checks: Semaphore,
    /// How often an endpoint is asked again that did not say what it should.
    every: Duration,
    pub(super) policy: AddressPolicy,
}

impl Probing {
    /// Asks again this often, and dials these although it would not. An engine beside its worker is usual.
    pub(crate) fn new(every: Duration, allowed: Vec<Cidr>) -> Self {
        let policy = AddressPolicy {
            loopback: true,
            allowed,
            own: None,
        };
        let turns = Semaphore::new(AT_ONCE);
        Self {
            turns,
            checks: Semaphore::new(AT_ONCE),
            every,
            policy,
        }
    }
}

impl Default for Probing {
    fn default() -> Self {
        Self::new(Duration::from_secs(30), Vec::new())
    }
}

/// One address of one endpoint.
type Key = (EndpointId, Place);

fn key(target: &Target) -> Key {
    (target.endpoint.id.clone(), target.place.clone())
}

/// What the dialler tells: these have their first connection. As many as there are addresses at most.
#[derive(Debug, Default)]
pub(super) struct Reconnects {
    noted: Mutex<HashSet<Key>>,
    news: Notify,
}

impl Reconnects {
    pub(super) fn note(&self, target: &Target) {
        self.noted.lock().insert(key(target));
        self.wake();
    }

    /// The configuration changed, or there is something noted.
    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    fn take(&self) -> HashSet<Key> {
        std::mem::take(&mut *self.noted.lock())
    }
}

/// What is known of one address.
#[derive(Debug)]
struct Known {
    endpoint: Arc<Endpoint>,
    last: Option<(Instant, Verdict)>,
    /// When it is asked next; never, unless something happens.
    due: Option<Instant>,
}

/// When each address is asked.
#[derive(Debug, Default)]
struct Schedule {
    asked: Option<Asked>,
    known: HashMap<Key, Known>,
}

impl Schedule {
    /// Takes in what is configured now, and which addresses have a first connection.
    fn update(
        &mut self,
        now: Instant,
        to_ask: Option<&(Asked, Vec<Target>)>,
        first: &HashSet<Key>,
    ) {
        let asked = to_ask.map(|(asked, _)| asked.clone());
        if self.asked != asked {
            // Other names, or none: nothing is known of them.
            self.known.clear();
            self.asked = asked;
        }
        let targets = to_ask.map_or(&[][..], |(_, targets)| targets);
        let configured: HashMap<Key, &Target> = targets.iter().map(|t| (key(t), t)).collect();
        self.known.retain(|key, known| {
            let same = configured.get(key);
            same.is_some_and(|target| target.endpoint.same_connections(&known.endpoint))
        });
        for (key, target) in configured {
            let known = self.known.entry(key.clone()).or_insert_with(|| Known {
                endpoint: target.endpoint.clone(),
                last: None,
                due: Some(now + spread(SPREAD)),
            });
            if let Some((last, _)) = known.last.filter(|_| first.contains(&key)) {
                let soon = now.max(last + APART) + spread(SPREAD);
                known.due = Some(known.due.map_or(soon, |due| due.min(soon)));
            }
        }
    }

    fn due(&self, now: Instant, target: &Target) -> bool {
        let known = self.known.get(&key(target));
        known.is_some_and(|known| known.due.is_some_and(|due| due <= now))
    }

    fn next(&self) -> Option<Instant> {
        self.known.values().filter_map(|known| known.due).min()
    }

    /// Notes what was found. Gives the verdict before this one.
    fn found(
        &mut self,
        now: Instant,
        target: &Target,
        verdict: Verdict,
        every: Duration,
    ) -> Option<Verdict> {
        let known = self.known.get_mut(&key(target))?;
        known.due = match verdict {
            Verdict::Ok => None,
            Verdict::Unreachable
            | Verdict::Mismatch
            | Verdict::Blocked
            | Verdict::Unknown
            | Verdict::NotProbed => Some(now + every.mul_f64(0.9) + spread(every.mul_f64(0.2))),
        };
        let before = known.last.replace((now, verdict));
        before.map(|(_, verdict)| verdict)
    }
}

fn spread(within: Duration) -> Duration {
    within.mul_f64(fastrand::f64())
}

/// Runs until the pool is gone or stops.
pub(super) async fn follow(
    (model, pool): (ModelId, Weak<Pool>),
    common: Common,
    reconnects: Arc<Reconnects>,
    stop: CancellationToken,
) {
    let mut schedule = Schedule::default();
    let probing = common.probing.clone();
    let run = async {
        loop {
            let Some(to_ask) = pool.upgrade().map(|pool| pool.to_ask()) else {
                return;
            };
            let now = Instant::now();
            schedule.update(now, to_ask.as_ref(), &reconnects.take());
            if let Some((asked, targets)) = &to_ask {
                let due = targets.iter().filter(|target| schedule.due(now, target));
                let found = due.map(async |target| {
                    let found = ask_in_turn(&model, target, asked, &common).await;
                    (target, found)
                });
                // Each is acted on as it comes: one that does not answer holds up no other.
                let mut found: FuturesUnordered<_> = found.collect();
                while let Some((target, found)) = found.next().await {
                    let Some(pool) = pool.upgrade() else { return };
                    let verdict = found.verdict;
                    let before = schedule.found(Instant::now(), target, verdict, probing.every);
                    pool.found(asked, target, &found, before);
                }
            }
            match schedule.next() {
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = reconnects.news.notified() => {}
                },
                None => reconnects.news.notified().await,
            }
        }
    };
    tokio::select! {
        () = run => {}
        () = stop.cancelled() => {}
    }
}

impl Pool {
    fn to_ask(&self) -> Option<(Asked, Vec<Target>)> {
        self.desk.with(|inner, _| inner.to_ask())
    }

    /// Draws the consequence. What says nothing of the model changes nothing, in either direction.
    fn found(&self, asked: &Asked, target: &Target, found: &Outcome, before: Option<Verdict>) {
        let why = format!("{}: {}", target.place, found.message);
        let change = match found.verdict {
            verdict if verdict.condemns() => Some(Some(why.as_str())),
            Verdict::Ok => Some(None),
            _ => None,
        };
        if let Some(why) = change {
            self.desk
                .change(|inner, now| inner.found(now, asked, target, why));
        }
        if before == Some(found.verdict) {
            return;
        }
        let (model, endpoint, verdict) = (&self.model, &target.endpoint.id, found.verdict.word());
        let quarantined = self.desk.with(|inner, _| inner.is_quarantined(target));
        match found.verdict {
            Verdict::Ok => {
                tracing::info!(%model, %endpoint, why, "an endpoint serves its model");
            }
            _ => tracing::warn!(
                %model, %endpoint, verdict, why, quarantined,
                "an endpoint does not show that it serves its model"
            ),
        }
    }
}

async fn ask_in_turn(model: &ModelId, target: &Target, asked: &Asked, common: &Common) -> Outcome {
    let Ok(_turn) = common.probing.turns.acquire().await else {
        return Outcome::new(Verdict::NotProbed, "the worker stops");
    };
    let Err(blocked) = may_dial(target, &common.probing.policy) else {
        let whose = target.whose_credential();
        let credential = whose.and_then(|endpoint| common.keys.credential(model, endpoint));
        let asked = timeout(WITHIN, ask(target, &asked.expected, credential, common)).await;
        return asked.unwrap_or_else(|_| {
            let what = format!("it did not answer within {WITHIN:?}");
            Outcome::new(Verdict::Unreachable, what)
        });
    };
    blocked
}

/// The very address that will be dialled.
pub(super) fn may_dial(target: &Target, policy: &AddressPolicy) -> Result<(), Outcome> {
    let named = match target.endpoint.url.address() {
        Address::Host(host, _) => policy.check_name(host),
        Address::Unix(_) | Address::Listed(_) => Ok(()),
    };
    let checked = match &target.place {
        Place::Tcp(address) => named.and_then(|()| policy.check(*address)),
        Place::Unix(_) | Place::Name(_) => named,
    };
    checked.map_err(|why| Outcome::new(Verdict::Blocked, format!("it is not dialled: {why}")))
}

/// Asks over a connection of its own, which is closed after it.
async fn ask(
    target: &Target,
    expected: &str,
    credential: Option<HeaderValue>,
    common: &Common,
) -> Outcome {
    let (conn, driver) = match conn::connect(target, &common.tasks, WITHIN).await {
        Ok(connected) => connected,
        Err(error) => {
            let what = format!("no connection: {error}");
            return Outcome::new(Verdict::Unreachable, what);
        }
    };
    let (mut answer, mut driver) = (
        pin!(answer(conn, expected, credential)),
        pin!(driver.run(|_| {})),
    );
    tokio::select! {
        biased;
        found = &mut answer => return found,
        // How that ended is told to the answer.
        _ = &mut driver => {}
    }
    answer.await
}

async fn answer(mut conn: Conn, expected: &str, credential: Option<HeaderValue>) -> Outcome {
    let request = Request::get("/")
        .header(header::ACCEPT, "application/json")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::USER_AGENT, "forebay-probe")
        .body(RequestBody::default());
    let broken_off = || {
        let what = "it closed the connection without an answer";
        Outcome::new(Verdict::Unreachable, what)
    };
    let request = request.map(|mut request| {
        if let Some(credential) = credential {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, credential);
        }
        request
    });
    let (Ok(mut request), true) = (request, conn.ready().await) else {
        return broken_off();
    };
    conn.address(PathAndQuery::from_static(PATH), &mut request);
    let response = match conn.send(request).await {
        Some(Ok(response)) => response,
        Some(Err(error)) if error.error().is_parse() => {
            return Outcome::unknown("it does not answer in HTTP");
        }
        Some(Err(_)) | None => return broken_off(),
    };
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), limits::PROBE_BODY_BYTES);
    match body.collect().await {
        Ok(body) => judge(expected, status, &body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let most = limits::PROBE_BODY_BYTES;
            Outcome::unknown(format!("its answer to {PATH} is larger than {most} bytes"))
        }
        Err(_) => Outcome::unknown(format!("its answer to {PATH} breaks off")),
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::EndpointUrl;

    use super::*;

    fn target(last: u8) -> Target {
        let url = EndpointUrl::parse(&format!("http://127.0.0.{last}:8000")).unwrap();
        let endpoint = Endpoint::new(EndpointId::new(format!("e{last}")).unwrap(), url);
        Target::all(&Arc::new(endpoint), None, &[]).remove(0)
    }

    fn to_ask(expected: &str, targets: &[&Target]) -> (Asked, Vec<Target>) {
        let asked = Asked {
            enforced: true,
            expected: expected.to_owned(),
        };
        (asked, targets.iter().map(|t| (*t).clone()).collect())
    }

    const EVERY: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn the_new_the_wrong_and_the_reconnected_are_asked_and_others_are_not() {
        let (a, b) = (target(1), target(2));
        let (now, none) = (Instant::now(), HashSet::new());
        let at = |secs: u64| now + Duration::from_secs(secs);
        let mut schedule = Schedule::default();
        let both = to_ask("m", &[&a, &b]);
        schedule.update(now, Some(&both), &none);
        assert!(schedule.due(at(1), &a) && schedule.due(at(1), &b));
        assert_eq!(schedule.found(at(1), &a, Verdict::Ok, EVERY), None);
        schedule.found(at(1), &b, Verdict::Mismatch, EVERY);
        schedule.update(at(2), Some(&both), &none);
        assert!(!schedule.due(at(3_600), &a), "what is right is left alone");
        assert!(!schedule.due(at(27), &b) && schedule.due(at(35), &b));
        // It had none and has one now; again at once it is not asked at once.
        let first = HashSet::from([key(&a)]);
        schedule.update(at(100), Some(&both), &first);
        assert!(schedule.due(at(101), &a));
        schedule.found(at(101), &a, Verdict::Ok, EVERY);
        schedule.update(at(102), Some(&both), &first);
        assert!(!schedule.due(at(105), &a) && schedule.due(at(107), &a));
        // For another name all are asked anew; who is gone is forgotten.
        schedule.found(at(107), &a, Verdict::Ok, EVERY);
        let renamed = to_ask("n", &[&a]);
        schedule.update(at(200), Some(&renamed), &none);
        assert!(schedule.due(at(201), &a));
        assert_eq!(schedule.known.len(), 1);
        schedule.update(at(201), None, &first);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn what_is_dialled_is_what_is_checked() {
        let policy = Probing::default().policy;
        assert_eq!(may_dial(&target(1), &policy), Ok(()), "beside its worker");
        let url = EndpointUrl::parse("http://harmless.test:80").unwrap();
        let named = Arc::new(Endpoint::new(EndpointId::new("a").unwrap(), url));
        let verdict = |ip: &str| {
            let target = Target::all(&named, None, &[ip.parse().unwrap()]).remove(0);
            may_dial(&target, &policy).map_err(|found| found.verdict)
        };
        assert_eq!(verdict("10.0.0.5"), Ok(()));
        for ip in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fd00:ec2::254",
            "0.0.0.0",
        ] {
            assert_eq!(verdict(ip), Err(Verdict::Blocked), "{ip}");
        }
    }
}
