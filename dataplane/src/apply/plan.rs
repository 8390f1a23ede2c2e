//! The pure comparison of two configurations: what becomes of each model's pool.

use std::{cmp::Ordering, iter::Peekable};

use forebay_proto::{ModelId, ResolvedModel};

/// What becomes of one model's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Create,
    /// Nothing about its connections changes.
    Keep,
    /// Its parameters change; its connections stay as far as they fit.
    Resize,
    /// Endpoints come, go or move; connections to those that stay are kept.
    Replace,
    /// The model is gone.
    Retire,
}

/// One step for one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The model.
    pub model: ModelId,
    /// What to do.
    pub action: Action,
}

/// Compares two lists of models, both in order of id.
#[must_use]
pub fn plan(old: &[&ResolvedModel], new: &[ResolvedModel]) -> Vec<Step> {
    let (mut old, mut new) = (old.iter().copied().peekable(), new.iter().peekable());
    let mut steps = Vec::new();
    while let Some(step) = next_step(&mut old, &mut new) {
        steps.push(step);
    }
    steps
}

fn next_step<'a>(
    old: &mut Peekable<impl Iterator<Item = &'a ResolvedModel>>,
    new: &mut Peekable<impl Iterator<Item = &'a ResolvedModel>>,
) -> Option<Step> {
    let order = match (old.peek(), new.peek()) {
        (None, None) => return None,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(old), Some(new)) => old.id.cmp(&new.id),
    };
    let (model, action) = match order {
        Ordering::Less => (old.next()?, Action::Retire),
        Ordering::Greater => (new.next()?, Action::Create),
        Ordering::Equal => {
            let (old, new) = (old.next()?, new.next()?);
            (new, compare(old, new))
        }
    };
    Some(Step {
        model: model.id.clone(),
        action,
    })
}

fn compare(old: &ResolvedModel, new: &ResolvedModel) -> Action {
    // What is asked of endpoints, and what they must answer.
    let asked = |model: &ResolvedModel| {
        let expected = model.probe.expected(&model.id);
        model.probe.is_on().then_some((model.probe.mode, expected))
    };
    if old.endpoints != new.endpoints {
        Action::Replace
    } else if old.pool != new.pool
        || old.timeouts.connect != new.timeouts.connect
        || asked(old) != asked(new)
    {
        Action::Resize
    } else {
        Action::Keep
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use forebay_proto::{
        Endpoint, EndpointId, EndpointUrl, ModelSpec, PoolSettings, PoolSize, ProbeMode, Revision,
        probe::ServedName,
    };
    use proptest::prelude::*;

    use super::*;

    fn model(id: &str, size: u32, port: u16) -> ResolvedModel {
        let url = EndpointUrl::parse(&format!("http://10.0.0.1:{port}")).unwrap();
        let endpoint = Endpoint::new(EndpointId::new("a").unwrap(), url);
        let mut spec = ModelSpec::new(ModelId::new(id).unwrap(), vec![], vec![endpoint]).unwrap();
        spec.pool.max_concurrent = PoolSize::new(size).ok();
        spec.resolve(&PoolSettings::default(), Revision::new(1))
            .unwrap()
    }

    fn models() -> impl Strategy<Value = Vec<ResolvedModel>> {
        prop::collection::btree_map("[a-f]", (1_u32..4, 1_u16..3), 0..6).prop_map(|models| {
            models
                .into_iter()
                .map(|(id, (size, port))| model(&id, size, port))
                .collect()
        })
    }

    #[test]
    fn another_name_is_news_to_a_pool_whose_endpoints_are_asked_for_it() {
        let plain = model("a", 1, 1);
        let mut named = plain.clone();
        named.probe.served_name = ServedName::new("b").ok();
        assert_eq!(compare(&plain, &named), Action::Keep);
        let asked = |mut model: ResolvedModel| {
            model.probe.mode = ProbeMode::Report;
            model
        };
        assert_eq!(
            compare(&asked(plain.clone()), &asked(named)),
            Action::Resize
        );
        assert_eq!(compare(&plain, &asked(plain.clone())), Action::Resize);
    }

    proptest! {
        #[test]
        fn equal_configurations_plan_nothing(models in models()) {
            let old: Vec<_> = models.iter().collect();
            prop_assert!(plan(&old, &models).iter().all(|step| step.action == Action::Keep));
        }

        #[test]
        fn a_plan_turns_the_old_into_the_new(old in models(), new in models()) {
            let mut pools: BTreeMap<_, _> = old.iter().map(|m| (m.id.clone(), m)).collect();
            let wanted: BTreeMap<_, _> = new.iter().map(|m| (m.id.clone(), m)).collect();
            for step in plan(&old.iter().collect::<Vec<_>>(), &new) {
                match step.action {
                    Action::Create => {
                        prop_assert!(pools.insert(step.model.clone(), wanted[&step.model]).is_none());
                    }
                    Action::Retire => prop_assert!(pools.remove(&step.model).is_some()),
                    Action::Keep => prop_assert_eq!(pools[&step.model], wanted[&step.model]),
                    Action::Resize => {
                        prop_assert_eq!(&pools[&step.model].endpoints, &wanted[&step.model].endpoints);
                        pools.insert(step.model.clone(), wanted[&step.model]);
                    }
                    Action::Replace => {
                        prop_assert_ne!(&pools[&step.model].endpoints, &wanted[&step.model].endpoints);
                        pools.insert(step.model.clone(), wanted[&step.model]);
                    }
                }
            }
            prop_assert_eq!(pools, wanted);
        }
    }
}
