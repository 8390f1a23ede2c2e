//! How long it takes to open a large registry after a kill.

use std::{fs, path::Path, time::Duration};

use tokio::task::JoinSet;

use crate::{
    alone, count,
    plane::{BINARY, Plane},
    writers::{Asked, Kind},
};

/// As many as there may be, or in an unoptimised build few enough.
const MODELS: u64 = 1_000;
const MODELS_VARIABLE: &str = "FOREBAY_TEST_MODELS";
const LIMIT: Duration = Duration::from_secs(2);
const AT_ONCE: u64 = 64;
const OPENINGS: u32 = 3;

fn copied(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copied(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_registry_is_open_again_soon() {
    let _alone = alone().await;
    let models = count(MODELS_VARIABLE, MODELS);
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path(), &[]).await;
    let mut writing = JoinSet::new();
    for writer in 0..AT_ONCE {
        let mut registry = plane.registry();
        writing.spawn(async move {
            for number in (writer..models).step_by(usize::try_from(AT_ONCE).unwrap()) {
                let asked = Asked {
                    model: format!("model-{number}"),
                    number,
                    kind: Kind::Create,
                };
                asked.ask(&mut registry).await.unwrap();
            }
        });
    }
    writing.join_all().await;
    plane.process.kill().await;
    // The best of some: a machine that stands still says nothing. Each has a copy of its own, as what is opened is repaired.
    let mut took = Duration::MAX;
    for _ in 0..OPENINGS {
        let copy = tempfile::tempdir().unwrap();
        copied(dir.path(), copy.path());
        let again = Plane::start(copy.path(), &[]).await;
        let found = again.in_force().await;
        assert_eq!(found.models.len() as u64, models);
        took = took.min(again.took);
    }
    println!("{models} models are open again after {took:.0?}");
    // An unoptimised build is given more; it has fewer to read.
    let optimised = !cfg!(debug_assertions) || std::env::var(BINARY).is_ok();
    assert!(
        took <= if optimised { LIMIT } else { 5 * LIMIT },
        "{took:?}"
    );
}
