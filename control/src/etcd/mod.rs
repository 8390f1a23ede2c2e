//! etcd as this control plane speaks to it: where it is, how one gets in, calls with deadlines, watches.
//!
//! It knows nothing of registries: keys and values are bytes here. The store (`store/etcd/`) and the replicas
//! (`cluster/`) are built on it. The types of the API are generated from the part that is used (`control/etcd/rpc.proto`),
//! because the client crate that exists needs `protoc` to be built and hides which member a call goes to (docs/adr/0028).

mod access;
mod client;
mod ends;
mod entrance;
mod location;
pub(crate) mod ops;

pub use self::{
    access::{EtcdAccess, EtcdError},
    location::{BadEtcd, EtcdLocation},
};
pub(crate) use self::{
    client::{Budget, Etcd, Watching},
    ends::CallError,
};

/// Generated; nothing here is written by hand.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    dead_code,
    non_snake_case,
    reason = "generated from etcd's own names"
)]
pub(crate) mod api {
    tonic::include_proto!("etcdserverpb");
}
