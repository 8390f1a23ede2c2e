//! The attack catalogue: bytes that a client or an upstream sends, what has to come of them, and 10,000 mutations of
//! all of it. What goes upstream is read by a parser that forgives nothing and is not the gateway's.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::too_many_lines,
    reason = "in a test, a wrong assumption is to fail at once; tables are long; seeds are for who reads along"
)]

mod corpora;
mod framing;
mod http2;
mod mutate;
mod scene;
mod slow;
mod strict;
mod upstream;
