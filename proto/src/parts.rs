//! An encoded configuration taken apart by model, without decoding the models: what deltas are made of.
//!
//! `Parts` of a configuration, changed by the difference to another one and joined, are the bytes of that other
//! one, bit for bit; only so can one digest cover a snapshot and a delta. What is not in the encoding that
//! [`crate::Config::encode`] makes is refused, never repaired. It must not look into a model beyond its id.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use crate::{ids::ModelId, limits, violation::InvalidValue, wire};

/// `Config.budget`: field 1, a varint.
const BUDGET: u8 = 0x08;
/// `Config.models`: field 2, with a length.
const MODEL: u8 = 0x12;
/// `Model.id`: field 1, with a length. Never empty, so it always comes first.
const MODEL_ID: u8 = 0x0a;

/// The id of an encoded model of which nothing else may be readable.
#[must_use]
pub fn model_id(model: &Bytes) -> Option<ModelId> {
    let part = Part::of(model.clone()).ok()?;
    ModelId::new(std::str::from_utf8(&part.id).ok()?).ok()
}

/// A configuration, in parts that share its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    budget: u32,
    /// In order of id, each id once.
    models: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    id: Bytes,
    /// The encoded model, its id included.
    model: Bytes,
}

impl Part {
    fn of(model: Bytes) -> Result<Self, InvalidValue> {
        let mut rest = model.clone();
        let id = match take_byte(&mut rest) {
            Some(MODEL_ID) => take_block(&mut rest)?,
            _ => return Err(InvalidValue::new("an encoded model begins with its id")),
        };
        if id.is_empty() || std::str::from_utf8(&id).is_err() {
            return Err(InvalidValue::new("the id of an encoded model is not text"));
        }
        Ok(Self { id, model })
    }

    fn encoded_len(&self) -> usize {
        1 + encoded_len_varint(self.model.len() as u64) + self.model.len()
    }
}

impl Parts {
    /// Takes an encoded configuration apart.
    pub fn split(config: &Bytes) -> Result<Self, InvalidValue> {
        let mut rest = config.clone();
        let (mut budget, mut models) = (0, Vec::new());
        if rest.first() == Some(&BUDGET) {
            take_byte(&mut rest);
            budget = u32::try_from(take_varint(&mut rest)?)
                .map_err(|_| InvalidValue::new("the budget is not a number of 32 bits"))?;
        }
        while let Some(tag) = take_byte(&mut rest) {
            if tag != MODEL {
                return Err(InvalidValue::new(
                    "the configuration has a field that is not known here",
                ));
            }
            models.push(Part::of(take_block(&mut rest)?)?);
        }
        let parts = Self { budget, models };
        parts.check()?;
        // Numbers may be written in more bytes than they need; then what is joined would differ.
        if parts.encoded_len() != config.len() {
            return Err(InvalidValue::new(
                "the configuration is not in its shortest encoding",
            ));
        }
        Ok(parts)
    }

    /// The encoded configuration.
    #[must_use]
    pub fn join(&self) -> Bytes {
        let mut config = BytesMut::with_capacity(self.encoded_len());
        if self.budget != 0 {
            config.put_u8(BUDGET);
            encode_varint(u64::from(self.budget), &mut config);
        }
        for part in &self.models {
            config.put_u8(MODEL);
            encode_varint(part.model.len() as u64, &mut config);
            config.put_slice(&part.model);
        }
        config.freeze()
    }

    /// How many models there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// Ids of the models that are not the same in both, in order.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (mut ours, mut theirs) = (
            self.models.iter().peekable(),
            other.models.iter().peekable(),
        );
        let mut different = Vec::new();
        loop {
            let id = match (ours.peek(), theirs.peek()) {
                (None, None) => return different,
                (Some(part), None) | (None, Some(part)) => &part.id,
                (Some(our), Some(their)) => (&our.id).min(&their.id),
            };
            let id = id.clone();
            let our = ours.next_if(|part| part.id == id);
            let their = theirs.next_if(|part| part.id == id);
            if our.map(|part| &part.model) != their.map(|part| &part.model) {
                different.push(String::from_utf8_lossy(&id).into_owned());
            }
        }
    }

    /// What brings one that differs from this in no more than these models to this.
    #[must_use]
    pub fn change<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> wire::Change {
        let mut change = wire::Change {
            budget: self.budget,
            ..wire::Change::default()
        };
        for id in ids {
            match self.find(id.as_bytes()) {
                Ok(part) => change.upserts.push(part.model.clone()),
                Err(_) => change.removals.push(id.to_owned()),
            }
        }
        change
    }

    /// This, changed.
    pub fn changed(&self, change: wire::Change) -> Result<Self, InvalidValue> {
        let upserts: Result<Vec<Part>, InvalidValue> =
            change.upserts.into_iter().map(Part::of).collect();
        let upserts = upserts?;
        let ascending = upserts.is_sorted_by(|a, b| a.id < b.id);
        if !ascending || !change.removals.is_sorted_by(|a, b| a < b) {
            return Err(InvalidValue::new(
                "the models of a change are in order, each once",
            ));
        }
        let gone = |id: &[u8]| {
            let removed = change
                .removals
                .binary_search_by(|gone| gone.as_bytes().cmp(id));
            removed.is_ok()
                || upserts
                    .binary_search_by(|part| part.id.as_ref().cmp(id))
                    .is_ok()
        };
        let mut models: Vec<Part> = self
            .models
            .iter()
            .filter(|part| !gone(&part.id))
            .cloned()
            .collect();
        models.extend(upserts);
        // Two runs in order: what this sort is quick at.
        models.sort_by(|a, b| a.id.cmp(&b.id));
        let changed = Self {
            budget: change.budget,
            models,
        };
        changed.check()?;
        Ok(changed)
    }

    fn find(&self, id: &[u8]) -> Result<&Part, usize> {
        let at = self
            .models
            .binary_search_by(|part| part.id.as_ref().cmp(id))?;
        self.models.get(at).ok_or(at)
    }

    fn encoded_len(&self) -> usize {
        let budget = match self.budget {
            0 => 0,
            budget => 1 + encoded_len_varint(u64::from(budget)),
        };
        budget + self.models.iter().map(Part::encoded_len).sum::<usize>()
    }

    fn check(&self) -> Result<(), InvalidValue> {
        let (n, most) = (self.models.len(), limits::MODELS);
        if n > most {
            let message = format!("{n} models, at most {most} are allowed");
            return Err(InvalidValue::new(message));
        }
        match self.models.is_sorted_by(|a, b| a.id < b.id) {
            true => Ok(()),
            false => Err(InvalidValue::new("the models are not in order, each once")),
        }
    }
}

fn take_byte(rest: &mut Bytes) -> Option<u8> {
    let first = rest.first().copied()?;
    drop(rest.split_to(1));
    Some(first)
}

fn take_varint(rest: &mut Bytes) -> Result<u64, InvalidValue> {
    decode_varint(rest).map_err(|_| InvalidValue::new("a number is cut off"))
}

fn take_block(rest: &mut Bytes) -> Result<Bytes, InvalidValue> {
    let len = usize::try_from(take_varint(rest)?).unwrap_or(usize::MAX);
    if len > rest.len() {
        return Err(InvalidValue::new("a field is cut off"));
    }
    Ok(rest.split_to(len))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    /// Models by id, each with some content, and a budget.
    type Content = (u32, BTreeMap<String, u64>);

    fn encode((budget, models): &Content) -> Bytes {
        let models = models.iter().map(|(id, revision)| wire::Model {
            id: id.clone(),
            revision: *revision,
            ..wire::Model::default()
        });
        let config = wire::Config {
            budget: *budget,
            models: models.collect(),
        };
        config.encode_to_vec().into()
    }

    fn content() -> impl Strategy<Value = Content> {
        let models = proptest::collection::btree_map("[a-c/.-]{1,3}", 0..4_u64, 0..12);
        (0..300_u32, models)
    }

    fn parts(content: &Content) -> Parts {
        Parts::split(&encode(content)).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_split_joins_to_the_same_bytes(content in content()) {
            let config = encode(&content);
            prop_assert_eq!(Parts::split(&config).unwrap().join(), config);
        }

        #[test]
        fn a_snapshot_and_a_delta_make_the_next_snapshot_byte_for_byte(a in content(), b in content(), more in "[a-c]") {
            let (old, new) = (parts(&a), parts(&b));
            let mut ids = old.differences(&new);
            // That more than the difference is sent does no harm.
            ids.push(more);
            ids.sort();
            ids.dedup();
            let change = new.change(ids.iter().map(String::as_str));
            let change = wire::Change::decode(&change.encode_to_vec()[..]).unwrap();
            prop_assert_eq!(old.changed(change).unwrap().join(), encode(&b));
        }

        #[test]
        fn differences_are_those_and_no_others(a in content(), b in content()) {
            let mut ids: Vec<String> = a.1.keys().chain(b.1.keys()).cloned().collect();
            ids.sort();
            ids.dedup();
            ids.retain(|id| a.1.get(id) != b.1.get(id));
            prop_assert_eq!(parts(&a).differences(&parts(&b)), ids);
        }

        #[test]
        fn nothing_that_comes_from_outside_is_taken_amiss(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let bytes = Bytes::from(bytes);
            if let Ok(parts) = Parts::split(&bytes) {
                prop_assert_eq!(parts.join(), bytes);
            }
        }
    }

    #[test]
    fn what_another_encoder_wrote_is_refused() {
        let ordered = |ids: &[&str]| {
            let models = ids.iter().map(|id| wire::Model {
                id: (*id).to_owned(),
                ..wire::Model::default()
            });
            let config = wire::Config {
                budget: 1,
                models: models.collect(),
            };
            Bytes::from(config.encode_to_vec())
        };
        assert!(Parts::split(&ordered(&["a", "b"])).is_ok());
        for (what, config) in [
            ("out of order", ordered(&["b", "a"])),
            ("twice", ordered(&["a", "a"])),
            ("no id", ordered(&[""])),
            ("a long number", Bytes::from_static(&[BUDGET, 0x81, 0x00])),
            ("an unknown field", Bytes::from_static(&[0x18, 1])),
            ("cut off", ordered(&["a"]).slice(..4)),
        ] {
            assert!(Parts::split(&config).is_err(), "{what}");
        }
    }

    #[test]
    fn an_id_is_read_of_a_model_that_is_cut_off() {
        let model = wire::Model {
            id: "llama".to_owned(),
            aliases: vec!["l".to_owned()],
            ..wire::Model::default()
        };
        let whole = Bytes::from(model.encode_to_vec());
        let read = |end| model_id(&whole.slice(..end)).map(|id| id.to_string());
        assert_eq!(read(whole.len()).as_deref(), Some("llama"));
        assert_eq!(read(whole.len() - 1).as_deref(), Some("llama"));
        assert_eq!(read(6), None, "within the id");
        assert_eq!(read(0), None);
        assert_eq!(model_id(&Bytes::from_static(&[0x08, 1])), None, "a number");
    }

    #[test]
    fn a_change_out_of_order_is_refused() {
        let of = |id: &str| encode(&(0, BTreeMap::from([(id.to_owned(), 1)]))).slice(2..);
        let change = wire::Change {
            upserts: vec![of("b"), of("a")],
            ..wire::Change::default()
        };
        let empty = parts(&(0, BTreeMap::new()));
        assert!(empty.changed(change).is_err());
        let change = wire::Change {
            removals: vec!["b".to_owned(), "a".to_owned()],
            ..wire::Change::default()
        };
        assert!(empty.changed(change).is_err());
    }
}
