//! On whose behalf a request is made: what auth found out, for those who decide by it later. It decides nothing but what
//! the key itself says.

use std::sync::Arc;

use forebay_proto::ModelId;
use tokio::time::Instant;

use super::error::GatewayError;
use crate::keys::{Hold, LiveKey};

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    key: Option<Arc<LiveKey>>,
}

impl Caller {
    /// Anybody: keys are not in use.
    pub(super) fn anybody() -> Self {
        Self { key: None }
    }

    /// One with this key.
    pub(super) fn with(key: Arc<LiveKey>) -> Self {
        Self { key: Some(key) }
    }

    /// Its key, with name, priority and weight; nothing where keys are not in use.
    pub(super) fn key(&self) -> Option<&Arc<LiveKey>> {
        self.key.as_ref()
    }

    /// Counts a request that begins against its limits.
    pub(super) fn enter(&self, now: Instant) -> Result<Option<Hold>, GatewayError> {
        let hold = self.key.as_ref().map(|key| Hold::new(key, now));
        hold.transpose()
            .map_err(|refused| GatewayError::limited(refused, self.key(), now))
    }

    /// Whether it may use a model under this name; `id` is that of the model which has it, if one does.
    pub(super) fn may_use(&self, name: &str, id: Option<&ModelId>) -> bool {
        let key = self.key.as_ref();
        key.is_none_or(|key| key.spec.allows(name, id))
    }

    /// The same as an error. It does not say whether there is such a model.
    pub(super) fn check(&self, name: &str, id: Option<&ModelId>) -> Result<(), GatewayError> {
        match self.may_use(name, id) {
            true => Ok(()),
            false => Err(GatewayError::model_not_allowed(name)),
        }
    }
}
