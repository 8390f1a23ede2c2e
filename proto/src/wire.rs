//! The generated wire types. Nothing here is written by hand; nothing inside the planes uses these
//! beyond the edge where they are converted.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

tonic::include_proto!("forebay.v1");

/// The encoded descriptor set, comments included, for reflection and for JSON.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forebay.bin"));
