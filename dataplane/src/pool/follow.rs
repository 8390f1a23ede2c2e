//! Follows the names of a pool's endpoints: asks for their addresses when they are configured, and again
//! whenever the answer is no longer good.

use std::{
    future::pending,
    net::IpAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use forebay_proto::{EndpointId, endpoint::Address};
use futures_util::future::join_all;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Pool, Why};
use crate::resolve::Resolver;

/// After a failure it is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// A name of an endpoint.
#[derive(Debug)]
pub(super) struct Followed {
    endpoint: EndpointId,
    name: String,
    /// No search domain is tried for it.
    whole: bool,
}

/// Runs until the pool is gone or stops.
pub(super) async fn follow(
    pool: Weak<Pool>,
    resolver: Arc<Resolver>,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        let Some(names) = pool.upgrade().map(|pool| pool.names()) else {
            return;
        };
        let each = names.iter().map(|name| follow_one(&pool, &resolver, name));
        let all = async {
            match names.is_empty() {
                true => pending().await,
                false => drop(join_all(each).await),
            }
        };
        tokio::select! {
            () = all => return,
            // A new name does not wait for the answer to an old one.
            () = changed.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Runs until the pool is gone. Each name has its own time: one without an answer holds up no other.
async fn follow_one(pool: &Weak<Pool>, resolver: &Resolver, followed: &Followed) {
    let (endpoint, name) = (&followed.endpoint, &followed.name);
    let asked = match followed.whole {
        true => format!("{name}."),
        false => name.clone(),
    };
    loop {
        let asked_at = Instant::now();
        let found = resolver.lookup(&asked).await;
        let Some(pool) = pool.upgrade() else { return };
        let hold = match found {
            Ok(found) => {
                pool.resolved(endpoint, name, found.some());
                found.hold
            }
            Err(error) => {
                pool.unresolved(endpoint, &error.to_string());
                RETRY
            }
        };
        drop(pool);
        sleep_until(asked_at + hold).await;
    }
}

impl Pool {
    /// The endpoints whose urls have a name, and the names.
    pub(super) fn names(&self) -> Vec<Followed> {
        self.desk.with(|inner, _| {
            let endpoints = inner.endpoints.iter();
            let named = endpoints.filter_map(|e| match e.url.address() {
                Address::Host(host, _) if host.parse::<IpAddr>().is_err() => Some(Followed {
                    endpoint: e.id.clone(),
                    name: host.to_owned(),
                    whole: inner.sources.names_whole(&e.id),
                }),
                Address::Host(..) | Address::Unix(_) | Address::Listed(_) => None,
            });
            named.collect()
        })
    }

    fn resolved(&self, endpoint: &EndpointId, name: &str, addresses: &[IpAddr]) {
        let (mut changed, mut refused) = (false, None);
        self.desk.change(|inner, now| {
            // The configuration may have changed while it was asked.
            let mut configured = inner.endpoints.iter().filter(|e| e.id == *endpoint);
            let asked = |address| matches!(address, Address::Host(host, _) if host == name);
            if !configured.any(|endpoint| asked(endpoint.url.address())) {
                return Vec::new();
            }
            let before = inner.addresses_of(endpoint);
            let mut effects = inner.resolved(now, endpoint, addresses);
            changed = inner.addresses_of(endpoint) != before;
            refused = inner.out_of_bounds(endpoint);
            if let Some(why) = &refused {
                let text = format!("endpoint `{endpoint}`: {why}");
                effects.extend(inner.unresolved(now, endpoint, &text));
            }
            effects
        });
        if let Some(why) = refused {
            self.common
                .metrics
                .discovery
                .failed(&self.model, Why::Refused);
            if changed {
                tracing::warn!(model = %self.model, %endpoint, name, why, "a server may not be dialled");
            }
        } else if changed {
            tracing::info!(model = %self.model, %endpoint, name, "the addresses of an endpoint changed");
        }
    }

    fn unresolved(&self, endpoint: &EndpointId, error: &str) {
        tracing::warn!(model = %self.model, %endpoint, error, "the name of an endpoint");
        let text = format!("endpoint `{endpoint}`: {error}");
        self.desk
            .change(|inner, now| inner.unresolved(now, endpoint, &text));
    }
}
