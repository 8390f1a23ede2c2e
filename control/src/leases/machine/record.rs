//! What of the machine is to be on record, and what that changes once it is. Where it is written is for the board.

use std::{collections::BTreeMap, time::Duration};

use forebay_proto::ModelId;

use super::{
    super::{holder::Holder, words::Table},
    Machine,
};

impl Machine {
    /// What is to be on record, if that is something else than what is.
    #[must_use]
    pub fn to_keep(&self) -> Option<Table> {
        let moved = |holder: &Holder| {
            let mut holds = holder.holds.values();
            holds.any(|hold| hold.kept != Some(hold.floor()) || !(hold.listed || holder.unknown))
        };
        let mut workers = self.workers.iter();
        let same = self.kept.workers.len() == self.workers.len()
            && workers.all(|(id, holder)| self.kept.workers.contains_key(id) && !moved(holder));
        let models: BTreeMap<ModelId, Option<u32>> = self
            .limits
            .iter()
            .map(|(model, limit)| (model.clone(), limit.own))
            .collect();
        let lineage = self.whole.then(|| self.lineage.clone());
        let times = (self.kept.ttl, self.kept.linger) == (self.settings.ttl, self.settings.linger);
        let same = same && models == self.kept.models && lineage == self.kept.lineage;
        if same && (times || models.is_empty()) {
            return None;
        }
        let floors = |holder: &Holder| {
            let holds = holder.holds.iter();
            let holds = holds.filter(|(_, hold)| hold.listed || hold.floor() > 0 || holder.unknown);
            holds
                .map(|(model, hold)| (model.clone(), hold.floor()))
                .collect()
        };
        let workers = self.workers.iter();
        // While some may go by what was granted before, it is their time that counts.
        let unknown = !self.whole || self.workers.values().any(|holder| holder.unknown);
        let longest = |before: Duration, now: Duration| match unknown {
            true => before.max(now),
            false => now,
        };
        let table = Table {
            lineage,
            ttl: longest(self.kept.ttl, self.settings.ttl),
            linger: longest(self.kept.linger, self.settings.linger),
            workers: workers
                .map(|(id, holder)| (id.clone(), floors(holder)))
                .collect(),
            models,
        };
        Some(table).filter(|table| *table != self.kept)
    }

    /// This is on record now.
    pub fn kept(&mut self, table: Table) {
        for (id, holder) in &mut self.workers {
            let floors = table.workers.get(id);
            for (model, hold) in &mut holder.holds {
                let kept = floors.and_then(|floors| floors.get(model)).copied();
                // Some of what is meant for it may have waited for that.
                holder.changed |= kept > hold.kept;
                hold.kept = kept;
            }
            let unknown = holder.unknown;
            holder
                .holds
                .retain(|_, hold| hold.listed || hold.kept.is_some() || unknown);
        }
        self.kept = table;
    }
}
