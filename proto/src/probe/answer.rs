//! What an endpoint's answer to `GET /v1/models` says. Nothing of its text goes on but names that are ones.

use serde::Deserialize;

use super::ServedName;
use crate::limits;

/// What is asked.
pub const PATH: &str = "/v1/models";

/// What was found, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It lists the model.
    Ok,
    /// It cannot be reached.
    Unreachable,
    /// It lists others.
    Mismatch,
    /// Its address must not be dialled.
    Blocked,
    /// It answered with something else.
    Unknown,
    /// It was not asked.
    NotProbed,
}

impl Verdict {
    /// The word for it in metrics and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unreachable => "unreachable",
            Self::Mismatch => "mismatch",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
            Self::NotProbed => "not_probed",
        }
    }

    /// True if an endpoint of which this is known is not used where that is enforced.
    #[must_use]
    pub fn condemns(self) -> bool {
        match self {
            Self::Mismatch | Self::Blocked => true,
            Self::Ok | Self::Unreachable | Self::Unknown | Self::NotProbed => false,
        }
    }
}

/// What was found at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// In one word.
    pub verdict: Verdict,
    /// In a sentence.
    pub message: String,
    /// What it lists instead; bounded.
    pub listed: Vec<ServedName>,
}

impl Outcome {
    /// One without a list.
    #[must_use]
    pub fn new(verdict: Verdict, message: impl Into<String>) -> Self {
        Self {
            verdict,
            message: message.into(),
            listed: Vec::new(),
        }
    }

    /// It cannot be said what it serves.
    #[must_use]
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, message)
    }
}

/// A list of models in OpenAI's shape, as vLLM, SGLang and llama.cpp give it. What else they say is not read.
#[derive(Deserialize)]
struct List {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    /// Of llama.cpp.
    aliases: Option<Vec<String>>,
}

impl Entry {
    fn names(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.id).chain(self.aliases.iter().flatten())
    }
}

/// Judges a whole answer by whether it lists this name.
#[must_use]
pub fn judge(expected: &str, status: u16, body: &[u8]) -> Outcome {
    match status {
        200 => {}
        300..=399 => {
            return Outcome::unknown(format!(
                "it answered {PATH} with status {status}; a probe follows no redirect"
            ));
        }
        401 | 403 => {
            return Outcome::unknown(format!(
                "it answered {PATH} with status {status}; a probe carries no credentials"
            ));
        }
        _ => {
            return Outcome::unknown(format!("it answered {PATH} with status {status}"));
        }
    }
    // Not the parser's own words: they would repeat the body.
    let Ok(list) = serde_json::from_slice::<List>(body) else {
        let what = "its answer to /v1/models is no list of models in OpenAI's form";
        return Outcome::unknown(what);
    };
    let mut names = list.data.iter().flat_map(Entry::names);
    if let Some(name) = names.find(|name| *name == expected) {
        return Outcome::new(Verdict::Ok, format!("it serves `{name}`"));
    }
    let names = list.data.iter().flat_map(Entry::names);
    let mut listed: Vec<ServedName> = names
        .filter_map(|name| ServedName::new(name).ok())
        .take(limits::LISTED_NAMES)
        .collect();
    listed.sort();
    listed.dedup();
    let told = listed.iter().map(|name| format!("`{name}`"));
    let told = told.collect::<Vec<_>>().join(", ");
    let message = match (list.data.len(), told.as_str()) {
        (0, _) => format!("it lists no model, and not `{expected}`"),
        (1, told) if !told.is_empty() => format!("it serves {told}, and not `{expected}`"),
        (n, told) => format!("it lists {n} models ({told}), and not `{expected}`"),
    };
    Outcome {
        verdict: Verdict::Mismatch,
        message,
        listed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VLLM: &str = r#"{"object":"list","data":[{"id":"llama-3","object":"model","created":1750000000,
        "owned_by":"vllm","root":"/models/llama-3","parent":null,"max_model_len":8192,
        "permission":[{"id":"modelperm-1","object":"model_permission","allow_view":true}]},
        {"id":"sql-lora","object":"model","root":"/loras/sql","parent":"llama-3"}]}"#;
    const SGLANG: &str = r#"{"object":"list","data":[{"id":"/models/qwen","object":"model","created":1,
        "owned_by":"sglang","root":"/models/qwen","max_model_len":32768}]}"#;
    const LLAMA_CPP: &str = r#"{"models":[{"name":"m.gguf","model":"m.gguf","capabilities":["completion"]}],
        "object":"list","data":[{"id":"m.gguf","aliases":["phi"],"tags":[],"object":"model","owned_by":"llamacpp",
        "meta":{"vocab_type":1,"n_vocab":128256}}]}"#;

    fn verdict(name: &str, status: u16, body: &str) -> Verdict {
        judge(name, status, body.as_bytes()).verdict
    }

    #[test]
    fn the_lists_of_engines_are_read() {
        for (body, name) in [
            (VLLM, "llama-3"),
            (VLLM, "sql-lora"),
            (SGLANG, "/models/qwen"),
            (LLAMA_CPP, "m.gguf"),
            (LLAMA_CPP, "phi"),
        ] {
            assert_eq!(verdict(name, 200, body), Verdict::Ok, "{name}");
            assert_eq!(verdict("other", 200, body), Verdict::Mismatch, "{name}");
        }
        // Neither another's root nor part of a name is a name.
        assert_eq!(verdict("/models/llama-3", 200, VLLM), Verdict::Mismatch);
        assert_eq!(verdict("llama", 200, VLLM), Verdict::Mismatch);
        assert_eq!(verdict("LLAMA-3", 200, VLLM), Verdict::Mismatch);
    }

    #[test]
    fn a_mismatch_says_what_is_there_instead() {
        let found = judge("a", 200, VLLM.as_bytes());
        let listed: Vec<_> = found.listed.iter().map(ToString::to_string).collect();
        assert_eq!(listed, ["llama-3", "sql-lora"]);
        assert!(found.message.contains("not `a`"), "{}", found.message);
        assert_eq!(
            verdict("a", 200, r#"{"data":[]}"#),
            Verdict::Mismatch,
            "serves nothing"
        );
    }

    #[test]
    fn what_is_no_list_says_nothing_of_the_model_and_is_not_repeated() {
        for body in [
            "",
            "secret",
            "[]",
            "{}",
            r#"{"data":"secret"}"#,
            r#"{"data":[{"name":"secret"}]}"#,
            r#"{"data":[{"id":7}]}"#,
            r#"{"error":{"message":"secret"}}"#,
        ] {
            let found = judge("a", 200, body.as_bytes());
            assert_eq!(found.verdict, Verdict::Unknown, "{body}");
            assert!(!found.message.contains("secret"), "{}", found.message);
        }
        for status in [204, 302, 401, 403, 404, 500, 503] {
            assert_eq!(
                verdict("llama-3", status, VLLM),
                Verdict::Unknown,
                "{status}"
            );
        }
    }

    #[test]
    fn what_is_no_name_is_not_passed_on_and_of_names_only_so_many() {
        let entries: Vec<_> = (0..1_000)
            .map(|n| format!(r#"{{"id":"n{n}"}},{{"id":"<b>secret {n}</b>"}}"#))
            .collect();
        let body = format!(r#"{{"data":[{}]}}"#, entries.join(","));
        let found = judge("a", 200, body.as_bytes());
        assert_eq!(found.listed.len(), limits::LISTED_NAMES);
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        let long = format!(r#"{{"data":[{{"id":"{}"}}]}}"#, "x".repeat(100_000));
        let found = judge("a", 200, long.as_bytes());
        assert_eq!((found.verdict, found.listed.len()), (Verdict::Mismatch, 0));
        assert!(found.message.len() < 200, "{}", found.message);
    }

    proptest! {
        #[test]
        fn any_body_is_judged(status in 0_u16..1_000, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let found = judge("a", status, &body);
            prop_assert!(found.verdict != Verdict::Ok);
        }
    }
}
