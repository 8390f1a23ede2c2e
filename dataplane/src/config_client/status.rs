//! Where the configuration in force comes from and how old the last word of the control plane is:
//! for readiness, metrics and `/config`.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chooser::{Left, Replica};

/// After so long without a word of a control plane another process with our id may have taken our place: it is let in
/// when we do not answer for 8 s. Signs of life come every 10 s or so.
const PLACE_KEPT: Duration = Duration::from_secs(18);

/// Where the configuration in force comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    /// There is none yet.
    None,
    /// The file of the last run.
    LastKnownGood,
    /// A control plane, in this run.
    ControlPlane,
}

/// The control plane that is followed, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// As it was named, with the address if it is a name's.
    pub control: String,
    /// What it calls itself; may be empty.
    pub replica: String,
    /// Since when; nothing while there is no stream.
    pub since: Option<SystemTime>,
}

/// Shared between the configuration client, which writes it, and the admin port.
#[derive(Debug)]
pub struct ConfigStatus {
    known: Mutex<Known>,
    /// The control plane wants this worker to end.
    asked_to_end: CancellationToken,
    stopping: CancellationToken,
}

#[derive(Debug)]
struct Known {
    source: ConfigSource,
    applied_at: Option<SystemTime>,
    connected: bool,
    quarantined: usize,
    last_contact: Option<Instant>,
    started: Instant,
    followed: Option<Followed>,
    /// How often it went from one to another, and why it did so last.
    moves: u32,
    moved_because: Option<Left>,
    /// Why the last stream ended.
    left: Option<Left>,
    /// Since when control planes let us in, without a pause in which another process could have taken our place.
    let_in: Option<Instant>,
    /// What was said when we were turned away because another process has our id.
    twin: Option<String>,
    /// Streams that were opened, whatever became of them.
    streams: u32,
}

impl Default for ConfigStatus {
    fn default() -> Self {
        let known = Known {
            source: ConfigSource::None,
            applied_at: None,
            connected: false,
            quarantined: 0,
            last_contact: None,
            started: Instant::now(),
            followed: None,
            moves: 0,
            moved_because: None,
            left: None,
            let_in: None,
            twin: None,
            streams: 0,
        };
        Self {
            known: Mutex::new(known),
            asked_to_end: CancellationToken::new(),
            stopping: CancellationToken::new(),
        }
    }
}

impl Known {
    fn still_let_in(&self) -> Option<Instant> {
        let heard = self.last_contact?;
        self.let_in.filter(|_| heard.elapsed() < PLACE_KEPT)
    }
}

impl ConfigStatus {
    pub(super) fn applied(&self, source: ConfigSource) {
        let mut known = self.known.lock();
        known.source = source;
        known.applied_at = Some(SystemTime::now());
    }

    /// So many configurations are not tried any more.
    pub(super) fn quarantined(&self, count: usize) {
        self.known.lock().quarantined = count;
    }

    /// How many configurations are not tried any more.
    pub fn in_quarantine(&self) -> usize {
        self.known.lock().quarantined
    }

    pub(super) fn heard(&self) {
        let mut known = self.known.lock();
        known.let_in = known.still_let_in();
        known.connected = true;
        known.last_contact = Some(Instant::now());
    }

    /// The control plane confirmed that what is in force is the newest.
    pub(super) fn confirmed(&self) {
        let mut known = self.known.lock();
        if known.source == ConfigSource::LastKnownGood {
            known.source = ConfigSource::ControlPlane;
        }
    }

    pub(super) fn disconnected(&self) {
        let mut known = self.known.lock();
        known.connected = false;
        if let Some(followed) = &mut known.followed {
            followed.since = None;
        }
    }

    /// This one has let us in. Tells why we left the one before, if that is another one.
    pub(super) fn arrived(&self, control: &Replica, replica: String) -> Option<Left> {
        let (moves, because) = self.moves_with(control);
        let mut known = self.known.lock();
        let moved = moves != known.moves;
        (known.moves, known.moved_because) = (moves, because);
        (known.left, known.twin) = (None, None);
        known.let_in.get_or_insert_with(Instant::now);
        known.followed = Some(Followed {
            control: control.to_string(),
            replica,
            since: Some(SystemTime::now()),
        });
        because.filter(|_| moved)
    }

    /// How often we have gone from one to another once we follow this one, and why we did so last.
    pub(super) fn moves_with(&self, control: &Replica) -> (u32, Option<Left>) {
        let known = self.known.lock();
        let other = |followed: &Followed| followed.control != control.to_string();
        match known.followed.as_ref().is_some_and(other) {
            true => (known.moves.saturating_add(1), known.left),
            false => (known.moves, known.moved_because),
        }
    }

    /// A stream is opened: its number.
    pub(super) fn opens(&self) -> u32 {
        let mut known = self.known.lock();
        known.streams = known.streams.saturating_add(1);
        known.streams
    }

    /// A stream ended, or did not come about.
    pub(super) fn left(&self, (left, loses_place): (Left, bool), said: &str) {
        let mut known = self.known.lock();
        // Why the one that was followed was left, not why others did not let us in after it.
        known.left.get_or_insert(left);
        known.twin = (left == Left::Twin).then(|| said.to_owned());
        if loses_place {
            known.let_in = None;
        }
    }

    /// For how long control planes have let us in. Zero if another process may have taken our place meanwhile, or is to:
    /// one that stops stands in nobody's way.
    pub(super) fn let_in_for(&self) -> Duration {
        let let_in = self.known.lock().still_let_in();
        let let_in = let_in.filter(|_| !self.is_stopping());
        let_in.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// The control plane that is followed, or was last.
    pub fn followed(&self) -> Option<Followed> {
        self.known.lock().followed.clone()
    }

    /// How often the worker went from one control plane to another, and why it did so last.
    pub fn moves(&self) -> (u32, Option<&'static str>) {
        let known = self.known.lock();
        (known.moves, known.moved_because.map(Left::word))
    }

    /// What the control plane said when it turned this process away because another one with its id is alive.
    pub fn twin(&self) -> Option<String> {
        self.known.lock().twin.clone()
    }

    /// The worker stops: no new requests.
    pub(crate) fn stop(&self) {
        self.stopping.cancel();
    }

    /// True once the worker stops.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Waits until the worker stops.
    pub(super) async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// The control plane wants this worker to end.
    pub(super) fn ask_to_end(&self) {
        self.asked_to_end.cancel();
    }

    /// Waits until the control plane wants this worker to end.
    pub(crate) async fn asked_to_end(&self) {
        self.asked_to_end.cancelled().await;
    }

    /// Where the configuration in force comes from.
    pub fn source(&self) -> ConfigSource {
        self.known.lock().source
    }

    /// When it was put in force.
    pub fn applied_at(&self) -> Option<SystemTime> {
        self.known.lock().applied_at
    }

    /// How long there has been no word of the control plane; `None` while connected.
    pub fn stale_for(&self) -> Option<Duration> {
        let known = self.known.lock();
        (!known.connected).then(|| known.last_contact.unwrap_or(known.started).elapsed())
    }

    /// Time since the last word of the control plane, or since the start if there was none.
    pub fn age(&self) -> Duration {
        let known = self.known.lock();
        known.last_contact.unwrap_or(known.started).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_is_kept_while_it_is_heard_of_and_until_the_worker_stops() {
        let status = ConfigStatus::default();
        let control = Replica {
            url: "http://a:1".parse().unwrap(),
            at: None,
        };
        status.heard();
        status.arrived(&control, String::new());
        advance(PLACE_KEPT - Duration::from_secs(1)).await;
        assert_eq!(status.let_in_for(), PLACE_KEPT - Duration::from_secs(1));
        status.heard();
        advance(Duration::from_secs(2)).await;
        assert_eq!(status.let_in_for(), PLACE_KEPT + Duration::from_secs(1));
        // It is about to leave it, to whoever is there by then.
        status.stop();
        assert_eq!(status.let_in_for(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_lost_in_a_pause_in_which_another_process_could_take_it() {
        let status = ConfigStatus::default();
        let control = Replica {
            url: "http://a:1".parse().unwrap(),
            at: None,
        };
        status.heard();
        status.arrived(&control, String::new());
        advance(PLACE_KEPT).await;
        assert_eq!(status.let_in_for(), Duration::ZERO);
    }
}
