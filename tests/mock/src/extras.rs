//! What of a chat or a completion may be asked for besides its text: several choices, log probabilities, an echo,
//! a tool that must be called, JSON of a schema. It knows shapes, and nothing of when they are sent.

use serde_json::{Map, Value, json};

use crate::{kind::Kind, openai::Asked, script::Speech};

/// Most choices of one answer.
const MOST: u64 = 128;
/// How likely each token was.
const LIKELY: f64 = -0.5;

/// The extras of one answer.
#[derive(Debug)]
pub(crate) struct Extras {
    pub(crate) choices: u32,
    /// Log probabilities, with so many alternatives.
    logprobs: Option<u64>,
    echo: String,
    /// The tool that must be called.
    tool: Option<String>,
    /// What must be said.
    said: Option<String>,
}

impl Extras {
    pub(crate) fn of(kind: Kind, asked: &Asked) -> Self {
        let other = |name: &str| asked.other.get(name);
        let number = |name: &str| other(name).and_then(Value::as_u64);
        let is = |name: &str| other(name).and_then(Value::as_bool).unwrap_or(false);
        let prompts = match &asked.prompt {
            Some(Value::Array(prompts)) if prompts.iter().all(Value::is_string) => prompts.len(),
            _ => 1,
        };
        let choices = number("n").unwrap_or(1).saturating_mul(prompts as u64);
        let logprobs = match kind {
            Kind::Chat => is("logprobs").then(|| number("top_logprobs").unwrap_or(0)),
            _ => number("logprobs"),
        };
        let echo = kind == Kind::Completion && is("echo");
        let tool = at(other("tool_choice"), &["function", "name"]).and_then(Value::as_str);
        let schema = match tool {
            Some(name) => tools(asked).find_map(|tool| {
                let named = tool.get("name").and_then(Value::as_str) == Some(name);
                named.then(|| tool.get("parameters")).flatten()
            }),
            None => at(other("response_format"), &["json_schema", "schema"]),
        };
        let must = tool.is_some() || schema.is_some();
        Self {
            choices: u32::try_from(choices.clamp(1, MOST)).unwrap_or(1),
            logprobs,
            echo: if echo {
                asked.prompt().to_owned()
            } else {
                String::new()
            },
            tool: tool.map(str::to_owned),
            said: must.then(|| instance(schema.unwrap_or(&Value::Null)).to_string()),
        }
    }

    /// What must be said, if something must, and in how many tokens.
    pub(crate) fn speech(&self) -> Option<(u32, Box<dyn Speech>)> {
        let letters: Vec<char> = self.said.as_ref()?.chars().collect();
        let mut pieces: Vec<String> = letters
            .chunks(4)
            .map(|piece| piece.iter().collect())
            .collect();
        pieces.reverse();
        let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        Some((count, Box::new(Pieces(pieces))))
    }

    /// The choices of a whole answer.
    pub(crate) fn whole(&self, kind: Kind, id: &str, tokens: &[String]) -> Vec<Value> {
        let text = tokens.concat();
        let logprobs = self.logprobs(kind, tokens);
        let choice = |index| {
            let mut choice = json!({"index": index, "finish_reason": "stop", "stop_reason": null,
                "logprobs": logprobs});
            let (name, value) = match (kind, &self.tool) {
                (Kind::Completion, _) => ("text", json!(format!("{}{text}", self.echo))),
                (_, None) => ("message", json!({"role": "assistant", "content": text})),
                (_, Some(tool)) => {
                    let call = json!({"id": call_id(id), "type": "function",
                        "function": {"name": tool, "arguments": text}});
                    let message = json!({"role": "assistant", "content": "", "tool_calls": [call]});
                    ("message", message)
                }
            };
            if let Value::Object(fields) = &mut choice {
                fields.insert(name.to_owned(), value);
            }
            choice
        };
        (0..self.choices).map(choice).collect()
    }

    /// What a token of a stream adds to each choice, as one or two steps.
    pub(crate) fn deltas(&self, kind: Kind, id: &str, n: u32, text: &str) -> Vec<Value> {
        let arguments = |text: &str| json!([{"index": 0, "function": {"arguments": text}}]);
        match (kind, &self.tool) {
            (Kind::Completion, _) if n == 0 => vec![json!(format!("{}{text}", self.echo))],
            (Kind::Completion, _) => vec![json!(text)],
            (_, None) => vec![json!({"content": text})],
            (_, Some(_)) if n > 0 => vec![json!({"content": null, "tool_calls": arguments(text)})],
            (_, Some(tool)) => {
                let call = json!([{"id": call_id(id), "type": "function", "index": 0,
                    "function": {"name": tool}}]);
                vec![
                    json!({"content": null, "tool_calls": call}),
                    json!({"content": null, "tool_calls": arguments(text)}),
                ]
            }
        }
    }

    /// The log probabilities of some tokens, if they were asked for.
    pub(crate) fn logprobs(&self, kind: Kind, tokens: &[String]) -> Value {
        let Some(top) = self.logprobs else {
            return Value::Null;
        };
        if kind == Kind::Completion {
            let tops: Vec<Value> = tokens.iter().map(|token| json!({token: LIKELY})).collect();
            let likely = vec![LIKELY; tokens.len()];
            let offsets = vec![0; tokens.len()];
            return json!({"tokens": tokens, "token_logprobs": likely, "top_logprobs": tops,
                "text_offset": offsets});
        }
        let one =
            |token: &String| json!({"token": token, "logprob": LIKELY, "bytes": token.as_bytes()});
        let content = tokens.iter().map(|token| {
            let mut told = one(token);
            if let Value::Object(fields) = &mut told {
                let alternatives = (0..top.min(20)).map(|_| one(token)).collect();
                fields.insert("top_logprobs".to_owned(), Value::Array(alternatives));
            }
            told
        });
        json!({"content": content.collect::<Vec<_>>()})
    }
}

/// Why vLLM would not take a request, as far as the mock looks: the message, and the field.
pub(crate) fn refusal(kind: Kind, asked: &Asked) -> Option<(String, &'static str)> {
    let temperature = asked.other.get("temperature").and_then(Value::as_f64);
    if let Some(cold) = temperature.filter(|degrees| *degrees < 0.0) {
        return Some((
            format!("temperature must be non-negative, got {cold:?}."),
            "temperature",
        ));
    }
    if asked
        .other
        .get("top_p")
        .is_some_and(|share| !share.is_number() && !share.is_null())
    {
        let message = "1 validation error: Input should be a valid number";
        return Some((message.to_owned(), "body.top_p"));
    }
    let listed = asked.messages.as_ref().is_none_or(Value::is_array);
    (kind == Kind::Chat && !listed).then(|| {
        (
            "1 validation error: Input should be a valid list".to_owned(),
            "body.messages",
        )
    })
}

fn tools(asked: &Asked) -> impl Iterator<Item = &Value> {
    let tools = asked.other.get("tools").and_then(Value::as_array);
    tools
        .into_iter()
        .flatten()
        .filter_map(|tool| tool.get("function"))
}

fn at<'a>(value: Option<&'a Value>, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value?, |value, name| value.get(name))
}

fn call_id(id: &str) -> String {
    format!("chatcmpl-tool-{id}")
}

/// The least that a schema allows, of the schemas that anybody would ask a mock for.
fn instance(schema: &Value) -> Value {
    let first = schema.get("enum").and_then(|values| values.get(0));
    if let Some(value) = schema.get("const").or(first) {
        return value.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => json!("text"),
        Some("integer" | "number") => json!(0),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("null") => Value::Null,
        _ => {
            let required = schema.get("required").and_then(Value::as_array);
            let names = required.into_iter().flatten().filter_map(Value::as_str);
            let field = |name: &str| {
                let inner = at(Some(schema), &["properties", name]);
                (name.to_owned(), instance(inner.unwrap_or(&Value::Null)))
            };
            Value::Object(names.map(field).collect::<Map<_, _>>())
        }
    }
}

/// What must be said, last piece first.
#[derive(Debug)]
struct Pieces(Vec<String>);

impl Speech for Pieces {
    fn token(&mut self) -> String {
        self.0.pop().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_a_schema() {
        let schema = json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"enum": ["x", "y"]}, "b": {"type": "object"}, "c": {"type": "string"}}});
        assert_eq!(instance(&schema), json!({"a": "x", "b": {}}));
    }
}
