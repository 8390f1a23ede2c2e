//! What must be there: the acknowledged writes, those whose answer was lost, and what a control plane that was
//! started again makes of them.

use std::collections::BTreeMap;

use crate::{
    plane::{InForce, Plane},
    writers::{Acknowledged, Answer, Asked, Kind, WRITERS, Written},
};

/// Everything that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    epoch: Option<String>,
    /// The newest revision that is known of.
    newest: u64,
    /// That of the last look, and the writes acknowledged since.
    looked: u64,
    since: u64,
    /// The models, with the write that made them what they are, and its revision.
    models: BTreeMap<String, (Asked, u64)>,
    lost: Vec<Asked>,
    /// Some writes with the answers that they got.
    answered: Vec<(Asked, Answer)>,
    pub(crate) acknowledged: u64,
    /// Writes whose answer was lost and that were made, and that were not.
    pub(crate) made: u64,
    pub(crate) not_made: u64,
}

impl Ledger {
    pub(crate) fn models(&self) -> impl Iterator<Item = &String> {
        self.models.keys()
    }

    /// Takes in what writers did.
    pub(crate) fn take(&mut self, written: Vec<Written>) {
        self.answered.clear();
        for one in written {
            for Acknowledged { asked, answer, .. } in &one.acknowledged {
                self.put(asked, answer.revision());
                self.newest = self.newest.max(answer.revision());
            }
            let count = one.acknowledged.len() as u64;
            self.acknowledged += count;
            self.since += count;
            let last = one.acknowledged.into_iter().last();
            self.answered
                .extend(last.map(|last| (last.asked, last.answer)));
            self.lost.extend(one.lost);
        }
    }

    fn put(&mut self, asked: &Asked, revision: u64) {
        match asked.kind {
            Kind::Delete => drop(self.models.remove(&asked.model)),
            Kind::Create | Kind::Update => {
                let put = (asked.clone(), revision);
                self.models.insert(asked.model.clone(), put);
            }
        }
    }

    /// Compares what is there with what must be, repeats what had no answer, and says all that is wrong.
    pub(crate) async fn check(&mut self, plane: &Plane) -> Vec<String> {
        let mut wrong = Vec::new();
        let found = plane.in_force().await;
        let epoch = self.epoch.get_or_insert_with(|| found.epoch.clone());
        if *epoch != found.epoch {
            wrong.push(format!("the epoch was {epoch} and is {}", found.epoch));
        }
        if found.revision < self.newest {
            let newest = self.newest;
            wrong.push(format!("revision {newest} became {}", found.revision));
        }
        let lost = std::mem::take(&mut self.lost);
        let made: Vec<_> = lost
            .iter()
            .map(|asked| self.is_made(asked, &found))
            .collect();
        let count = made.iter().filter(|made| **made).count() as u64;
        self.made += count;
        self.not_made += made.len() as u64 - count;
        for (asked, _) in lost.iter().zip(&made).filter(|(_, made)| **made) {
            let revision = found.models.get(&asked.model).map_or(0, |m| m.revision);
            self.put(asked, revision);
        }
        if self.looked > 0 {
            // One write is one revision: whatever else is there was not asked for.
            let expected = self.looked + self.since + count;
            if expected != found.revision {
                let is = found.revision;
                wrong.push(format!(
                    "it should be at revision {expected} and is at {is}"
                ));
            }
        }
        self.compare(&found, &mut wrong);
        self.newest = self.newest.max(found.revision);
        self.looked = found.revision + self.not_made_of(&made);
        self.since = 0;
        if wrong.is_empty() {
            self.repeat(plane, &found, &lost, &made, &mut wrong).await;
        }
        wrong
    }

    fn not_made_of(&self, made: &[bool]) -> u64 {
        made.iter().filter(|made| !**made).count() as u64
    }

    /// Whether a write without an answer was made. Half of one is told of by the comparison.
    fn is_made(&self, asked: &Asked, found: &InForce) -> bool {
        match (asked.kind, found.models.get(&asked.model)) {
            (Kind::Delete, there) => there.is_none(),
            (Kind::Create | Kind::Update, there) => there.is_some_and(|model| asked.is(model)),
        }
    }

    fn compare(&self, found: &InForce, wrong: &mut Vec<String>) {
        for (id, (asked, revision)) in &self.models {
            match found.models.get(id) {
                None => wrong.push(format!("{id} of revision {revision} is lost")),
                Some(model) if model.revision != *revision || !asked.is(model) => wrong.push(
                    format!("{id} should be {asked:?} of revision {revision} and is {model:?}"),
                ),
                Some(_) => {}
            }
        }
        let unknown = found.models.keys();
        let unknown = unknown.filter(|id| !self.models.contains_key(*id));
        wrong.extend(unknown.map(|id| format!("{id} was not asked for, or was deleted")));
    }

    /// The same request again gets its first answer, and is made now if it was not.
    async fn repeat(
        &mut self,
        plane: &Plane,
        found: &InForce,
        lost: &[Asked],
        made: &[bool],
        wrong: &mut Vec<String>,
    ) {
        let mut registry = plane.registry();
        for (asked, answer) in &self.answered {
            let again = asked.ask(&mut registry).await;
            if again.as_ref().ok() != Some(answer) {
                wrong.push(format!("{asked:?} got {answer:?}, and now {again:?}"));
            }
        }
        assert!(lost.len() <= WRITERS, "each writer stops at its first");
        for (asked, made) in lost.iter().zip(made) {
            let first = asked.ask(&mut registry).await;
            let Ok(answer) = &first else {
                wrong.push(format!("{asked:?}, made: {made}, is now {first:?}"));
                continue;
            };
            let revision = answer.revision();
            if *made != (revision <= found.revision) {
                wrong.push(format!("{asked:?}, made: {made}, has revision {revision}"));
            }
            if *made && let Answer::Model(model) = answer {
                let there = &found.models[&asked.model];
                if **model != *there {
                    wrong.push(format!("{asked:?} is {there:?}, the answer {model:?}"));
                }
            }
            if !*made {
                self.put(asked, revision);
            }
            self.newest = self.newest.max(revision);
            let second = asked.ask(&mut registry).await;
            if second.as_ref().ok() != Some(answer) {
                wrong.push(format!("{asked:?} got {answer:?}, then {second:?}"));
            }
        }
    }
}
