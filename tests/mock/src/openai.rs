//! The shapes of OpenAI's answers, as vLLM fills them in.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::script::{Numbered, Script, Speech};

/// What of a request matters to the mock.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Asked {
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) stream: bool,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) max_completion_tokens: Option<u32>,
    #[serde(default)]
    stream_options: StreamOptions,
    encoding_format: Option<String>,
    input: Option<Value>,
    messages: Option<Value>,
    prompt: Option<Value>,
}

impl Asked {
    /// What it is about: the last message of a chat, or the prompt.
    fn prompt(&self) -> &str {
        let messages = self.messages.as_ref().and_then(Value::as_array);
        let last = messages.and_then(|messages| messages.last()?.get("content"));
        let text = last.or(self.prompt.as_ref()).and_then(Value::as_str);
        text.unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Which path an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
    Embedding,
}

impl Kind {
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completion),
            "/v1/embeddings" => Some(Self::Embedding),
            _ => None,
        }
    }
}

/// One answer in the making.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) tokens: u32,
    asked: Asked,
    speech: Box<dyn Speech>,
}

impl Answer {
    pub(crate) fn new(
        kind: Kind,
        asked: Asked,
        request_id: &str,
        tokens: u32,
        script: Option<&dyn Script>,
    ) -> Self {
        let prefix = if kind == Kind::Chat {
            "chatcmpl"
        } else {
            "cmpl"
        };
        let wanted = asked.max_tokens.or(asked.max_completion_tokens);
        let tokens = wanted.unwrap_or(tokens);
        let speech = script.and_then(|script| script.answer(asked.prompt(), tokens));
        Self {
            kind,
            id: format!("{prefix}-{request_id}"),
            tokens,
            asked,
            speech: speech.unwrap_or_else(|| Box::new(Numbered::default())),
        }
    }

    pub(crate) fn wants_stream(&self) -> bool {
        self.asked.stream && self.kind != Kind::Embedding
    }

    /// The answer as a whole.
    pub(crate) fn whole(&mut self) -> Value {
        let text: String = (0..self.tokens).map(|_| self.speech.token()).collect();
        let choice = match self.kind {
            Kind::Chat => json!({"index": 0, "finish_reason": "stop", "logprobs": null,
                "message": {"role": "assistant", "content": text}}),
            Kind::Completion => json!({"index": 0, "finish_reason": "stop", "logprobs": null,
                "text": text}),
            Kind::Embedding => return self.embeddings(),
        };
        let object = if self.kind == Kind::Chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        json!({"id": self.id, "object": object, "created": 1, "model": self.asked.model,
            "choices": [choice], "usage": self.usage()})
    }

    /// The event before the first token, if there is one.
    pub(crate) fn opening(&self) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (self.kind == Kind::Chat).then(|| self.chunk(&delta, None))
    }

    /// The event of a token.
    pub(crate) fn event(&mut self, n: u32) -> Value {
        let text = self.speech.token();
        let last = (n + 1 == self.tokens).then_some("stop");
        match self.kind {
            Kind::Chat => self.chunk(&json!({"content": text}), last),
            _ => json!({"id": self.id, "object": "text_completion", "created": 1,
                "model": self.asked.model,
                "choices": [{"index": 0, "text": text, "finish_reason": last}]}),
        }
    }

    /// The event after the last token, if it was asked for.
    pub(crate) fn closing(&self) -> Option<Value> {
        self.asked.stream_options.include_usage.then(|| {
            let object = if self.kind == Kind::Chat {
                "chat.completion.chunk"
            } else {
                "text_completion"
            };
            json!({"id": self.id, "object": object, "created": 1, "model": self.asked.model,
                "choices": [], "usage": self.usage()})
        })
    }

    fn chunk(&self, delta: &Value, finish_reason: Option<&str>) -> Value {
        json!({"id": self.id, "object": "chat.completion.chunk", "created": 1,
            "model": self.asked.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null,
                "finish_reason": finish_reason}]})
    }

    fn usage(&self) -> Value {
        json!({"prompt_tokens": 7, "completion_tokens": self.tokens,
            "total_tokens": self.tokens.saturating_add(7)})
    }

    fn embeddings(&self) -> Value {
        let inputs = match &self.asked.input {
            Some(Value::Array(inputs)) => inputs.len(),
            _ => 1,
        };
        let vector = [0.5_f32, -0.25, 0.125, 1.0];
        let embedding = match self.asked.encoding_format.as_deref() {
            Some("base64") => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(base64(&bytes))
            }
            _ => json!(vector),
        };
        let data: Vec<Value> = (0..inputs)
            .map(|index| json!({"object": "embedding", "index": index, "embedding": embedding}))
            .collect();
        json!({"id": self.id, "object": "list", "created": 1, "model": self.asked.model,
            "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}})
    }
}

/// vLLM's shape of an error.
pub(crate) fn error(status: u16, kind: &str, message: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": status}})
}

/// The list of models.
pub(crate) fn models(models: &[String]) -> Value {
    let data: Vec<Value> = models
        .iter()
        .map(|id| json!({"id": id, "object": "model", "created": 1, "owned_by": "vllm"}))
        .collect();
    json!({"object": "list", "data": data})
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |n: u32| {
        LETTERS
            .get((n & 63) as usize)
            .copied()
            .map_or('=', char::from)
    };
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        text.push(letter(bits >> 18));
        text.push(letter(bits >> 12));
        text.push(if chunk.len() > 1 {
            letter(bits >> 6)
        } else {
            '='
        });
        text.push(if chunk.len() > 2 { letter(bits) } else { '=' });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_base64() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
