//! `Revisions`.

use forebay_proto::{
    Revision,
    convert::timestamp_to_wire,
    wire::{self, revisions_server::Revisions},
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    Context, mismatched,
    page::{self, Page},
    status,
};
use crate::{
    registry::{Answer, Command, difference},
    store::history::{Edit, LogRecord},
};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct RevisionsService(pub(crate) Context);

#[tonic::async_trait]
impl Revisions for RevisionsService {
    async fn list_revisions(
        &self,
        request: Request<wire::ListRevisionsRequest>,
    ) -> Result<Response<wire::ListRevisionsResponse>, Status> {
        let serve = async |request: wire::ListRevisionsRequest| {
            let page = Page::read(request.page_size, &request.page_token);
            let page = page.map_err(|violations| status::violated(&violations))?;
            let after = page.after.map(|token| token.parse().map(Revision::new));
            let after = after.transpose().map_err(|_| page::bad_token())?;
            let from = after.map(|after| Revision::new(after.get().saturating_sub(1)));
            let entries = self.0.registry.entries(from, page.size).await;
            let found = entries.map_err(status::of_past)?;
            let last = found.entries.last().filter(|_| found.more);
            Ok(wire::ListRevisionsResponse {
                next_page_token: last
                    .map(|entry| page::token(&entry.revision.to_string()))
                    .unwrap_or_default(),
                revisions: found
                    .entries
                    .into_iter()
                    .map(|entry| shown(entry, found.earliest))
                    .collect(),
                earliest_revision: found.earliest.get(),
            })
        };
        self.0.call("ListRevisions", request, serve).await
    }

    async fn get_revision(
        &self,
        request: Request<wire::GetRevisionRequest>,
    ) -> Result<Response<wire::Revision>, Status> {
        let serve = async |request: wire::GetRevisionRequest| {
            let entry = self.0.registry.entry(Revision::new(request.revision)).await;
            let (entry, earliest) = entry.map_err(status::of_past)?;
            Ok(shown(entry, earliest))
        };
        self.0.call("GetRevision", request, serve).await
    }

    async fn diff_revisions(
        &self,
        request: Request<wire::DiffRevisionsRequest>,
    ) -> Result<Response<wire::DiffRevisionsResponse>, Status> {
        let serve = async |request: wire::DiffRevisionsRequest| {
            let page = Page::read(request.page_size, &request.page_token);
            let page = page.map_err(|violations| status::violated(&violations))?;
            let (from, to) = (
                request.from.map(Revision::new),
                request.to.map(Revision::new),
            );
            let difference = self.0.registry.difference(from, to).await;
            let (from, to, edits) = difference.map_err(status::of_past)?;
            let (changes, next_page_token) = page_of(&edits, &page);
            Ok(wire::DiffRevisionsResponse {
                from: from.get(),
                to: to.get(),
                changes,
                next_page_token,
            })
        };
        self.0.call("DiffRevisions", request, serve).await
    }

    async fn rollback_revision(
        &self,
        request: Request<wire::RollbackRevisionRequest>,
    ) -> Result<Response<wire::RollbackRevisionResponse>, Status> {
        let serve = async |request: wire::RollbackRevisionRequest, origin| {
            let command = Command::Rollback {
                to: Revision::new(request.revision),
                expected: request.expected_revision.map(Revision::new),
                content: None,
            };
            let (request_id, trial) = (request.request_id.clone(), request.validate_only);
            let unnamed = wire::RollbackRevisionRequest {
                request_id: String::new(),
                ..request
            };
            let answer = self
                .0
                .write(command, origin, &request_id, &unnamed, trial)
                .await?;
            match answer {
                Answer::RolledBack(answer, edits) => Ok(wire::RollbackRevisionResponse {
                    changes: difference::told(&edits),
                    ..*answer
                }),
                _ => Err(mismatched()),
            }
        };
        self.0.call_write("RollbackRevision", request, serve).await
    }
}

fn shown(entry: LogRecord, earliest: Revision) -> wire::Revision {
    wire::Revision {
        revision: entry.revision.get(),
        create_time: Some(timestamp_to_wire(entry.time)),
        author: entry.origin.author,
        reason: entry.origin.reason,
        method: entry.method,
        targets: entry.targets,
        changes: entry.edits,
        digest: entry
            .digest
            .map(|digest| digest.to_string())
            .unwrap_or_default(),
        request_id: entry.request_id,
        rolled_back_to: entry.rolled_back_to.map_or(0, Revision::get),
        reachable: entry.revision >= earliest,
    }
}

/// The page that is asked for, and the token of the next one. It has one change at least, however large.
fn page_of(edits: &[Edit], page: &Page) -> (Vec<wire::ResourceChange>, String) {
    let place = |edit: &Edit| edit.target().to_string();
    let seen = page.after.as_ref().map_or(0, |after| {
        let at = edits.iter().position(|edit| place(edit) == *after);
        at.map_or(edits.len(), |at| at + 1)
    });
    let rest = edits.get(seen..).unwrap_or_default();
    let (mut changes, mut bytes) = (Vec::new(), 0);
    for edit in rest.iter().take(page.size) {
        let change = difference::of(edit);
        bytes += change.encoded_len();
        if bytes > difference::TOLD_BYTES && !changes.is_empty() {
            break;
        }
        changes.push(change);
    }
    let last = changes.len().checked_sub(1).and_then(|last| rest.get(last));
    let last = last.filter(|_| changes.len() < rest.len());
    let token = last.map(|edit| page::token(&place(edit)));
    (changes, token.unwrap_or_default())
}
