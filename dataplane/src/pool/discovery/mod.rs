//! Follows the sources of a pool's endpoints (`discovery`; docs/adr/0031): asks each at its own pace, and tells the pool which
//! servers there are. Beside the request path: a task per pool that has sources, and one for each of them, which ends with it.
//!
//! `state.rs` (pure) decides what of an answer is used, `sources.rs` (pure) makes endpoints of it, `read.rs` asks, `list.rs`
//! (pure) reads, `kept.rs` keeps what was used over restarts. What becomes of endpoints that come and go is the pool's affair,
//! as it is when an operator names them.

mod kept;
mod list;
mod read;
mod sources;
mod state;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use forebay_proto::{
    Endpoint, EndpointId, ModelId,
    endpoint::{Discovery, Source},
    limits,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

#[cfg(feature = "fuzzing")]
pub(crate) use self::list::{Form, read as read_list};
pub(super) use self::sources::{Doing, Sources};
pub use self::status::RefusedServer;
pub(crate) use self::status::Why;
use self::{
    kept::KeptLists,
    read::{Answer, Look, Reader, within_bounds},
    state::{Named, Rules, State},
    status::{Failure, Status},
};
use super::{Common, Pool};

/// Most lists that are asked for at a time, and as many files, in all pools together. Their sockets are in the reserve of
/// `apply/open_files.rs`.
const AT_ONCE: usize = 8;
/// Most at one server of lists: one that does not answer leaves turns for the others.
const AT_ORIGIN: usize = 2;

/// A pool without servers is told so again.
const REMIND: Duration = Duration::from_secs(10);

/// How all pools of a worker follow sources.
#[derive(Debug)]
pub(crate) struct Discovering {
    turns: Semaphore,
    /// Those at each server, for as long as somebody follows a list there.
    origins: Mutex<HashMap<String, Weak<Semaphore>>>,
    files: Arc<Semaphore>,
    kept: Option<KeptLists>,
}

impl Discovering {
    /// What is used is kept in the worker's data directory, if it has one.
    pub(crate) fn new(data_dir: Option<&Path>) -> Self {
        Self {
            turns: Semaphore::new(AT_ONCE),
            origins: Mutex::default(),
            files: Arc::new(Semaphore::new(AT_ONCE)),
            kept: data_dir.map(KeptLists::within),
        }
    }

    /// Nobody follows these any more: nothing is kept of them.
    async fn forget(&self, of: Vec<String>) {
        let Some(lists) = self.kept.clone().filter(|_| !of.is_empty()) else {
            return;
        };
        let removed = spawn_blocking(move || of.iter().try_for_each(|of| lists.remove(of)));
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, "what a source named before cannot be removed from disk");
        }
    }

    /// The turns at a server of lists.
    fn at_origin(&self, origin: String) -> Arc<Semaphore> {
        let mut origins = self.origins.lock();
        if let Some(turns) = origins.get(&origin).and_then(Weak::upgrade) {
            return turns;
        }
        origins.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(AT_ORIGIN));
        origins.insert(origin, Arc::downgrade(&turns));
        turns
    }
}

impl Default for Discovering {
    fn default() -> Self {
        Self::new(None)
    }
}

/// A source that is followed, until this is dropped.
#[derive(Debug)]
struct Followed {
    source: Arc<Endpoint>,
    of: String,
    _until: DropGuard,
}

/// Runs until the pool is gone or stops.
pub(super) async fn follow(
    pool: Weak<Pool>,
    common: Common,
    changed: Arc<Notify>,
    stop: CancellationToken,
    retired: Arc<AtomicBool>,
) {
    let lists = common.discovering.clone();
    let mut followed: BTreeMap<EndpointId, Followed> = BTreeMap::new();
    loop {
        let Some((model, sources)) = pool.upgrade().map(|pool| pool.sources()) else {
            return;
        };
        let was: BTreeSet<String> = followed.values().map(|f| f.of.clone()).collect();
        followed.retain(|_, known| sources.iter().any(|s| is_same(s, &known.source)));
        let is: BTreeSet<String> = sources.iter().filter_map(|s| of(&model, s)).collect();
        lists.forget(was.difference(&is).cloned().collect()).await;
        for source in sources {
            let (Some(discovery), Some(of)) =
                (source.url.discovery().cloned(), of(&model, &source))
            else {
                continue;
            };
            if followed.contains_key(&source.id) {
                continue;
            }
            let until = stop.child_token();
            let follower = Follower {
                pool: pool.clone(),
                model: model.clone(),
                source: source.clone(),
                discovery,
                of: of.clone(),
                common: common.clone(),
                born: Instant::now(),
            };
            let (id, ended) = (source.id.clone(), until.clone());
            common.tasks.spawn(async move {
                tokio::select! {
                    () = follower.run() => {}
                    () = ended.cancelled() => {}
                }
            });
            let _until = until.drop_guard();
            followed.insert(id, Followed { source, of, _until });
        }
        tokio::select! {
            () = changed.notified() => {}
            () = stop.cancelled() => break,
        }
    }
    // A worker that stops needs them again; a model that was removed does not.
    if retired.load(Ordering::Acquire) {
        let of = followed.into_values().map(|followed| followed.of);
        lists.forget(of.collect()).await;
    }
}

/// By what a list is known on disk. Not by the endpoint's id, which may be another one tomorrow.
fn of(model: &ModelId, source: &Endpoint) -> Option<String> {
    let source = &source.url.discovery()?.source;
    Some(format!("{model}\n{source}"))
}

/// True if following one is following the other. A weight is in what it names.
fn is_same(one: &Endpoint, other: &Endpoint) -> bool {
    one.id == other.id && one.url == other.url && one.weight == other.weight
}

/// Follows one source.
struct Follower {
    pool: Weak<Pool>,
    model: ModelId,
    source: Arc<Endpoint>,
    discovery: Arc<Discovery>,
    /// By what its list is known on disk.
    of: String,
    common: Common,
    born: Instant,
}

/// What is on disk of a list.
#[derive(Debug, Default)]
struct OnDisk {
    /// As it was read or written last; nothing if that is not known.
    list: Option<Vec<Named>>,
    /// It was said that it cannot be written.
    told: bool,
}

impl Follower {
    async fn run(self) {
        let Some((before, mut on_disk)) = self.before().await else {
            return;
        };
        let records = matches!(self.discovery.source, Source::Dns { .. } | Source::Srv(_));
        let rules = Rules {
            partial: records,
            keep_empty: self.discovery.keep_empty(),
        };
        let mut status = Status {
            from_disk: !before.is_empty(),
            ..Status::default()
        };
        let mut state = State::new(rules, before);
        let (source, discovery) = (self.source.clone(), self.discovery.clone());
        let mut reader = Reader::new(source, discovery, self.common.clone());
        if !self.tell(&state, &status) {
            return;
        }
        loop {
            let Look { found, again } = reader.look().await;
            self.take_in(&mut state, &mut status, found);
            if !self.tell(&state, &status) {
                return;
            }
            self.keep(&state, &mut on_disk).await;
            if !self.wait(again, &mut state, &mut status).await {
                return;
            }
        }
    }

    fn now(&self) -> Duration {
        self.born.elapsed()
    }

    /// What is used before the source says anything: what the pool has of it, or what an earlier process had. Nothing of it
    /// is used that is out of bounds by now.
    async fn before(&self) -> Option<(Vec<Named>, OnDisk)> {
        let mut known = self.pool.upgrade()?.named_by(&self.source.id);
        let mut on_disk = OnDisk::default();
        // What the pool has may be of the source before this one, and what is on disk is not of this one, then.
        if let (true, Some(lists)) = (known.is_empty(), &self.common.discovering.kept) {
            let (lists, of) = (lists.clone(), self.of.clone());
            let loaded = spawn_blocking(move || lists.load(&of)).await;
            let loaded = loaded.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            known = loaded.unwrap_or_else(|error| {
                let (model, endpoint) = (&self.model, &self.source.id);
                tracing::warn!(%model, %endpoint, %error, "what a source named last cannot be read");
                Vec::new()
            });
            on_disk.list = Some(known.clone());
        }
        let within = |named: &Named| {
            let tls = named.url.is_tls() == self.discovery.tls;
            tls && within_bounds(&self.discovery, &named.url).is_ok()
        };
        known.retain(within);
        Some((known, on_disk))
    }

    fn take_in(&self, state: &mut State, status: &mut Status, found: Result<Answer, Failure>) {
        let (model, endpoint, now) = (&self.model, &self.source.id, self.now());
        let count = |why: Why| self.common.metrics.discovery.failed(model, why);
        match found {
            Ok(answer) => {
                if let Some(failure) = status.failure.take() {
                    let was = failure.why.label();
                    tracing::info!(%model, %endpoint, was, "a source is understood again");
                }
                status.understood = Some(Instant::now());
                status.from_disk = false;
                if let Some(servers) = answer.servers {
                    let was = status.kept_alive;
                    state.answer(now, servers);
                    status.kept_alive = state.is_kept_alive();
                    if status.kept_alive {
                        count(Why::Empty);
                    }
                    if status.kept_alive && !was {
                        let (kept_for, note) = (self.discovery.keep_empty(), answer.note);
                        tracing::warn!(
                            %model, %endpoint, ?kept_for, note,
                            "a source says that there are no servers; those that were there serve on for a while"
                        );
                    }
                    self.complain(status, answer.refused, &count);
                } else {
                    state.advance(now);
                    status.kept_alive = state.is_kept_alive();
                }
            }
            Err(failure) => {
                count(failure.why);
                state.advance(now);
                status.kept_alive = state.is_kept_alive();
                if status.failure.as_ref() != Some(&failure) {
                    let (why, error) = (failure.why.label(), &failure.text);
                    tracing::warn!(
                        %model, %endpoint, why, error,
                        "a source is not understood; the servers that are known serve on"
                    );
                }
                status.failure = Some(failure);
            }
        }
        let (calming, no_room) = state.waiting(now);
        if no_room > 0 {
            count(Why::TooMany);
        }
        if no_room > 0 && status.no_room == 0 {
            let most = limits::TARGETS;
            tracing::warn!(%model, %endpoint, no_room, most, "a source names more servers than are used");
        }
        (status.calming, status.no_room) = (calming, no_room);
    }

    /// Servers that are out of bounds are told of when they are others than before.
    fn complain(&self, status: &mut Status, refused: Vec<RefusedServer>, count: &impl Fn(Why)) {
        let before = status.refused.clone();
        status.refuse(refused);
        let Some(first) = status.refused.first() else {
            return;
        };
        count(Why::Refused);
        if status.refused != before {
            let (model, endpoint, refused) = (&self.model, &self.source.id, status.refused_count);
            let (url, why) = (&first.url, &first.why);
            tracing::warn!(
                %model, %endpoint, refused, url, why,
                "a source names servers that it may not lead to"
            );
        }
    }

    /// Until it is to be asked again. What the state does by itself happens meanwhile. False if the pool is gone.
    async fn wait(&self, again: Duration, state: &mut State, status: &mut Status) -> bool {
        let until = self.now() + again;
        loop {
            let now = self.now();
            if now >= until {
                return true;
            }
            let next = state.next(now).map_or(until, |next| next.min(until));
            // Why there is nothing to be had is forgotten after a while.
            let next = match state.used().is_empty() {
                true => next.min(now + REMIND),
                false => next,
            };
            // No busy loop, whatever the state says.
            sleep((next.saturating_sub(now)).max(Duration::from_millis(1))).await;
            let now = self.now();
            if now >= until {
                return true;
            }
            state.advance(now);
            status.kept_alive = state.is_kept_alive();
            (status.calming, status.no_room) = state.waiting(now);
            if !self.tell(state, status) {
                return false;
            }
        }
    }

    fn tell(&self, state: &State, status: &Status) -> bool {
        let Some(pool) = self.pool.upgrade() else {
            return false;
        };
        pool.found_servers(&self.source, state.used(), status.clone());
        true
    }

    async fn keep(&self, state: &State, on_disk: &mut OnDisk) {
        let Some(lists) = self.common.discovering.kept.clone() else {
            return;
        };
        let used = state.used();
        if on_disk.list.as_ref() == Some(&used) {
            return;
        }
        let (of, list) = (self.of.clone(), used.clone());
        let saved = spawn_blocking(move || lists.save(&of, &list)).await;
        let saved = saved.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        match saved {
            Ok(()) => {
                *on_disk = OnDisk {
                    list: Some(used),
                    told: false,
                }
            }
            // It is tried again at the next look.
            Err(error) if !std::mem::replace(&mut on_disk.told, true) => {
                let (model, endpoint) = (&self.model, &self.source.id);
                tracing::warn!(%model, %endpoint, %error, "what a source named cannot be kept on disk");
            }
            Err(_) => {}
        }
    }
}

impl Pool {
    /// The endpoints that have a source.
    fn sources(&self) -> (ModelId, Vec<Arc<Endpoint>>) {
        let configured = self.desk.with(|inner, _| inner.configured.clone());
        let sources = configured.into_iter();
        let sources = sources.filter(|endpoint| endpoint.url.discovery().is_some());
        (self.model.clone(), sources.collect())
    }

    fn named_by(&self, source: &EndpointId) -> Vec<Named> {
        self.desk.with(|inner, _| inner.sources.of(source))
    }

    /// A source says so.
    fn found_servers(self: &Arc<Self>, source: &Arc<Endpoint>, named: Vec<Named>, status: Status) {
        let (mut news, count) = (false, named.len());
        let failed = match (count, &status.failure, status.understood) {
            (0, Some(failure), _) => Some(format!("endpoint `{}`: {}", source.id, failure.text)),
            (0, None, Some(_)) => Some(format!("endpoint `{}`: it has no servers now", source.id)),
            _ => None,
        };
        self.desk.change(|inner, now| {
            // The configuration may have changed while it was asked.
            if !inner.configured.iter().any(|c| is_same(c, source)) {
                return Vec::new();
            }
            news = inner.sources.named(&source.id, named, status);
            let mut effects = match news {
                true => inner.expand(now),
                false => Vec::new(),
            };
            if let Some(error) = &failed {
                effects.extend(inner.unresolved(now, &source.id, error));
            }
            effects
        });
        if news {
            let (model, endpoint) = (&self.model, &source.id);
            tracing::info!(%model, %endpoint, servers = count, "the servers of an endpoint changed");
            self.follow_endpoints();
        }
    }

    /// Looks whether servers of the next priority are needed.
    pub(super) fn weigh_reserves(self: &Arc<Self>) {
        if !self.desk.with(|inner, _| inner.sources.has_reserves()) {
            return;
        }
        let mut changes = false;
        self.desk.change(|inner, now| {
            changes = inner.weigh_reserves(now);
            match changes {
                true => inner.expand(now),
                false => Vec::new(),
            }
        });
        if changes {
            tracing::info!(model = %self.model, "servers of another priority are used");
            self.follow_endpoints();
        }
    }

    /// The endpoints that sources named.
    pub(crate) fn found_ids(&self) -> Vec<EndpointId> {
        self.desk.with(|inner, _| {
            let endpoints = inner.endpoints.iter().map(|endpoint| &endpoint.id);
            let found = endpoints.filter(|id| inner.sources.owner(id).is_some());
            found.cloned().collect()
        })
    }

    /// True if a source named it.
    pub(crate) fn has_found(&self, endpoint: &EndpointId) -> bool {
        self.desk
            .with(|inner, _| inner.sources.owner(endpoint).is_some())
    }
}

#[cfg(test)]
mod tests;
