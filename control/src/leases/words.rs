//! The words of the leases: what workers say, what they are granted, what is kept, and how they are on the wire and on a
//! store. Whatever cannot be read of a report is as if it had not come.

use std::{collections::BTreeMap, time::Duration};

use forebay_proto::{
    Epoch, InstanceId, ModelId, Position, WorkerId, convert::duration_to_wire, limits, wire,
};

/// What a worker uses of one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Most requests that it lets in.
    pub size: u32,
    /// What does not run out.
    pub floor: u32,
    /// Requests in flight, whatever they began with.
    pub in_flight: u32,
    /// Requests in line.
    pub waiting: u32,
}

/// A worker's report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Grows on a stream, from 1.
    pub number: u64,
    /// The newest grant of the stream that is in force.
    pub grant: u64,
    /// The configuration that is.
    pub applied: Option<Position>,
    /// Of each limit that the worker knows as one.
    pub uses: BTreeMap<ModelId, Use>,
    /// Models that it serves with pools of its own, as an earlier configuration had them.
    pub own: BTreeMap<ModelId, u32>,
    /// It holds nothing any more.
    pub done: bool,
    /// It ends.
    pub ending: bool,
    /// No other process of it uses anything.
    pub alone: bool,
    /// What it counts for.
    pub weight: u32,
}

/// How a worker stands, as its replica tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its stream; a later one has a greater number.
    pub stream: u64,
    /// Its process.
    pub instance: InstanceId,
    /// That takes the place of another one.
    pub takes_over: bool,
    /// How many streams that process had opened, this one included; 0: its build does not count.
    pub count: u32,
    /// Another process of this worker, whose place it has here, may be alive: see `shared/lines.rs`.
    pub displaces: bool,
    /// What it said last was said before whoever decides asked for it: it may be of a process that is dead by now.
    pub repeated: bool,
    /// Its build knows leases.
    pub knows: bool,
    /// Its stream is open.
    pub connected: bool,
    /// What it said last on it.
    pub report: Option<Report>,
}

/// What a worker is lent of one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Most requests in flight.
    pub size: u32,
    /// What does not run out.
    pub floor: u32,
}

/// What a worker is lent, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Of which stream.
    pub stream: u64,
    /// Grows.
    pub number: u64,
    /// The report that it answers.
    pub answers: u64,
    /// How long it holds, from when that was made.
    pub ttl: Duration,
    /// How long what runs beyond the floors goes on after that.
    pub linger: Duration,
    /// Of each limit. What is not named is nothing.
    pub shares: BTreeMap<ModelId, Share>,
}

/// The registry whose limits are lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its lineage: a store that was restored, recovered or moved is of another one.
    pub epoch: Epoch,
    /// Nothing had ever been registered in it when this process opened it.
    pub fresh: bool,
}

/// Who may hold something, and of what: what must be known when the control plane starts anew, before anything can
/// grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// In this lineage all are in it who may hold anything. Nothing: not known of any.
    pub lineage: Option<Epoch>,
    /// The longest time to live that was granted under it.
    pub ttl: Duration,
    /// The longest linger.
    pub linger: Duration,
    /// Per worker and limit: the floor, which does not run out.
    pub workers: BTreeMap<WorkerId, BTreeMap<ModelId, u32>>,
    /// Per limit: the size of the pool that each worker had of its own before, while some may have it still.
    pub models: BTreeMap<ModelId, Option<u32>>,
}

impl Report {
    /// From the wire.
    pub(crate) fn read(wire: wire::LeaseReport) -> Self {
        let uses = wire.uses.into_iter().take(limits::FLEET_MODELS);
        let uses = uses.filter_map(|used| {
            let model = ModelId::new(&used.model).ok()?;
            let used = Use {
                size: used.size,
                floor: used.floor.min(used.size.max(used.in_flight)),
                in_flight: used.in_flight,
                waiting: used.waiting,
            };
            Some((model, used))
        });
        let own = wire.own_pools.into_iter().take(limits::FLEET_MODELS);
        let own = own.filter_map(|own| Some((ModelId::new(&own.model).ok()?, own.size)));
        Self {
            number: wire.number,
            grant: wire.grant,
            applied: wire.applied.and_then(|applied| applied.try_into().ok()),
            uses: uses.collect(),
            own: own.collect(),
            done: wire.done,
            ending: wire.ending,
            alone: wire.alone,
            weight: wire
                .weight
                .clamp(*limits::LEASE_WEIGHT.start(), *limits::LEASE_WEIGHT.end()),
        }
    }
}

impl From<&Report> for wire::LeaseReport {
    fn from(report: &Report) -> Self {
        let used = |(model, used): (&ModelId, &Use)| wire::LeaseUse {
            model: model.to_string(),
            size: used.size,
            floor: used.floor,
            in_flight: used.in_flight,
            waiting: used.waiting,
            elsewhere: 0,
        };
        let own = |(model, size): (&ModelId, &u32)| wire::OwnPool {
            model: model.to_string(),
            size: *size,
        };
        Self {
            number: report.number,
            grant: report.grant,
            applied: report.applied.as_ref().map(Into::into),
            uses: report.uses.iter().map(used).collect(),
            own_pools: report.own.iter().map(own).collect(),
            done: report.done,
            weight: report.weight,
            alone: report.alone,
            ending: report.ending,
        }
    }
}

impl From<&Grant> for wire::LeaseGrant {
    fn from(grant: &Grant) -> Self {
        let share = |(model, share): (&ModelId, &Share)| wire::LeaseShare {
            model: model.to_string(),
            size: share.size,
            floor: share.floor,
        };
        Self {
            number: grant.number,
            answers: grant.answers,
            ttl: Some(duration_to_wire(grant.ttl)),
            linger: Some(duration_to_wire(grant.linger)),
            shares: grant.shares.iter().map(share).collect(),
        }
    }
}

/// The table on a store.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredTable {
    #[prost(uint64, tag = "1")]
    ttl_millis: u64,
    #[prost(uint64, tag = "2")]
    linger_millis: u64,
    #[prost(message, repeated, tag = "3")]
    holders: Vec<StoredHolder>,
    #[prost(message, repeated, tag = "4")]
    models: Vec<StoredModel>,
    #[prost(string, tag = "5")]
    lineage: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredHolder {
    #[prost(string, tag = "1")]
    worker: String,
    #[prost(message, repeated, tag = "2")]
    floors: Vec<StoredFloor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredFloor {
    #[prost(string, tag = "1")]
    model: String,
    #[prost(uint32, tag = "2")]
    floor: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredModel {
    #[prost(string, tag = "1")]
    model: String,
    #[prost(uint32, optional, tag = "2")]
    own_pools_of: Option<u32>,
}

impl From<&Table> for StoredTable {
    fn from(table: &Table) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let floor = |(model, floor): (&ModelId, &u32)| StoredFloor {
            model: model.to_string(),
            floor: *floor,
        };
        let holder = |(worker, floors): (&WorkerId, &BTreeMap<ModelId, u32>)| StoredHolder {
            worker: worker.to_string(),
            floors: floors.iter().map(floor).collect(),
        };
        let model = |(model, own): (&ModelId, &Option<u32>)| StoredModel {
            model: model.to_string(),
            own_pools_of: *own,
        };
        Self {
            ttl_millis: millis(table.ttl),
            linger_millis: millis(table.linger),
            holders: table.workers.iter().map(holder).collect(),
            models: table.models.iter().map(model).collect(),
            lineage: table
                .lineage
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
        }
    }
}

impl TryFrom<StoredTable> for Table {
    type Error = forebay_proto::violation::InvalidValue;

    fn try_from(stored: StoredTable) -> Result<Self, Self::Error> {
        let floors = |floors: Vec<StoredFloor>| -> Result<BTreeMap<_, _>, Self::Error> {
            let floors = floors.into_iter();
            floors
                .map(|stored| Ok((ModelId::new(&stored.model)?, stored.floor)))
                .collect()
        };
        let holders = stored.holders.into_iter();
        let holders = holders.map(|holder| {
            let worker = WorkerId::new(&holder.worker)?;
            Ok((worker, floors(holder.floors)?))
        });
        let models = stored.models.into_iter();
        let models = models.map(|model| Ok((ModelId::new(&model.model)?, model.own_pools_of)));
        let lineage = (!stored.lineage.is_empty()).then(|| Epoch::new(stored.lineage));
        Ok(Self {
            lineage: lineage.transpose()?,
            ttl: Duration::from_millis(stored.ttl_millis),
            linger: Duration::from_millis(stored.linger_millis),
            workers: holders.collect::<Result<_, Self::Error>>()?,
            models: models.collect::<Result<_, Self::Error>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_table_is_read_back() {
        let model = |id: &str| ModelId::new(id).unwrap();
        let worker = |id: &str| WorkerId::new(id).unwrap();
        let table = Table {
            lineage: Some(Epoch::new("aa").unwrap()),
            ttl: Duration::from_secs(10),
            linger: Duration::from_millis(1_500),
            workers: BTreeMap::from([
                (
                    worker("a"),
                    BTreeMap::from([(model("m"), 1), (model("n"), 0)]),
                ),
                (worker("b"), BTreeMap::new()),
            ]),
            models: BTreeMap::from([(model("m"), Some(50)), (model("n"), None)]),
        };
        let bytes = StoredTable::from(&table).encode_to_vec();
        let read = StoredTable::decode(&*bytes).unwrap();
        assert_eq!(Table::try_from(read).unwrap(), table);
        let bad = StoredTable {
            holders: vec![StoredHolder {
                worker: "not a name".to_owned(),
                floors: vec![],
            }],
            ..StoredTable::default()
        };
        assert!(Table::try_from(bad).is_err());
    }

    #[test]
    fn what_cannot_be_read_of_a_report_did_not_come() {
        let used = |model: &str| wire::LeaseUse {
            model: model.to_owned(),
            size: 5,
            floor: 9,
            in_flight: 7,
            ..wire::LeaseUse::default()
        };
        let report = Report::read(wire::LeaseReport {
            uses: vec![used("m"), used("no such name")],
            weight: 0,
            ..wire::LeaseReport::default()
        });
        assert_eq!(report.uses.len(), 1);
        assert_eq!(report.weight, 1);
        let used = report.uses.values().next().unwrap();
        assert_eq!((used.size, used.floor, used.in_flight), (5, 7, 7));
    }
}
