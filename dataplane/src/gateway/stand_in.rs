//! Models that stand in for one whose endpoints cannot serve (`fallbacks`): in order, before anything reached the
//! client. Those of a model that stands in are not looked at, so that there is no circle and no chain.

use std::sync::Arc;

use forebay_proto::ModelId;
use http::Response;
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::Span;

use super::{
    attempt::Outgoing, body::StreamLimits, caller::Caller, error::GatewayError, proxy::Proxy,
};
use crate::{
    live::{Live, Route},
    pool::{AcquireError, Ask, Lease, RequestBody},
};

impl Proxy {
    /// Sends it, to the models that stand in if its own cannot serve and its caller may use them. `for_model` gives its
    /// body for another model, and its place among the others there.
    pub(super) async fn send_or_stand_in<'a>(
        &self,
        outgoing: &mut Outgoing<'a>,
        live: &'a Live,
        (began, caller): (Instant, &Caller),
        for_model: impl Fn(&ModelId) -> (RequestBody, Ask),
    ) -> Result<(Response<Incoming>, Lease, StreamLimits, Span), GatewayError> {
        let own = outgoing.route;
        let fallbacks = match outgoing.endpoint {
            None => own.model.failure.fallbacks.as_slice(),
            // What only one endpoint has is nowhere else.
            Some(_) => &[],
        };
        // Without any, nothing is looked at.
        let refused = match !fallbacks.is_empty() && own.pool.is_down() {
            true => None,
            false => match self.send(outgoing, live, began).await {
                Err(error) if !fallbacks.is_empty() && cannot_serve(&error) => Some(error),
                ended => return ended,
            },
        };
        for stand_in in stand_ins(live, fallbacks) {
            let id = &stand_in.model.id;
            if stand_in.pool.is_down() || !caller.may_use(id.as_str(), Some(id)) {
                continue;
            }
            tracing::debug!(model = %own.model.id, stand_in = %stand_in.model.id, "another model stands in");
            self.metrics.failures.fallback(&own.model.id);
            outgoing.route = stand_in;
            outgoing.stands_in = true;
            (outgoing.body, outgoing.ask) = for_model(&stand_in.model.id);
            outgoing.queued = std::time::Duration::ZERO;
            match self.send(outgoing, live, began).await {
                Err(error) if cannot_serve(&error) => {}
                ended => return ended,
            }
        }
        // What is wrong with its own model is what the client is told.
        outgoing.route = own;
        outgoing.stands_in = false;
        (outgoing.body, outgoing.ask) = for_model(&own.model.id);
        match refused {
            Some(error) => Err(error),
            None => self.send(outgoing, live, began).await,
        }
    }
}

/// Those that are registered: what was deleted is passed over.
fn stand_ins<'a>(live: &'a Live, names: &'a [ModelId]) -> impl Iterator<Item = &'a Arc<Route>> {
    names.iter().filter_map(|name| live.models.get(name))
}

/// Nothing was sent, and nothing will be able to serve it for a while.
fn cannot_serve(error: &GatewayError) -> bool {
    matches!(
        error,
        GatewayError::Acquire(
            AcquireError::Connect { .. }
                | AcquireError::NoEndpoint { .. }
                | AcquireError::WrongModel { .. }
        )
    )
}
