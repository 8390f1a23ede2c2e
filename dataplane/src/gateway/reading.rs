//! What the gateway reads of a body: the model, whether a stream is wanted, and how much. It is the same for
//! JSON and for forms, and it is all that routing, limits and accounts may go by.
//!
//! Engines do not agree on what a body means that says something twice: Python takes the last of two keys, Go
//! ignores letter case, others take the first. So a body in which any of these keys stands twice, however it is
//! written, is refused, and nothing reaches an upstream that it could understand otherwise than the gateway.

use std::ops::Range;

use bytes::Bytes;

use super::error::GatewayError;
use crate::pool::{Edit, RequestBody};

/// A key that means something to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Model,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    N,
    BestOf,
    PreviousResponse,
    /// Where a model is served, and with which key, is configured and not for clients to say.
    Forbidden,
}

/// Every key that is read, as it must be written.
const KEYS: [(&str, Key); 13] = [
    ("model", Key::Model),
    ("stream", Key::Stream),
    ("stream_options", Key::StreamOptions),
    ("max_tokens", Key::MaxTokens),
    ("max_completion_tokens", Key::MaxCompletionTokens),
    ("max_output_tokens", Key::MaxOutputTokens),
    ("n", Key::N),
    ("best_of", Key::BestOf),
    ("previous_response_id", Key::PreviousResponse),
    ("api_base", Key::Forbidden),
    ("base_url", Key::Forbidden),
    ("api_key", Key::Forbidden),
    ("user_config", Key::Forbidden),
];
/// Longer keys than this are none of them, whatever their letters fold to.
const LONGEST: usize = 64;

/// Which of them were there.
#[derive(Debug, Default)]
pub(super) struct Seen(u16);

impl Seen {
    /// Which key this is, if it is one that is read. Refuses one that was there before, one that only some
    /// engines would take for one of them, and those that are not for clients to say.
    pub(super) fn key(&mut self, key: &str) -> Result<Option<(&'static str, Key)>, GatewayError> {
        let Some((at, name, kind)) = find(key) else {
            return Ok(None);
        };
        if key != name {
            return Err(GatewayError::OtherwiseWritten { name });
        }
        if kind == Key::Forbidden {
            return Err(GatewayError::NotForClients { name });
        }
        let bit = 1 << at;
        if self.0 & bit != 0 {
            return Err(GatewayError::Twice { name });
        }
        self.0 |= bit;
        Ok(Some((name, kind)))
    }
}

/// The key that this one is, or that an engine which ignores letter case would take it for.
fn find(key: &str) -> Option<(usize, &'static str, Key)> {
    if key.len() > LONGEST {
        return None;
    }
    let same = |name: &str| match key.is_ascii() {
        true => key.eq_ignore_ascii_case(name),
        // Go's folding knows two letters beyond ASCII that are equal to one of it.
        false => {
            let fold = |c: char| match c {
                '\u{17f}' => 's',
                '\u{212a}' => 'k',
                c => c.to_ascii_lowercase(),
            };
            key.chars().map(fold).eq(name.chars())
        }
    };
    let keys = KEYS.iter().enumerate();
    keys.filter(|(_, (name, _))| name.len() <= key.len())
        .find(|(_, (name, _))| same(name))
        .map(|(at, (name, kind))| (at, *name, *kind))
}

/// The model of a request, and where its name stands in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelField {
    /// The name, unescaped.
    pub(crate) name: String,
    /// The bytes to put another name in place of; in JSON, the quotes included.
    pub(crate) at: Range<usize>,
    /// In quotes.
    pub(crate) quoted: bool,
}

/// How much a request may make of what it asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_tokens: Option<u64>,
    pub(crate) max_completion_tokens: Option<u64>,
    pub(crate) max_output_tokens: Option<u64>,
    pub(crate) n: Option<u64>,
    pub(crate) best_of: Option<u64>,
}

impl Limits {
    /// Where the value of this key is kept.
    pub(super) fn of(&mut self, key: Key) -> Option<&mut Option<u64>> {
        Some(match key {
            Key::MaxTokens => &mut self.max_tokens,
            Key::MaxCompletionTokens => &mut self.max_completion_tokens,
            Key::MaxOutputTokens => &mut self.max_output_tokens,
            Key::N => &mut self.n,
            Key::BestOf => &mut self.best_of,
            _ => return None,
        })
    }
}

/// What was read of a body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) model: Option<ModelField>,
    pub(crate) stream: bool,
    pub(crate) limits: Limits,
    /// `stream_options.include_usage`.
    pub(crate) include_usage: bool,
    /// Where the value of `stream_options` stands.
    pub(crate) stream_options: Option<Range<usize>>,
    /// The response that this one goes on from.
    pub(crate) previous_response: Option<String>,
}

/// Tokens that a request is likely to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Likely {
    pub(super) prompt: u64,
    pub(super) completion: u64,
}

impl Likely {
    /// Both.
    pub(super) fn all(self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}

/// Bytes of English text that make one token, about.
const BYTES_PER_TOKEN: u64 = 4;

impl Reading {
    /// Tokens that a request with a body of so many bytes is likely to use: those of its prompt, and those of its answer
    /// as far as it says how many it wants.
    pub(super) fn likely_tokens(&self, body: usize) -> Likely {
        let Limits {
            max_tokens,
            max_completion_tokens,
            max_output_tokens,
            n,
            best_of,
        } = self.limits;
        // Which of them counts is for engines to say.
        let most = max_completion_tokens.max(max_tokens).max(max_output_tokens);
        let answers = best_of.max(n).unwrap_or(1).max(1);
        Likely {
            prompt: body as u64 / BYTES_PER_TOKEN,
            completion: most.unwrap_or(0).saturating_mul(answers),
        }
    }

    /// The body as the upstream must see it: with the model's own id where the client used an alias, and what is asked
    /// for beside that, otherwise untouched. Nothing of it is copied.
    pub(crate) fn body_for(&self, id: &str, body: &Bytes, more: Option<&Edit>) -> RequestBody {
        let field = self.model.as_ref().filter(|field| field.name != id);
        // What may stand in an id needs no escapes.
        let model = field.map(|field| Edit {
            at: field.at.clone(),
            text: match field.quoted {
                true => Bytes::from(format!("\"{id}\"")),
                false => Bytes::copy_from_slice(id.as_bytes()),
            },
        });
        let mut edits = [model.as_ref(), more];
        edits.sort_by_key(|edit| edit.map(|edit| edit.at.start));
        RequestBody::edited(body, edits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_limits_the_greatest_counts() {
        let limits = Limits {
            max_tokens: Some(4_000),
            max_completion_tokens: Some(1),
            max_output_tokens: Some(20),
            n: Some(2),
            best_of: None,
        };
        let reading = Reading {
            limits,
            ..Reading::default()
        };
        let likely = reading.likely_tokens(400);
        assert_eq!((likely.prompt, likely.completion), (100, 8_000));
    }

    #[test]
    fn keys_are_known_however_they_are_written() {
        let mut seen = Seen::default();
        assert!(matches!(seen.key("messages"), Ok(None)));
        assert!(matches!(seen.key("n"), Ok(Some(("n", Key::N)))));
        assert!(matches!(
            seen.key("n"),
            Err(GatewayError::Twice { name: "n" })
        ));
        for odd in [
            "Model",
            "MODEL",
            "\u{17f}tream",
            "max_to\u{212a}ens",
            "API_KEY",
        ] {
            let found = seen.key(odd);
            assert!(
                matches!(found, Err(GatewayError::OtherwiseWritten { .. })),
                "{odd}"
            );
        }
        assert!(matches!(
            seen.key("api_base"),
            Err(GatewayError::NotForClients { .. })
        ));
        assert!(matches!(seen.key("mod\u{e9}l"), Ok(None)));
        assert!(matches!(seen.key(" model"), Ok(None)));
    }
}
