//! What a rollout needs of the registry's past: the configuration of an earlier revision, and a way back to it.

use std::sync::Arc;

use forebay_proto::{Revision, limits};

use crate::{
    registry::{Answer, Command, Published, RegistryHandle, Write},
    store::history::Origin,
};

/// Who takes revisions back, in the history.
const AUTHOR: &str = "forebay";

/// The past of the registry.
pub(crate) trait Past: Send + Sync + 'static {
    /// The configuration of this revision as it was published.
    fn at(&self, revision: Revision)
    -> impl Future<Output = Result<Arc<Published>, String>> + Send;

    /// Writes the content of a revision anew, and says why, if who is in charge in this term still is. Gives the
    /// revision that has it.
    fn return_to(
        &self,
        stable: &Published,
        reason: &str,
        term: u64,
    ) -> impl Future<Output = Result<Revision, String>> + Send;
}

/// The registry itself.
#[derive(Debug, Clone)]
pub(crate) struct RegistryPast(pub(crate) RegistryHandle);

impl Past for RegistryPast {
    async fn at(&self, revision: Revision) -> Result<Arc<Published>, String> {
        let published = self.0.published_at(revision).await?;
        let needed = published.state.seal_keys();
        for lost in self.0.vault().lost_seal_keys(&needed) {
            tracing::error!(
                %revision, secret = format!("{lost:08x}"),
                "credentials of a revision that workers still hold were made with a seal key that is not in the file: \
                 their requests go without; put its line back until the rollout is over"
            );
        }
        Ok(published)
    }

    /// Whatever is the newest by now: what was written meanwhile was built on what is taken back.
    /// The history need not reach so far.
    async fn return_to(
        &self,
        stable: &Published,
        reason: &str,
        term: u64,
    ) -> Result<Revision, String> {
        let write = Write {
            command: Command::Rollback {
                to: stable.position.revision,
                expected: None,
                content: Some(stable.state.clone()),
            },
            request_id: None,
            validate_only: false,
            term: Some(term),
            origin: Origin {
                author: AUTHOR.to_owned(),
                reason: reason.chars().take(limits::REASON_CHARS).collect(),
            },
        };
        match self.0.write(write).await {
            Ok(Answer::RolledBack(answer, _)) => Ok(Revision::new(answer.revision)),
            Ok(_) => Err("the registry answered with another kind of resource".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
