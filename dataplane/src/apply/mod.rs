//! Puts a pushed configuration in force, but for models that cannot be taken; or refuses it with reasons and changes
//! nothing.
//!
//! Order: check position and digest, read and validate each model on its own, check what only this process knows,
//! build what is new off to the side, swap routes and pools at once, then resize and retire. A model that cannot be
//! read or built costs itself alone ([`sift`]); what is wrong with the whole is refused as a whole. Connections that
//! still fit stay open and requests in flight finish on what they began with. It must not do IO.

mod build;
mod guard;
mod open_files;
mod plan;
mod sift;

use std::sync::Arc;

use bytes::Bytes;
use forebay_proto::{Digest, ModelId, Position, ResolvedModel, Violations, limits};

use self::{guard::guarded, sift::Sifted};
pub use self::{
    open_files::{client_connections, open_file_limit},
    plan::{Action, Step, plan},
};
use crate::{
    leases::Leases,
    live::{Live, LiveCell},
    pool::Common,
};

/// Why a configuration, or a model of it, was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The model; empty when it is the configuration as a whole, or has no readable id.
    pub model: String,
    /// Path of the field; empty when it is the configuration as a whole.
    pub field: String,
    /// What kind of refusal it is.
    pub reason: RefusalReason,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// Of the configuration as a whole.
    pub(crate) fn of_whole(field: String, reason: RefusalReason, message: String) -> Self {
        Self {
            model: String::new(),
            field,
            reason,
            message,
        }
    }
}

/// What came of a configuration that was put in force.
#[derive(Debug, Default)]
pub struct Applied {
    /// The models whose pools were made or changed.
    pub changed: Vec<ModelId>,
    /// Why models were not taken. Empty: all were.
    pub refusals: Vec<Refusal>,
    /// Models that are in force as they were before, because what was pushed of them was not taken.
    pub retained: Vec<ResolvedModel>,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// A field is not valid.
    InvalidField,
    /// The bytes are not what the digest says.
    DigestMismatch,
    /// It is older than what is in force.
    OlderRevision,
    /// It has the number of what is in force but other content.
    SameRevisionOtherDigest,
    /// The process may not open that many files.
    OpenFiles,
    /// It would remove every model, and comes from another store than what is in force.
    EmptyStore,
    /// What is to be done for it panicked.
    BuildFailed,
    /// It ended the process twice.
    Quarantined,
}

impl RefusalReason {
    /// The stable word, also the metric's label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::InvalidField => "INVALID_FIELD",
            Self::DigestMismatch => "DIGEST_MISMATCH",
            Self::OlderRevision => "OLDER_REVISION",
            Self::SameRevisionOtherDigest => "SAME_REVISION_OTHER_DIGEST",
            Self::OpenFiles => "OPEN_FILES",
            Self::EmptyStore => "EMPTY_STORE",
            Self::BuildFailed => "BUILD_FAILED",
            Self::Quarantined => "QUARANTINED",
        }
    }
}

/// The one who changes what is in force. There is exactly one per worker.
#[derive(Debug)]
pub struct Applier {
    live: Arc<LiveCell>,
    common: Common,
    open_files: u64,
    #[cfg(test)]
    faults: build::Faults,
}

impl Applier {
    /// Changes `live`; pools are made with what is `common` to them; `open_files` is what the process may
    /// open.
    #[must_use]
    pub(crate) fn new(live: Arc<LiveCell>, common: Common, open_files: u64) -> Self {
        Self {
            live,
            common,
            open_files,
            #[cfg(test)]
            faults: build::Faults::default(),
        }
    }

    /// What is lent of fleet-wide limits.
    pub(crate) fn leases(&self) -> &Arc<Leases> {
        &self.common.leases
    }

    /// Puts a configuration in force. A model that cannot be taken stays as it is, else as it was `kept`; or there is no
    /// such model.
    pub fn apply(
        &self,
        position: &Position,
        config: &Bytes,
        kept: &[ResolvedModel],
    ) -> Result<Applied, Vec<Refusal>> {
        let applied = guarded(|| self.apply_whole(position, config, kept));
        // What is done for one model is guarded more closely: this is what nobody thought of.
        applied.unwrap_or_else(|panic| {
            let (field, reason) = ("config".to_owned(), RefusalReason::BuildFailed);
            Err(vec![Refusal::of_whole(field, reason, panic)])
        })
    }

    fn apply_whole(
        &self,
        position: &Position,
        config: &Bytes,
        kept: &[ResolvedModel],
    ) -> Result<Applied, Vec<Refusal>> {
        let old = self.live.load();
        check_position(old.position.as_ref(), position).map_err(|refusal| vec![refusal])?;
        check_digest(position, config).map_err(|refusal| vec![refusal])?;
        let serving = old.models.values().map(|route| &route.model);
        let before = kept.iter().chain(serving);
        let sifted = Sifted::read(config, before).map_err(|violations| refusals(&violations))?;
        let merged = sifted.merge();
        check_not_emptied(&old, position, &merged.models).map_err(|refusal| vec![refusal])?;
        open_files::check(&merged.models, sifted.budget, self.open_files).map_err(|message| {
            let (field, reason) = (String::new(), RefusalReason::OpenFiles);
            vec![Refusal::of_whole(field, reason, message)]
        })?;
        Ok(self.put_in_force(&old, position, sifted, merged))
    }
}

/// Within an epoch the revision never goes down, and a number stands for one content.
fn check_position(held: Option<&Position>, pushed: &Position) -> Result<(), Refusal> {
    let Some(held) = held.filter(|held| held.epoch == pushed.epoch) else {
        return Ok(());
    };
    let refuse =
        |reason, message| Err(Refusal::of_whole("to.revision".to_owned(), reason, message));
    if pushed.revision < held.revision {
        let message = format!("{pushed} is older than {held}, which is in force");
        return refuse(RefusalReason::OlderRevision, message);
    }
    if pushed.revision == held.revision && pushed.digest != held.digest {
        let message =
            format!("{pushed} has the number of {held}, which is in force, but other content");
        return refuse(RefusalReason::SameRevisionOtherDigest, message);
    }
    Ok(())
}

/// A control plane that lost its store must not take the fleet with it. Within one store, somebody
/// removed the last model on purpose.
fn check_not_emptied(
    old: &Live,
    pushed: &Position,
    models: &[ResolvedModel],
) -> Result<(), Refusal> {
    let held = old.position.as_ref().filter(|_| !old.models.is_empty());
    match held {
        Some(held) if models.is_empty() && held.epoch != pushed.epoch => Err(Refusal::of_whole(
            "models".to_owned(),
            RefusalReason::EmptyStore,
            format!(
                "{pushed} has no models that can be used and comes from another store than {held}, which is in \
                 force with {}; bring the old store back, or register the models anew",
                old.models.len()
            ),
        )),
        _ => Ok(()),
    }
}

fn check_digest(position: &Position, config: &[u8]) -> Result<(), Refusal> {
    let (digest, announced) = (Digest::of(config), position.digest);
    if digest == announced {
        return Ok(());
    }
    Err(Refusal::of_whole(
        "to.digest".to_owned(),
        RefusalReason::DigestMismatch,
        format!("the content has digest {digest}, announced was {announced}"),
    ))
}

fn refusals(violations: &Violations) -> Vec<Refusal> {
    let bounded = violations.as_slice().iter().take(limits::REFUSALS);
    bounded
        .map(|violation| Refusal {
            model: String::new(),
            field: violation.field.clone(),
            reason: RefusalReason::InvalidField,
            message: violation
                .message
                .chars()
                .take(limits::REFUSAL_CHARS)
                .collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
