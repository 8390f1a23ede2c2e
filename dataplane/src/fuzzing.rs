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
}
