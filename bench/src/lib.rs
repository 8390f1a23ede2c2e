//! What `forebay bench` runs. It measures and reports; it must not know how a command line looks.

pub mod seed;
pub mod zero_loss;
