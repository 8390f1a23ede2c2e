//! The shapes of OpenAI's answers, as vLLM fills them in.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    extras::Extras,
    form::Form,
    kind::Kind,
    script::{Numbered, Script, Speech},
    shapes::shape,
    typed,
};

/// What an engine calls itself.
const FINGERPRINT: &str = "vllm-mock";

/// What of a request matters to the mock.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    #[serde(default)]
    pub(crate) background: bool,
    /// Its response is not to be kept.
    store: Option<bool>,
    pub(crate) previous_response_id: Option<String>,
    #[serde(default)]
    stream_options: StreamOptions,
    encoding_format: Option<String>,
    pub(crate) input: Option<Value>,
    pub(crate) messages: Option<Value>,
    pub(crate) prompt: Option<Value>,
    /// Whatever else.
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, Value>,
    /// Of a form.
    #[serde(skip)]
    file_bytes: usize,
}

impl Asked {
    /// What a form asks for.
    pub(crate) fn form(form: &Form) -> Result<Self, String> {
        let text = |name: &str| form.get(name).map(str::to_owned);
        let language = text("language").unwrap_or_default();
        Ok(Self {
            model: text("model").unwrap_or_default(),
            stream: text("stream").is_some_and(|stream| stream.eq_ignore_ascii_case("true")),
            other: BTreeMap::from([("language".to_owned(), json!(language))]),
            file_bytes: form.file_bytes.ok_or("no file")?,
            ..Self::default()
        })
    }

    /// What it is about: the last message of a chat, the prompt, or the input.
    pub(crate) fn prompt(&self) -> &str {
        let messages = self.messages.as_ref().and_then(Value::as_array);
        let last = messages.and_then(|messages| messages.last()?.get("content"));
        let text = last.or(self.prompt.as_ref()).or(self.input.as_ref());
        text.and_then(Value::as_str).unwrap_or_default()
    }

    /// Its response is kept.
    pub(crate) fn stores(&self) -> bool {
        self.store.unwrap_or(true)
    }
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// One answer in the making.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) tokens: u32,
    pub(crate) asked: Asked,
    speech: Box<dyn Speech>,
    said: String,
    extras: Extras,
}

impl Answer {
    pub(crate) fn new(
        kind: Kind,
        asked: Asked,
        id: String,
        tokens: u32,
        script: Option<&dyn Script>,
    ) -> Self {
        let wanted = asked.max_tokens.or(asked.max_completion_tokens);
        let tokens = wanted.or(asked.max_output_tokens).unwrap_or(tokens);
        let speech = script.and_then(|script| script.answer(asked.prompt(), tokens));
        let extras = Extras::of(kind, &asked);
        let (tokens, speech) = match (speech, extras.speech()) {
            (Some(speech), _) => (tokens, speech),
            (None, Some(must)) => must,
            (None, None) => (tokens, Box::new(Numbered::default()) as Box<dyn Speech>),
        };
        Self {
            kind,
            id,
            tokens,
            asked,
            speech,
            said: String::new(),
            extras,
        }
    }

    pub(crate) fn wants_stream(&self) -> bool {
        self.asked.stream && self.kind.generates()
    }

    fn token(&mut self) -> String {
        let text = self.speech.token();
        if self.kind == Kind::Responses {
            self.said.push_str(&text);
        }
        text
    }

    /// The answer as a whole.
    pub(crate) fn whole(&mut self) -> Value {
        if let Some(shape) = shape(self.kind, &self.id, &self.asked) {
            return shape;
        }
        let tokens: Vec<String> = (0..self.tokens).map(|_| self.speech.token()).collect();
        let model = self.asked.model.as_str();
        let object = match self.kind {
            Kind::Embedding => return self.embeddings(),
            Kind::Responses => {
                let text = tokens.concat();
                return typed::response(&self.id, model, "completed", &text, self.tokens);
            }
            Kind::Messages => {
                return typed::message(&self.id, model, &tokens.concat(), self.tokens);
            }
            // As many seconds as the file has bytes: who sent it can see that it arrived whole.
            Kind::Transcription => {
                return json!({"text": tokens.concat(),
                    "usage": {"type": "duration", "seconds": self.asked.file_bytes}});
            }
            Kind::Translation => return json!({"text": tokens.concat()}),
            Kind::Completion => "text_completion",
            _ => "chat.completion",
        };
        let choices = self.extras.whole(self.kind, &self.id, &tokens);
        json!({"id": self.id, "object": object, "created": 1, "model": model,
            "system_fingerprint": FINGERPRINT, "choices": choices, "usage": self.usage()})
    }

    /// What comes before the first token, if anything does.
    pub(crate) fn opening(&self) -> Option<Bytes> {
        let model = self.asked.model.as_str();
        match self.kind {
            Kind::Chat => {
                let delta = json!({"role": "assistant", "content": ""});
                Some(self.chunks(&[delta], None, &Value::Null))
            }
            Kind::Responses => Some(typed::response_opening(&self.id, model)),
            Kind::Messages => Some(typed::message_opening(&self.id, model)),
            _ => None,
        }
    }

    /// The event of a token.
    pub(crate) fn event(&mut self, n: u32) -> Bytes {
        let text = self.token();
        let last = (n + 1 == self.tokens).then_some("stop");
        match self.kind {
            Kind::Responses => typed::response_delta(&self.id, n, &text),
            Kind::Messages => typed::message_delta(&text),
            Kind::Transcription | Kind::Translation => {
                data(&json!({"id": self.id, "object": "transcription.chunk",
                "created": 1, "model": self.asked.model,
                "choices": [{"delta": {"content": text}, "finish_reason": last}]}))
            }
            kind => {
                let deltas = self.extras.deltas(kind, &self.id, n, &text);
                let logprobs = self.extras.logprobs(kind, &[text]);
                self.chunks(&deltas, last, &logprobs)
            }
        }
    }

    /// What comes after the last token, if it was asked for or belongs there.
    pub(crate) fn closing(&self) -> Option<Bytes> {
        let object = match self.kind {
            Kind::Responses => {
                return Some(typed::response_closing(&self.id, self.tokens, &self.said));
            }
            Kind::Messages => return Some(typed::message_closing(self.tokens)),
            Kind::Chat => "chat.completion.chunk",
            _ => "text_completion",
        };
        self.asked.stream_options.include_usage.then(|| {
            data(
                &json!({"id": self.id, "object": object, "created": 1, "model": self.asked.model,
                "choices": [], "usage": self.usage(), "system_fingerprint": FINGERPRINT}),
            )
        })
    }

    /// What says that the stream is complete.
    pub(crate) fn end(&self) -> Bytes {
        match self.kind {
            Kind::Responses => typed::response_end(&self.response(), self.tokens),
            Kind::Messages => typed::message_end(),
            _ => Bytes::from_static(b"data: [DONE]\n\n"),
        }
    }

    /// Of a stream of a response: what is kept of it.
    pub(crate) fn response(&self) -> Value {
        let (id, model) = (&self.id, &self.asked.model);
        typed::response(id, model, "completed", &self.said, self.tokens)
    }

    /// An engine that dies in the middle of a stream.
    pub(crate) fn death(&self) -> Bytes {
        const DIED: &str = "EngineCore died";
        match self.kind {
            Kind::Messages => Bytes::from(typed::named(&json!({"type": "error",
                "error": {"type": "internal_error", "message": DIED}}))),
            _ => data(&error(500, "InternalServerError", DIED)),
        }
    }

    /// Events of a chat or a completion: each delta for each choice; with the last one the reason to end.
    fn chunks(&self, deltas: &[Value], finish_reason: Option<&str>, logprobs: &Value) -> Bytes {
        let (object, name) = match self.kind {
            Kind::Completion => ("text_completion", "text"),
            _ => ("chat.completion.chunk", "delta"),
        };
        let last = finish_reason.is_some() && !self.asked.stream_options.include_usage;
        let mut events = Vec::new();
        for (at, delta) in deltas.iter().enumerate() {
            let reason = finish_reason.filter(|_| at + 1 == deltas.len());
            for index in 0..self.extras.choices {
                let mut chunk = json!({"id": self.id, "object": object, "created": 1,
                    "model": self.asked.model, "choices": [{"index": index, name: delta,
                    "logprobs": logprobs, "finish_reason": reason}]});
                if let (Value::Object(fields), true) = (&mut chunk, last) {
                    fields.insert("system_fingerprint".to_owned(), json!(FINGERPRINT));
                }
                events.extend_from_slice(&data(&chunk));
            }
        }
        Bytes::from(events)
    }

    fn usage(&self) -> Value {
        let made = self.tokens.saturating_mul(self.extras.choices);
        json!({"prompt_tokens": 7, "completion_tokens": made, "total_tokens": made.saturating_add(7)})
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
            "data": data, "usage": {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7, "prompt_tokens_details": null}})
    }
}

/// An event without a name.
pub(crate) fn data(event: &Value) -> Bytes {
    Bytes::from(format!("data: {event}\n\n"))
}

/// vLLM's shape of an error.
pub(crate) fn error(status: u16, kind: &str, message: &str) -> Value {
    error_of(status, kind, message, None)
}

/// The same, about a field.
pub(crate) fn error_of(status: u16, kind: &str, message: &str, param: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": status}})
}

/// The list of models.
pub(crate) fn models(models: &[String]) -> Value {
    let data: Vec<Value> = models
        .iter()
        .map(|id| {
            json!({"id": id, "object": "model", "created": 1, "owned_by": "vllm",
            "root": id, "parent": null, "max_model_len": 4096, "permission": [{
                "id": "modelperm-1", "object": "model_permission", "created": 1,
                "allow_create_engine": false, "allow_sampling": true, "allow_logprobs": true,
                "allow_search_indices": false, "allow_view": true, "allow_fine_tuning": false,
                "organization": "*", "group": null, "is_blocking": false}]})
        })
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
