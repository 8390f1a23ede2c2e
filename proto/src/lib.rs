//! Forebay's contract: the generated wire types and the validated domain types.
//!
//! Wire types ([`wire`]) stop at the edge of each plane. Inside there are domain types that cannot
//! be invalid: private fields, fallible constructors, one conversion each way ([`convert`]).
//!
//! This crate does no IO, knows no runtime, no clock and no logging. Both planes validate with it,
//! so that what the control plane accepts a worker can apply.

pub mod codec;
pub mod config;
pub mod convert;
pub mod endpoint;
pub mod failure;
pub mod health;
pub mod ids;
pub mod key;
pub mod limits;
pub mod model;
pub mod parts;
pub mod pool;
pub mod probe;
pub mod revision;
pub mod secret;
pub mod violation;
pub mod wire;

pub use config::Config;
pub use endpoint::{Endpoint, EndpointUrl, Protocol, Weight};
pub use failure::{FailureSpec, RetryOn};
pub use health::Health;
pub use ids::{EndpointId, InstanceId, ModelId, WorkerId};
pub use key::{KeyId, KeySpec, KeysPosition, Priority};
pub use model::{ModelSpec, ResolvedModel, StreamUsage, Streaming};
pub use parts::Parts;
pub use pool::{
    AdaptiveParams, Budget, PoolOverrides, PoolParams, PoolScope, PoolSettings, PoolSize,
    QueueCost, RequestHeader, Timeouts, TurnParams,
};
pub use probe::{ProbeMode, ProbeSpec};
pub use revision::{Digest, Epoch, Position, Revision};
pub use violation::{Violation, Violations};
