//! What is refused, and that a refusal changes nothing.

use forebay_proto::{
    Budget, Endpoint, EndpointId, EndpointUrl, Epoch, ModelSpec, PoolSettings, Revision,
};
use prometheus::Registry;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{metrics::Metrics, resolve::Resolver};

const FILES: u64 = 10_000;

fn config(ids: &[&str]) -> Config {
    let model = |id: &&str| {
        let url = EndpointUrl::parse("http://10.0.0.1:8000").unwrap();
        let endpoint = Endpoint::new(EndpointId::new("a").unwrap(), url);
        let spec = ModelSpec::new(ModelId::new(*id).unwrap(), vec![], vec![endpoint]).unwrap();
        spec.resolve(&PoolSettings::default(), Revision::new(1))
            .unwrap()
    };
    Config::new(Budget::new(150).unwrap(), ids.iter().map(model).collect()).unwrap()
}

fn at(epoch: &str, revision: u64, bytes: &[u8]) -> Position {
    Position {
        epoch: Epoch::new(epoch).unwrap(),
        revision: Revision::new(revision),
        digest: Digest::of(bytes),
    }
}

struct Bench {
    live: Arc<LiveCell>,
    applier: Applier,
}

impl Bench {
    /// With one model in force at revision 5.
    fn new(open_files: u64) -> Self {
        let live = Arc::new(LiveCell::default());
        let common = Common {
            tasks: TaskTracker::new(),
            metrics: Arc::new(Metrics::new(&Registry::new()).unwrap()),
            budget: Arc::default(),
            resolver: Arc::new(Resolver::new(&[])),
            probing: Arc::default(),
        };
        let applier = Applier::new(live.clone(), common, open_files);
        let bench = Self { live, applier };
        bench.push("e", 5, &config(&["first"])).unwrap();
        bench
    }

    fn push(
        &self,
        epoch: &str,
        revision: u64,
        config: &Config,
    ) -> Result<Vec<ModelId>, Vec<Refusal>> {
        let (bytes, _) = config.encode();
        self.applier.apply(&at(epoch, revision, &bytes), &bytes)
    }

    fn in_force(&self) -> (u64, Vec<String>) {
        let live = self.live.load();
        let ids = live.models.keys().map(ToString::to_string).collect();
        (live.position.as_ref().unwrap().revision.get(), ids)
    }

    /// Asserts that this was refused for one reason and changed nothing.
    fn refused(&self, result: Result<Vec<ModelId>, Vec<Refusal>>) -> Refusal {
        let mut refusals = result.unwrap_err();
        assert_eq!(self.in_force(), (5, vec!["first".to_owned()]));
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        refusals.remove(0)
    }
}

#[tokio::test]
async fn a_newer_revision_keeps_the_pools_of_models_that_stay() {
    let bench = Bench::new(FILES);
    let before = bench.live.load().models["first"].pool.clone();
    bench.push("e", 6, &config(&["first", "second"])).unwrap();
    assert_eq!(
        bench.in_force(),
        (6, vec!["first".to_owned(), "second".to_owned()])
    );
    assert!(Arc::ptr_eq(
        &before,
        &bench.live.load().models["first"].pool
    ));
    bench.push("e", 7, &config(&["second"])).unwrap();
    assert_eq!(bench.in_force(), (7, vec!["second".to_owned()]));
}

#[tokio::test]
async fn an_older_revision_is_refused() {
    let bench = Bench::new(FILES);
    let refusal = bench.refused(bench.push("e", 4, &config(&["second"])));
    assert_eq!(refusal.reason, RefusalReason::OlderRevision);
}

#[tokio::test]
async fn an_older_number_of_another_lineage_is_taken() {
    let bench = Bench::new(FILES);
    bench.push("f", 2, &config(&["second"])).unwrap();
    assert_eq!(bench.in_force(), (2, vec!["second".to_owned()]));
}

#[tokio::test]
async fn the_same_number_with_other_content_is_refused_and_with_the_same_is_not() {
    let bench = Bench::new(FILES);
    let refusal = bench.refused(bench.push("e", 5, &config(&["second"])));
    assert_eq!(refusal.reason, RefusalReason::SameRevisionOtherDigest);
    bench.push("e", 5, &config(&["first"])).unwrap();
}

#[tokio::test]
async fn content_that_is_not_what_was_announced_is_refused() {
    let bench = Bench::new(FILES);
    let (bytes, _) = config(&["second"]).encode();
    let announced = at("e", 6, b"something else");
    let refusal = bench.refused(bench.applier.apply(&announced, &bytes));
    assert_eq!(refusal.reason, RefusalReason::DigestMismatch);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_refused() {
    let bench = Bench::new(FILES);
    let bytes = [0xff, 0xff, 0xff];
    let refusal = bench.refused(bench.applier.apply(&at("e", 6, &bytes), &bytes));
    assert_eq!(refusal.reason, RefusalReason::InvalidField);
}

#[tokio::test]
async fn more_connections_than_the_process_may_open_are_refused_with_the_arithmetic() {
    // One model of 50: 2 x 50 + 64.
    let bench = Bench::new(164);
    let refusal = bench.refused(bench.push("e", 6, &config(&["first", "second"])));
    assert_eq!(refusal.reason, RefusalReason::OpenFiles);
    for part in [
        "100 connections",
        "264 open files",
        "may open 164",
        "ulimit -n",
    ] {
        assert!(refusal.message.contains(part), "{refusal:?}");
    }
}

#[tokio::test]
async fn a_control_plane_that_lost_its_store_does_not_empty_the_worker() {
    let bench = Bench::new(FILES);
    let refusals = bench.push("f", 1, &config(&[])).unwrap_err();
    assert_eq!(refusals[0].reason, RefusalReason::EmptyStore);
    assert!(
        refusals[0].message.contains("another store"),
        "{refusals:?}"
    );
    assert_eq!(bench.in_force(), (5, vec!["first".to_owned()]));
    // What has models, and what was emptied on purpose, is taken.
    bench.push("f", 2, &config(&["second"])).unwrap();
    bench.push("f", 3, &config(&[])).unwrap();
    assert_eq!(bench.in_force(), (3, vec![]));
}
