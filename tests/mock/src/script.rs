//! What a mock says instead of made-up tokens, told by whoever started it. It sees no connection and
//! must not block: it is asked on the way of each request.

use std::fmt;

/// Decides, request by request, what a mock answers.
pub trait Script: fmt::Debug + Send + Sync {
    /// A request with this prompt (the last message of a chat) is about to be answered with so many
    /// tokens. Their text, or none for the usual one.
    fn answer(&self, prompt: &str, tokens: u32) -> Option<Box<dyn Speech>>;
}

/// The text of one answer.
pub trait Speech: fmt::Debug + Send {
    /// The next token.
    fn token(&mut self) -> String;
}

/// What is said unless a script says otherwise.
#[derive(Debug, Default)]
pub(crate) struct Numbered(u32);

impl Speech for Numbered {
    fn token(&mut self) -> String {
        let text = format!("token{} ", self.0);
        self.0 = self.0.saturating_add(1);
        text
    }
}
