//! What is in force of what was pushed and what was there before.

use forebay_proto::{
    Endpoint, EndpointId, EndpointUrl, ModelSpec, PoolSettings, PoolSize, Revision,
};
use proptest::prelude::*;

use super::*;

/// What may be wrong with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    Field,
    CutOff,
    NoId,
}

type Given = (String, Vec<String>, u32, Wrong);

fn model(id: &str, aliases: &[String], size: u32) -> ResolvedModel {
    let name = |text: &str| ModelId::new(text).unwrap();
    let url = EndpointUrl::parse("http://10.0.0.1:80").unwrap();
    let endpoint = Endpoint::new(EndpointId::new("a").unwrap(), url);
    let aliases: BTreeSet<&String> = aliases.iter().filter(|alias| *alias != id).collect();
    let aliases = aliases.into_iter().map(|alias| name(alias)).collect();
    let spec = ModelSpec::new(name(id), aliases, vec![endpoint]).unwrap();
    let model = spec.resolve(&PoolSettings::default(), Revision::new(1));
    let mut model = model.unwrap();
    model.pool.size = PoolSize::new(size).unwrap();
    model
}

fn encode((id, aliases, size, wrong): &Given) -> Bytes {
    let mut wire = wire::Model::from(&model(id, aliases, *size));
    match wrong {
        Wrong::Nothing | Wrong::CutOff => {}
        Wrong::Field => wire.endpoints.clear(),
        Wrong::NoId => wire.id.clear(),
    }
    let bytes = Bytes::from(wire.encode_to_vec());
    match wrong {
        Wrong::CutOff => bytes.slice(..bytes.len() - 1),
        Wrong::Nothing | Wrong::Field | Wrong::NoId => bytes,
    }
}

fn sift<'a>(given: &[Given], before: &'a [ResolvedModel]) -> Sifted<'a> {
    let envelope = wire::Envelope {
        budget: 150,
        models: given.iter().map(encode).collect(),
    };
    let bytes = Bytes::from(envelope.encode_to_vec());
    Sifted::read(&bytes, before).unwrap()
}

fn given(id: &str, aliases: &[&str], wrong: Wrong) -> Given {
    let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    (id.to_owned(), aliases, 2, wrong)
}

fn names(merged: &Merged) -> Vec<String> {
    let all = merged.models.iter().flat_map(ResolvedModel::names);
    all.map(ToString::to_string).collect()
}

fn some(wrong: bool) -> impl Strategy<Value = Vec<Given>> {
    let kinds = match wrong {
        true => vec![
            Wrong::Nothing,
            Wrong::Nothing,
            Wrong::Field,
            Wrong::CutOff,
            Wrong::NoId,
        ],
        false => vec![Wrong::Nothing],
    };
    let name = "[a-h]";
    let aliases = proptest::collection::vec(name, 0..3);
    let one = (name, aliases, 1_u32..4, proptest::sample::select(kinds));
    proptest::collection::vec(one, 0..8)
}

/// As it may come from the disk: ids once, names as they please.
fn earlier(given: &[Given]) -> Vec<ResolvedModel> {
    let by_id: BTreeMap<&String, &Given> = given.iter().map(|given| (&given.0, given)).collect();
    by_id
        .values()
        .map(|(id, aliases, size, _)| model(id, aliases, *size))
        .collect()
}

proptest! {
    #[test]
    fn names_never_collide(given in some(true), before in some(false)) {
        let before = earlier(&before);
        let names = names(&sift(&given, &before).merge());
        let once: BTreeSet<&String> = names.iter().collect();
        prop_assert_eq!(once.len(), names.len(), "{:?}", names);
    }

    #[test]
    fn the_order_does_not_matter(given in some(true), before in some(false), seed: u64) {
        let before = earlier(&before);
        let merged = sift(&given, &before).merge();
        let (mut given, mut before) = (given, before);
        let mut random = fastrand::Rng::with_seed(seed);
        random.shuffle(&mut given);
        random.shuffle(&mut before);
        prop_assert_eq!(sift(&given, &before).merge(), merged);
    }

    #[test]
    fn a_model_that_shares_nothing_is_as_it_was_pushed(given in some(true), before in some(false)) {
        let alone = super::tests::given("z", &["y"], Wrong::Nothing);
        let all: Vec<Given> = given.iter().cloned().chain([alone.clone()]).collect();
        let before = earlier(&before);
        let merged = sift(&all, &before).merge();
        let found = merged.models.iter().find(|model| model.id.as_str() == "z");
        prop_assert_eq!(found, Some(&model("z", &alone.1, 2)));
        prop_assert!(!merged.retained.contains("z"));
    }

    #[test]
    fn each_is_new_or_retained_or_told_of(given in some(true), before in some(false)) {
        let before = earlier(&before);
        let sifted = sift(&given, &before);
        let merged = sifted.merge();
        let refusals = sifted.refusals(&merged);
        for model in &merged.models {
            let new = || given.iter().any(|(id, aliases, size, wrong)| {
                *wrong == Wrong::Nothing && *model == super::tests::model(id, aliases, *size)
            });
            let old = || before.iter().any(|old| old.id == model.id);
            let retained = merged.retained.contains(&model.id);
            prop_assert!((retained && old()) || (!retained && new()));
        }
        for (id, _, _, wrong) in &given {
            let in_force = merged.models.iter().any(|model| model.id.as_str() == id);
            let retained = merged.retained.contains(id.as_str());
            if *wrong != Wrong::NoId && (!in_force || retained) {
                prop_assert!(refusals.iter().any(|refusal| refusal.model == *id), "{}", id);
            }
        }
        prop_assert!(refusals.len() <= limits::REFUSALS);
    }

    #[test]
    fn nothing_that_comes_from_outside_is_taken_amiss(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let before = [model("m", &[], 1)];
        if let Ok(sifted) = Sifted::read(&Bytes::from(bytes), &before) {
            let merged = sifted.merge();
            prop_assert!(sifted.refused() == 0 || !sifted.refusals(&merged).is_empty());
        }
    }
}

#[test]
fn new_names_win_over_retained_ones() {
    let before = [
        model("old", &["one".into(), "two".into()], 1),
        model("gone", &[], 1),
    ];
    let pushed = [
        given("new", &["one", "gone"], Wrong::Nothing),
        given("old", &[], Wrong::Field),
        given("gone", &[], Wrong::CutOff),
    ];
    let sifted = sift(&pushed, &before);
    let merged = sifted.merge();
    assert_eq!(names(&merged), ["new", "gone", "one", "old", "two"]);
    assert_eq!(merged.retained.len(), 1);
    let told = sifted.refusals(&merged);
    assert!(
        told.iter()
            .any(|r| r.model == "gone" && r.message.ends_with("left out")),
        "{told:?}"
    );
}

#[test]
fn while_an_id_cannot_be_read_nothing_is_removed() {
    let before = [model("a", &[], 1), model("b", &[], 1)];
    let pushed = [
        given("a", &[], Wrong::Nothing),
        given("b", &[], Wrong::NoId),
    ];
    let merged = sift(&pushed, &before).merge();
    assert_eq!(names(&merged), ["a", "b"]);
    assert_eq!(merged.models[0].pool.size.get(), 2, "the new one");
    let merged = sift(&pushed[..1], &before).merge();
    assert_eq!(names(&merged), ["a"]);
}

#[test]
fn of_two_with_one_id_neither_is_taken() {
    let before = [model("a", &[], 1)];
    let twice = [
        given("a", &["x"], Wrong::Nothing),
        given("a", &["y"], Wrong::Nothing),
        given("a", &["z"], Wrong::Nothing),
        given("b", &[], Wrong::Nothing),
        given("b", &[], Wrong::Field),
    ];
    let sifted = sift(&twice, &before);
    assert_eq!(names(&sifted.merge()), ["a"]);
    assert_eq!(sifted.refused(), 5);
}

#[test]
fn reasons_are_bounded_and_say_how_many_there_are() {
    let many: Vec<Given> = (0..300)
        .map(|n| given(&format!("m{n}"), &[], Wrong::Field))
        .collect();
    let sifted = sift(&many, &[]);
    let told = sifted.refusals(&sifted.merge());
    assert_eq!(told.len(), limits::REFUSALS);
    assert!(told[99].message.starts_with("201 more"), "{:?}", told[99]);
}

#[test]
fn one_larger_than_the_budget_is_bad_alone() {
    let mut large = given("a", &[], Wrong::Nothing);
    large.2 = 151;
    let sifted = sift(&[large, given("b", &[], Wrong::Nothing)], &[]);
    let merged = sifted.merge();
    assert_eq!(names(&merged), ["b"]);
    let refusal = &sifted.refusals(&merged)[0];
    assert_eq!(refusal.field, "models[0].pool.max_concurrent");
    assert!(refusal.message.contains("budget of 150"), "{refusal:?}");
}
