//! What is asked about a response that an upstream keeps: it is passed to the endpoint that made it, and to no
//! other. Where that is not remembered the endpoints are asked, a bounded number of them, for nothing but
//! whether they have it.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use forebay_proto::EndpointId;
use http::{Method, Response, StatusCode, header, request::Parts, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::{
    alarm::{Alarm, Alarms},
    attempt::Outgoing,
    caller::Caller,
    error::GatewayError,
    headers,
    json_body::Found,
    paths::Kept,
    proxy::{Answer, Proxy},
    read,
    record::RequestRecord,
    responses::{Maker, id_of},
    turn,
};
use crate::{
    live::{Live, Route},
    pool::{CloseReason, Lease, RequestBody},
};

/// Most endpoints that are asked for a response.
const MOST_ASKED: usize = 16;
/// Longest time for one of them to answer, the wait for a connection included, and for all.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const SEARCH_WITHIN: Duration = Duration::from_secs(20);
/// How much of such an answer is read so that its connection can be used again.
const READ_ON: usize = 1 << 20;

impl Proxy {
    /// Serves one request about a response.
    pub(super) async fn serve_response(
        &self,
        kept: Kept,
        parts: &Parts,
        caller: &Caller,
        mut body: Incoming,
        alarms: &Alarms,
        record: &mut RequestRecord,
    ) -> Result<Answer, GatewayError> {
        record.is_of_kept();
        // What nobody can be served is not read first.
        if !self.live.is_configured() {
            return Err(GatewayError::NotConfigured);
        }
        // Nothing in it means anything.
        if !read::discard(parts, &mut body).await {
            let limit = read::DISCARDED_BYTES;
            return Err(GatewayError::BodyTooLarge { limit });
        }
        let live = self.live.load();
        let maker = match self.responses.maker(&kept.id) {
            Some(maker) => maker,
            None => {
                self.search(&live, (&kept, caller), parts, alarms, record)
                    .await?
            }
        };
        let gone = |why| GatewayError::UnknownResponse {
            id: kept.id.clone(),
            why,
        };
        let route = live.models.get(&maker.model);
        let route =
            route.ok_or_else(|| gone("the model that made it is not registered any more"))?;
        if !route.has(&maker.endpoint) {
            return Err(gone("the endpoint that made it is gone"));
        }
        caller.check(maker.model.as_str(), Some(&maker.model))?;
        record.route(route);
        tracing::Span::current().record("model", route.model.id.as_str());
        let alarm = alarms.set(record.began() + route.model.timeouts.total);
        let about = (parts, caller);
        let mut outgoing = self.asking(&kept, about, record, route, maker.endpoint, alarm);
        let (response, lease, limits, span) =
            self.send(&mut outgoing, &live, record.began()).await?;
        Ok(Answer {
            response,
            lease,
            limits,
            alarm: outgoing.alarm,
            tap: None,
            stands_in: None,
            span,
        })
    }

    /// Asks the endpoints for a response that is not remembered.
    async fn search(
        &self,
        live: &Live,
        (kept, caller): (&Kept, &Caller),
        parts: &Parts,
        alarms: &Alarms,
        record: &RequestRecord,
    ) -> Result<Maker, GatewayError> {
        let unknown = |why| {
            Err(GatewayError::UnknownResponse {
                id: kept.id.clone(),
                why,
            })
        };
        let places: Vec<(&Arc<Route>, EndpointId)> = live
            .models
            .values()
            .filter(|route| caller.may_use(route.model.id.as_str(), Some(&route.model.id)))
            .flat_map(|route| {
                let endpoints = route.endpoints().into_iter();
                endpoints.map(move |endpoint| (route, endpoint))
            })
            .collect();
        if places.len() > MOST_ASKED {
            return unknown(
                "this worker did not see it made, and there are too many endpoints to ask them all",
            );
        }
        let began = Instant::now();
        let permit = timeout(SEARCH_WITHIN, self.responses.searches.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return unknown("this worker did not see it made, and is busy with other searches");
        };
        let mut failed = None;
        for (route, endpoint) in places {
            let left = SEARCH_WITHIN
                .saturating_sub(began.elapsed())
                .min(ANSWER_WITHIN);
            let alarm = alarms.set(Instant::now() + left);
            let about = (parts, caller);
            let mut asked = self.asking(kept, about, record, route, endpoint.clone(), alarm);
            asked.deadline = Instant::now() + left;
            asked.method = Method::GET;
            asked.path = only_path(kept);
            // The client's own key is for whoever made it, and not for all.
            headers::put_credential(&mut asked.headers, None);
            match self.send(&mut asked, live, Instant::now()).await {
                Ok((response, lease, ..)) => {
                    if has(response, lease, &kept.id, left).await {
                        let maker = Maker {
                            model: route.model.id.clone(),
                            endpoint: endpoint.clone(),
                        };
                        self.responses.note(&kept.id, maker.clone());
                        return Ok(maker);
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            // It may be where nobody answered.
            Some(error) => Err(error),
            None => unknown("no endpoint has it"),
        }
    }

    /// What is asked of one endpoint.
    fn asking<'a>(
        &self,
        kept: &Kept,
        (parts, caller): (&Parts, &Caller),
        record: &RequestRecord,
        route: &'a Arc<Route>,
        endpoint: EndpointId,
        alarm: Alarm,
    ) -> Outgoing<'a> {
        let mut headers = headers::for_upstream(&parts.headers, record.request_id_header(), caller);
        headers.remove(header::CONTENT_TYPE);
        Outgoing {
            operation: kept.operation,
            method: kept.method.clone(),
            path: kept.path.clone(),
            headers,
            body: RequestBody::default(),
            endpoint: Some(endpoint),
            route,
            deadline: record.began() + route.model.timeouts.total,
            ask: self
                .flows
                .ask(&route.model.pool.turns, &parts.headers, caller, 0),
            patience: turn::patience(&parts.headers, record.began()),
            explain: headers::explains(&parts.headers),
            strip: false,
            sent: 0,
            stands_in: false,
            waited: record.began().elapsed(),
            queued: Duration::ZERO,
            first_byte: Duration::ZERO,
            note: None,
            alarm,
        }
    }
}

fn only_path(kept: &Kept) -> PathAndQuery {
    // The id is letters, digits, `_` and `-`.
    let path = PathAndQuery::try_from(format!("/v1/responses/{}", kept.id));
    path.unwrap_or_else(|_| kept.path.clone())
}

/// Whether this answer is the response. Its connection is used again if the rest is short.
async fn has(response: Response<Incoming>, lease: Lease, id: &str, within: Duration) -> bool {
    let good = response.status() == StatusCode::OK;
    let body = pin!(Limited::new(response.into_body(), READ_ON).collect());
    match timeout(within, body).await {
        Ok(Ok(body)) => {
            lease.finish();
            let body: Bytes = body.to_bytes();
            good && matches!(id_of(&body), Found::Text(found) if found == id)
        }
        Ok(Err(_)) | Err(_) => {
            lease.discard(CloseReason::Error);
            false
        }
    }
}
