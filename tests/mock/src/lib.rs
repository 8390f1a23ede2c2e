//! A mock vLLM: the OpenAI surface with made-up tokens, uvicorn's connection habits, faults on
//! demand, and exact counts of connections and requests.
//!
//! It owns its sockets and tasks and leaves none behind. It must not know the gateway.

mod config;
mod connection;
mod extras;
mod form;
mod kind;
mod openai;
mod responses;
mod script;
mod serve;
mod shapes;
mod socket;
mod stats;
mod stream;
mod tls;
mod typed;

pub use config::{Faults, MockConfig, MockTls, Speaks};
pub use script::{Script, Speech};
pub use serve::MockServer;
pub use stats::MockStats;
