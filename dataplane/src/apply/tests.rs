//! What is refused, and that a refusal changes nothing.

use forebay_proto::{
    Budget, Config, Endpoint, EndpointId, EndpointUrl, Epoch, ModelSpec, PoolSettings, PoolSize,
    Revision, wire,
};
use prometheus::Registry;
use prost::Message as _;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{metrics::Metrics, resolve::Resolver};

const FILES: u64 = 10_000;

fn config(ids: &[&str]) -> Config {
    sized(ids, None)
}

fn sized(ids: &[&str], size: Option<u32>) -> Config {
    let model = |id: &&str| {
        let url = EndpointUrl::parse("http://10.0.0.1:8000").unwrap();
        let endpoint = Endpoint::new(EndpointId::new("a").unwrap(), url);
        let id = ModelId::new(*id).unwrap();
        let mut spec = ModelSpec::new(id, vec![], vec![endpoint]).unwrap();
        spec.pool.max_concurrent = size.map(|size| PoolSize::new(size).unwrap());
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
            discovering: Arc::default(),
            keys: Arc::default(),
            leases: Arc::default(),
        };
        let applier = Applier::new(live.clone(), common, open_files);
        let bench = Self { live, applier };
        bench.push("e", 5, &config(&["first"])).unwrap();
        bench
    }

    fn push(&self, epoch: &str, revision: u64, config: &Config) -> Result<Applied, Vec<Refusal>> {
        let (bytes, _) = config.encode();
        self.applier
            .apply(&at(epoch, revision, &bytes), &bytes, &[])
    }

    /// What was pushed, with these models broken.
    fn push_broken(&self, revision: u64, config: &Config, broken: &[&str]) -> Applied {
        let mut wire = wire::Config::from(config);
        for model in &mut wire.models {
            if broken.contains(&model.id.as_str()) {
                model.endpoints.clear();
            }
        }
        let bytes = Bytes::from(wire.encode_to_vec());
        self.applier
            .apply(&at("e", revision, &bytes), &bytes, &[])
            .unwrap()
    }

    fn size(&self, model: &str) -> u32 {
        self.live.load().models[model].model.pool.size.get()
    }

    fn sizes_of_pools(&self) -> Vec<(String, u32)> {
        let live = self.live.load();
        let pools = live.models.iter();
        pools
            .map(|(id, route)| (id.to_string(), route.pool.snapshot().size))
            .collect()
    }

    fn in_force(&self) -> (u64, Vec<String>) {
        let live = self.live.load();
        let ids = live.models.keys().map(ToString::to_string).collect();
        (live.position.as_ref().unwrap().revision.get(), ids)
    }

    /// Asserts that this was refused for one reason and changed nothing.
    fn refused(&self, result: Result<Applied, Vec<Refusal>>) -> Refusal {
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
    let refusal = bench.refused(bench.applier.apply(&announced, &bytes, &[]));
    assert_eq!(refusal.reason, RefusalReason::DigestMismatch);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_refused() {
    let bench = Bench::new(FILES);
    let bytes = Bytes::from_static(&[0xff, 0xff, 0xff]);
    let refusal = bench.refused(bench.applier.apply(&at("e", 6, &bytes), &bytes, &[]));
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

#[tokio::test]
async fn a_bad_model_is_retained_and_its_siblings_apply() {
    let bench = Bench::new(FILES);
    let before = bench.live.load().models["first"].pool.clone();
    let pushed = sized(&["first", "second", "third"], Some(7));
    let applied = bench.push_broken(6, &pushed, &["first", "third"]);
    let in_force = ["first", "second"].map(str::to_owned).to_vec();
    assert_eq!(bench.in_force(), (6, in_force));
    assert_eq!((bench.size("first"), bench.size("second")), (50, 7));
    let live = bench.live.load();
    assert!(Arc::ptr_eq(&before, &live.models["first"].pool));
    assert_eq!(applied.retained.len(), 1);
    assert_eq!((live.refused, live.refusals.len()), (2, 2));
    let told: Vec<_> = applied
        .refusals
        .iter()
        .map(|r| (r.model.as_str(), r.field.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("first", "models[0].endpoints"),
            ("third", "models[2].endpoints")
        ]
    );
    assert!(
        applied.refusals[0]
            .message
            .ends_with("served as it was before")
    );
    assert!(applied.refusals[1].message.ends_with("left out"));
    // Still so in the next revision; then it is good again.
    bench.push_broken(7, &sized(&["first", "second"], Some(8)), &["first"]);
    assert_eq!((bench.size("first"), bench.size("second")), (50, 8));
    bench
        .push("e", 8, &sized(&["first", "second"], Some(8)))
        .unwrap();
    let live = bench.live.load();
    assert_eq!(
        (live.refused, live.retained.len(), bench.size("first")),
        (0, 0, 8)
    );
    assert!(Arc::ptr_eq(&before, &live.models["first"].pool));
}

#[tokio::test]
async fn a_model_that_is_gone_is_not_retained() {
    let bench = Bench::new(FILES);
    bench.push_broken(6, &config(&["first", "second"]), &["first"]);
    bench.push("e", 7, &config(&["second"])).unwrap();
    assert_eq!(bench.in_force(), (7, vec!["second".to_owned()]));
    assert_eq!(bench.live.retired().len(), 1);
}

#[tokio::test]
async fn retained_models_count_against_the_open_files() {
    // Two models of 50, not three.
    let bench = Bench::new(264);
    let wide = config(&["first", "second", "third"]);
    let mut wire = wire::Config::from(&wide);
    wire.models[0].endpoints.clear();
    let bytes = Bytes::from(wire.encode_to_vec());
    let refusal = bench.refused(bench.applier.apply(&at("e", 6, &bytes), &bytes, &[]));
    assert_eq!(refusal.reason, RefusalReason::OpenFiles);
    assert!(refusal.message.contains("150 connections"), "{refusal:?}");
}

#[tokio::test]
async fn another_store_whose_models_are_all_bad_does_not_empty_the_worker() {
    let bench = Bench::new(FILES);
    let mut wire = wire::Config::from(&config(&["second"]));
    wire.models[0].endpoints.clear();
    let bytes = Bytes::from(wire.encode_to_vec());
    let refusal = bench.refused(bench.applier.apply(&at("f", 1, &bytes), &bytes, &[]));
    assert_eq!(refusal.reason, RefusalReason::EmptyStore);
}

#[tokio::test]
async fn a_builder_that_panics_costs_its_model() {
    let bench = Bench::new(FILES);
    bench.applier.faults.set(&[("make", "second")]);
    let applied = bench
        .push("e", 6, &config(&["first", "second", "third"]))
        .unwrap();
    let in_force = ["first", "third"].map(str::to_owned).to_vec();
    assert_eq!(bench.in_force(), (6, in_force.clone()));
    let refusal = &applied.refusals[0];
    assert_eq!(
        (refusal.model.as_str(), refusal.reason),
        ("second", RefusalReason::BuildFailed)
    );
    assert!(refusal.message.contains("planted"), "{refusal:?}");
    // The next one is as if nothing had been.
    bench.applier.faults.set(&[]);
    let applied = bench
        .push("e", 7, &config(&["first", "second", "third"]))
        .unwrap();
    assert_eq!(
        (applied.refusals.len(), bench.live.load().models.len()),
        (0, 3)
    );
}

#[tokio::test]
async fn a_pool_that_panics_when_it_is_taken_back_drains_on() {
    let bench = Bench::new(FILES);
    bench.push("e", 6, &config(&["second"])).unwrap();
    bench.applier.faults.set(&[("revive", "first")]);
    let applied = bench.push("e", 7, &config(&["first", "second"])).unwrap();
    assert_eq!(bench.in_force(), (7, vec!["second".to_owned()]));
    assert_eq!(applied.refusals[0].reason, RefusalReason::BuildFailed);
    assert_eq!(bench.live.retired().len(), 1);
}

#[tokio::test]
async fn a_pool_that_panics_on_the_way_to_its_new_form_is_made_anew_in_the_old_one() {
    let bench = Bench::new(FILES);
    bench.push("e", 6, &config(&["first", "second"])).unwrap();
    let broken = bench.live.load().models["first"].pool.clone();
    bench.applier.faults.set(&[("reshape", "first")]);
    let pushed = sized(&["first", "second", "third"], Some(7));
    let applied = bench.push("e", 7, &pushed).unwrap();
    let pools = [("first", 50), ("second", 7), ("third", 7)];
    let pools = pools.map(|(id, size)| (id.to_owned(), size));
    assert_eq!(bench.sizes_of_pools(), pools);
    assert_eq!(bench.size("first"), 50);
    assert_eq!(applied.retained.len(), 1);
    assert!(
        applied.refusals[0]
            .message
            .contains("served as it was before")
    );
    let live = bench.live.load();
    assert!(!Arc::ptr_eq(&broken, &live.models["first"].pool));
    assert_eq!(live.position.as_ref().unwrap().revision.get(), 7);
    assert!(Arc::ptr_eq(&broken, &bench.live.retired()[0]), "it drains");

    // If that cannot be made either, the model goes; the others do not notice.
    bench
        .applier
        .faults
        .set(&[("reshape", "second"), ("make", "second")]);
    bench
        .push("e", 8, &sized(&["second", "third"], Some(9)))
        .unwrap();
    assert_eq!(bench.sizes_of_pools(), [("third".to_owned(), 9)]);
}

#[tokio::test]
async fn what_is_kept_is_used_at_a_start_and_only_for_what_is_bad() {
    let live = Arc::new(LiveCell::default());
    let bench = Bench::new(FILES);
    let applier = Applier::new(live.clone(), bench.applier.common.clone(), FILES);
    let kept = [sized(&["first"], Some(3)), sized(&["second"], Some(3))]
        .map(|config| config.models()[0].clone());
    let mut wire = wire::Config::from(&config(&["first", "second", "third"]));
    wire.models[0].endpoints.clear();
    let bytes = Bytes::from(wire.encode_to_vec());
    let applied = applier.apply(&at("e", 9, &bytes), &bytes, &kept).unwrap();
    assert_eq!(applied.retained, kept[..1]);
    let sizes: Vec<u32> = live
        .load()
        .models
        .values()
        .map(|r| r.model.pool.size.get())
        .collect();
    assert_eq!(sizes, [3, 50, 50]);
}
