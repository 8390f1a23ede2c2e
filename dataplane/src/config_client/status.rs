//! Where the configuration in force comes from and how old the last word of the control plane is:
//! for readiness, metrics and `/config`.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

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
pub struct ConfigStatus(Mutex<Known>);

#[derive(Debug)]
struct Known {
    source: ConfigSource,
    applied_at: Option<SystemTime>,
    connected: bool,
    stopping: bool,
    quarantined: usize,
    last_contact: Option<Instant>,
    started: Instant,
}

impl Default for ConfigStatus {
    fn default() -> Self {
        Self(Mutex::new(Known {
            source: ConfigSource::None,
            applied_at: None,
            connected: false,
            stopping: false,
            quarantined: 0,
            last_contact: None,
            started: Instant::now(),
        }))
    }
}

impl ConfigStatus {
    pub(super) fn applied(&self, source: ConfigSource) {
        let mut known = self.0.lock();
        known.source = source;
        known.applied_at = Some(SystemTime::now());
    }

    /// So many configurations are not tried any more.
    pub(super) fn quarantined(&self, count: usize) {
        self.0.lock().quarantined = count;
    }

    /// How many configurations are not tried any more.
    pub fn in_quarantine(&self) -> usize {
        self.0.lock().quarantined
    }

    pub(super) fn heard(&self) {
        let mut known = self.0.lock();
        known.connected = true;
        known.last_contact = Some(Instant::now());
    }

    /// The control plane confirmed that what is in force is the newest.
    pub(super) fn confirmed(&self) {
        let mut known = self.0.lock();
        if known.source == ConfigSource::LastKnownGood {
            known.source = ConfigSource::ControlPlane;
        }
    }

    pub(super) fn disconnected(&self) {
        self.0.lock().connected = false;
    }

    /// The worker stops: no new requests.
    pub(crate) fn stop(&self) {
        self.0.lock().stopping = true;
    }

    /// True once the worker stops.
    pub fn is_stopping(&self) -> bool {
        self.0.lock().stopping
    }

    /// Where the configuration in force comes from.
    pub fn source(&self) -> ConfigSource {
        self.0.lock().source
    }

    /// When it was put in force.
    pub fn applied_at(&self) -> Option<SystemTime> {
        self.0.lock().applied_at
    }

    /// How long there has been no word of the control plane; `None` while connected.
    pub fn stale_for(&self) -> Option<Duration> {
        let known = self.0.lock();
        (!known.connected).then(|| known.last_contact.unwrap_or(known.started).elapsed())
    }

    /// Time since the last word of the control plane, or since the start if there was none.
    pub fn age(&self) -> Duration {
        let known = self.0.lock();
        known.last_contact.unwrap_or(known.started).elapsed()
    }
}
