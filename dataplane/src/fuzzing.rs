<<<<<<< HEAD
//! What fuzzers call: bytes from outside, through the code that reads them, to what is decided. Each function panics
//! if something was decided that must not be. They do no IO and keep nothing.

use crate::gateway::fuzzing;

/// Bytes of a client, as HTTP/1.1.
pub fn request(bytes: &[u8]) {
    fuzzing::request(bytes);
}

/// Bytes of an upstream, as HTTP/1.1.
pub fn answer(bytes: &[u8]) {
    fuzzing::answer(bytes);
}

/// The body of a request.
pub fn json(bytes: &[u8]) {
    fuzzing::json(bytes);
}

/// The body of a request that is a form.
pub fn multipart(bytes: &[u8]) {
    let head = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: gw\r\ncontent-type: multipart/form-data; boundary=x\r\n\
         content-length: {}\r\n\r\n",
        bytes.len()
    );
    fuzzing::request(&[head.as_bytes(), bytes].concat());
}

/// A stream of events from an upstream.
pub fn sse(bytes: &[u8]) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    fuzzing::answer(&[head.as_bytes(), bytes].concat());
=======
//! What a fuzzer drives: one function for each parser of bytes from outside. They panic where the parser is wrong.

use crate::gateway::fuzz_sse;

/// The first bytes say where the rest, a stream, is cut. What is read of it must not depend on the cuts, and be what a
/// reading of it line by line says.
pub fn sse(data: &[u8]) {
    let Some((cuts, text)) = data.split_at_checked(8.min(data.len() / 2)) else {
        return;
    };
    let mut at = 0;
    let cuts: Vec<usize> = cuts
        .iter()
        .map(|cut| {
            at += usize::from(*cut);
            at
        })
        .collect();
    fuzz_sse(text, &cuts);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_taken(data in prop::collection::vec(any::<u8>(), 0..300)) {
            super::sse(&data);
        }
    }
>>>>>>> streams
}
