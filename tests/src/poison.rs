//! Poison: an encoded message in which one field is blank, zero, huge, of the wrong kind, cut off, out of its enum, or
//! there too often. Each field of the descriptor has its turn, at each depth, whether the message has it or not.
//!
//! Works on bytes, because what is wanted can be said by no encoder.

use forebay_proto::wire;
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint},
};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// Deeper than any message of ours.
const DEEPEST: usize = 8;
/// Longer than any text may be.
const LONG: usize = 70_000;
/// More than there may be of anything.
const MANY: usize = 300;
/// The number of no field.
const UNKNOWN: u32 = 19_001;

/// A message with one field that is not as it should be.
#[derive(Debug, Clone)]
pub struct Poison {
    /// Which field, and how.
    pub what: String,
    /// The encoded message.
    pub bytes: Vec<u8>,
}

/// All of it, made of an encoded message of this type (`forebay.v1.Model`).
#[must_use]
pub fn poison(name: &str, message: &[u8]) -> Vec<Poison> {
    let files = FileDescriptorSet::decode(wire::DESCRIPTOR_SET).expect("our own descriptors");
    let mut made = Vec::new();
    let mut take = |what: String, bytes: Vec<u8>| made.push(Poison { what, bytes });
    walk(&files, name, message, DEEPEST, &mut take);
    made
}

/// One field of an encoded message: its number, and key and value as they stand.
struct Field {
    number: u32,
    encoded: Vec<u8>,
    /// What stands between, if it has a length.
    inner: Option<Vec<u8>>,
}

fn walk(
    files: &FileDescriptorSet,
    name: &str,
    message: &[u8],
    depth: usize,
    take: &mut dyn FnMut(String, Vec<u8>),
) {
    let fields = fields(message);
    for descriptor in &find(files, name).field {
        let number = number(descriptor);
        let there: Vec<&Field> = fields
            .iter()
            .filter(|field| field.number == number)
            .collect();
        for (what, value) in values(descriptor, &there) {
            let what = format!("{}: {what}", descriptor.name());
            take(what, with(&fields, number, value));
        }
        if descriptor.r#type() != Type::Message || depth == 0 {
            continue;
        }
        let inner = descriptor.type_name().trim_start_matches('.');
        let first = there.first().and_then(|field| field.inner.clone());
        let rest: Vec<u8> = there
            .iter()
            .skip(1)
            .flat_map(|f| f.encoded.clone())
            .collect();
        walk(
            files,
            inner,
            &first.unwrap_or_default(),
            depth - 1,
            &mut |what, bytes| {
                let mut value = block(number, &bytes);
                value.extend_from_slice(&rest);
                take(
                    format!("{}.{what}", descriptor.name()),
                    with(&fields, number, value),
                );
            },
        );
    }
    for (kind, value) in strangers(UNKNOWN) {
        take(
            format!("an unknown field, {kind}"),
            with(&fields, UNKNOWN, value),
        );
    }
}

/// The message with this in the place of a field, in order of number.
fn with(fields: &[Field], number: u32, value: Vec<u8>) -> Vec<u8> {
    let before = fields.iter().filter(|field| field.number < number);
    let after = fields.iter().filter(|field| field.number > number);
    let mut bytes: Vec<u8> = before.flat_map(|field| field.encoded.clone()).collect();
    bytes.extend(value);
    bytes.extend(after.flat_map(|field| field.encoded.clone()));
    bytes
}

fn values(descriptor: &FieldDescriptorProto, there: &[&Field]) -> Vec<(String, Vec<u8>)> {
    let number = number(descriptor);
    let as_it_is: Vec<u8> = there
        .iter()
        .flat_map(|field| field.encoded.clone())
        .collect();
    let mut values = vec![("twice".to_owned(), as_it_is.repeat(2))];
    if !there.is_empty() {
        values.push(("blank".to_owned(), Vec::new()));
    }
    let (fitting, bad) = match descriptor.r#type() {
        Type::String | Type::Bytes | Type::Message => (WireType::LengthDelimited, texts(number)),
        Type::Double => (WireType::SixtyFourBit, doubles(number)),
        _ => (WireType::Varint, numbers(number)),
    };
    values.extend(
        bad.into_iter()
            .map(|(what, value)| (what.to_owned(), value)),
    );
    if descriptor.r#type() == Type::Enum {
        values.push(("out of its enum".to_owned(), varint(number, 9_999)));
    }
    if descriptor.label() == Label::Repeated {
        let one = there
            .first()
            .map_or_else(|| block(number, b"x"), |field| field.encoded.clone());
        values.push(("too many".to_owned(), one.repeat(MANY)));
    }
    let others = strangers(number);
    let others = others
        .into_iter()
        .filter(|(kind, _)| *kind != format!("{fitting:?}"));
    values.extend(others.map(|(kind, value)| (format!("as {kind}"), value)));
    values
}

fn numbers(number: u32) -> Vec<(&'static str, Vec<u8>)> {
    let mut endless = key(number, WireType::Varint);
    endless.extend([0xff; 11]);
    let mut cut = key(number, WireType::Varint);
    cut.push(0x80);
    vec![
        ("zero", varint(number, 0)),
        ("one", varint(number, 1)),
        ("huge", varint(number, u64::MAX)),
        ("more than 32 bits", varint(number, 1 << 32)),
        ("the largest of 31 bits", varint(number, (1 << 31) - 1)),
        ("endless", endless),
        ("cut off", cut),
    ]
}

fn texts(number: u32) -> Vec<(&'static str, Vec<u8>)> {
    let mut cut = key(number, WireType::LengthDelimited);
    cut.extend([50, b'a', b'b']);
    let mut beyond = key(number, WireType::LengthDelimited);
    encode_varint(u64::MAX, &mut beyond);
    vec![
        ("zero", block(number, b"")),
        ("huge", block(number, &[b'x'; LONG])),
        ("no text", block(number, &[0xff, 0xfe, 0x00])),
        ("control characters", block(number, b"\x1b[2J\x00\r\n")),
        ("a path", block(number, b"../../../etc/passwd")),
        ("cut off", cut),
        ("longer than memory", beyond),
    ]
}

fn doubles(number: u32) -> Vec<(&'static str, Vec<u8>)> {
    let double = |value: f64| {
        let mut bytes = key(number, WireType::SixtyFourBit);
        bytes.extend(value.to_le_bytes());
        bytes
    };
    let mut cut = key(number, WireType::SixtyFourBit);
    cut.extend([0; 3]);
    vec![
        ("zero", double(0.0)),
        ("no number", double(f64::NAN)),
        ("huge", double(f64::INFINITY)),
        ("negative", double(-1.0)),
        ("cut off", cut),
    ]
}

/// A value of each kind that there is on the wire.
fn strangers(number: u32) -> Vec<(String, Vec<u8>)> {
    let of = |kind: WireType, value: &[u8]| {
        let mut bytes = key(number, kind);
        bytes.extend_from_slice(value);
        (format!("{kind:?}"), bytes)
    };
    vec![
        of(WireType::Varint, &[7]),
        of(WireType::SixtyFourBit, &[7; 8]),
        of(WireType::LengthDelimited, &[1, b'x']),
        of(WireType::ThirtyTwoBit, &[7; 4]),
        of(WireType::StartGroup, &[]),
        of(WireType::EndGroup, &[]),
    ]
}

fn fields(message: &[u8]) -> Vec<Field> {
    let mut rest = message;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let begin = rest;
        let (number, kind) = decode_key(&mut rest).expect("a key");
        let inner = match kind {
            WireType::Varint => decode_varint(&mut rest).map(|_| None),
            WireType::LengthDelimited => decode_varint(&mut rest).map(|len| {
                let (inner, after) = rest.split_at(usize::try_from(len).expect("a length"));
                rest = after;
                Some(inner.to_vec())
            }),
            WireType::SixtyFourBit => {
                rest = rest.split_at(8).1;
                Ok(None)
            }
            other => panic!("no message of ours has {other:?}"),
        };
        let (encoded, _) = begin.split_at(begin.len() - rest.len());
        fields.push(Field {
            number,
            encoded: encoded.to_vec(),
            inner: inner.expect("a field"),
        });
    }
    fields
}

fn find<'a>(files: &'a FileDescriptorSet, name: &str) -> &'a DescriptorProto {
    let mut messages = files.file.iter().flat_map(|file| {
        let named = file.message_type.iter();
        named.map(|message| (format!("{}.{}", file.package(), message.name()), message))
    });
    let found = messages.find(|(full, _)| full == name);
    found.expect("a message of ours").1
}

fn number(descriptor: &FieldDescriptorProto) -> u32 {
    u32::try_from(descriptor.number()).expect("a number")
}

fn key(number: u32, kind: WireType) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(number, kind, &mut bytes);
    bytes
}

fn varint(number: u32, value: u64) -> Vec<u8> {
    let mut bytes = key(number, WireType::Varint);
    encode_varint(value, &mut bytes);
    bytes
}

fn block(number: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = key(number, WireType::LengthDelimited);
    encode_varint(value.len() as u64, &mut bytes);
    bytes.extend_from_slice(value);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_at_every_depth_has_its_turn() {
        let model = wire::Model {
            id: "m".to_owned(),
            ..wire::Model::default()
        };
        let all = poison("forebay.v1.Model", &model.encode_to_vec());
        assert!(all.len() > 800, "{}", all.len());
        for field in [
            "id: huge",
            "endpoints.tls.ca_pem: no text",
            "endpoints.protocol: out of its enum",
            "endpoints: too many",
            "resolved_pool.queue.max_wait.nanos: more than 32 bits",
            "resolved_timeouts.total: cut off",
            "pool.coverage: no number",
        ] {
            assert!(all.iter().any(|poison| poison.what == field), "{field}");
        }
        let blank = all
            .iter()
            .find(|poison| poison.what == "id: blank")
            .unwrap();
        assert_eq!(blank.bytes, [0_u8; 0]);
        let whole = all
            .iter()
            .find(|poison| poison.what == "id: twice")
            .unwrap();
        assert_eq!(wire::Model::decode(&whole.bytes[..]).unwrap().id, "m");
        assert!(
            all.iter()
                .filter(|p| wire::Model::decode(&p.bytes[..]).is_err())
                .count()
                > 300
        );
    }
}
