//! What a rollout needs of the registry's past: the configuration of an earlier revision, and a way back to it.

use std::{collections::BTreeMap, sync::Arc};

use forebay_proto::{Revision, wire};

use crate::registry::{Command, Published, RegistryHandle, State, Write};

/// Most models looked at in one go.
const PAGE: usize = 1_000;

/// The past of the registry.
pub(crate) trait Past: Send + Sync + 'static {
    /// The configuration of this revision as it was published.
    fn at(&self, revision: Revision)
    -> impl Future<Output = Result<Arc<Published>, String>> + Send;

    /// Writes the content of a revision anew, and says why. Gives the revision that has it.
    fn return_to(
        &self,
        stable: &Published,
        reason: &str,
    ) -> impl Future<Output = Result<Revision, String>> + Send;
}

/// The registry itself.
#[derive(Debug, Clone)]
pub(crate) struct RegistryPast(pub(crate) RegistryHandle);

impl Past for RegistryPast {
    async fn at(&self, revision: Revision) -> Result<Arc<Published>, String> {
        let published = self.0.published();
        match published.position.revision == revision {
            true => Ok(published),
            false => Err(format!("revision {revision} is not the newest")),
        }
    }

    async fn return_to(&self, stable: &Published, reason: &str) -> Result<Revision, String> {
        tracing::warn!(reason, "going back");
        let newest = self.0.published();
        for command in way_back(&newest.state, &stable.state) {
            let write = Write {
                command,
                request_id: None,
                validate_only: false,
            };
            let written = self.0.write(write).await;
            written.map_err(|error| error.to_string())?;
        }
        Ok(self.0.published().position.revision)
    }
}

/// Makes of one state the other: removals first, so that names are free.
fn way_back(from: &State, to: &State) -> Vec<Command> {
    let (from_models, to_models) = (models(from), models(to));
    let mut commands = Vec::new();
    for id in from_models.keys().filter(|id| !to_models.contains_key(*id)) {
        commands.push(Command::Delete {
            id: id.clone(),
            etag: String::new(),
            allow_missing: true,
        });
    }
    let settings = |state: &State| wire::PoolDefaults {
        etag: String::new(),
        revision: 0,
        update_time: None,
        ..state.settings()
    };
    if settings(from) != settings(to) {
        commands.push(Command::UpdateSettings {
            settings: settings(to),
            mask: Some(vec!["*".to_owned()]),
        });
    }
    for (id, model) in to_models {
        match from_models.get(&id) {
            Some(known) if *known == model => {}
            Some(_) => commands.push(Command::Update {
                model,
                mask: Some(vec!["*".to_owned()]),
                allow_missing: true,
            }),
            None => commands.push(Command::Create(model)),
        }
    }
    commands
}

/// The models as they were registered.
fn models(state: &State) -> BTreeMap<String, wire::Model> {
    let mut models = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let (page, more) = state.page(after.as_deref(), PAGE);
        after = page.last().map(|model| model.id.clone());
        models.extend(
            page.into_iter()
                .map(|model| (model.id.clone(), plain(model))),
        );
        if !more {
            return models;
        }
    }
}

/// Without what the registry says.
fn plain(mut model: wire::Model) -> wire::Model {
    if let Some(pool) = &mut model.pool {
        (pool.keepalive, pool.coverage) = (None, None);
    }
    wire::Model {
        etag: String::new(),
        revision: 0,
        create_time: None,
        update_time: None,
        resolved_pool: None,
        resolved_timeouts: None,
        ..model
    }
}
