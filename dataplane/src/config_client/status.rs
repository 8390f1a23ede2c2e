//! Where the configuration in force comes from and how old the last word of the control plane is:
//! for readiness, metrics and `/config`.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
        };
        Self {
            known: Mutex::new(known),
            asked_to_end: CancellationToken::new(),
            stopping: CancellationToken::new(),
        }
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
        self.known.lock().connected = false;
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
