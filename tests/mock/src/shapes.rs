//! The answers that are made in one piece: scores, classes, tokens and the like, as vLLM shapes them. What
//! they say is made up.

use serde_json::{Value, json};

use crate::{kind::Kind, openai::Asked};

/// How many things a field holds.
fn count(field: Option<&Value>) -> usize {
    match field {
        Some(Value::Array(items)) => items.len(),
        Some(_) => 1,
        None => 0,
    }
}

/// The answer to what makes no tokens. `None` for what does.
pub(crate) fn shape(kind: Kind, id: &str, asked: &Asked) -> Option<Value> {
    let (model, other) = (asked.model.as_str(), |name: &str| asked.other.get(name));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7});
    Some(match kind {
        Kind::CountTokens => {
            json!({"input_tokens": 7, "context_management": {"original_input_tokens": 7}})
        }
        Kind::Rerank => {
            let documents = other("documents").and_then(Value::as_array);
            let results = documents.into_iter().flatten().enumerate();
            let results = results.map(|(index, text)| {
                json!({"index": index, "document": {"text": text, "multi_modal": null},
                    "relevance_score": 1.0 / (index as f64 + 2.0)})
            });
            json!({"id": id, "model": model,
                "usage": {"prompt_tokens": 7, "total_tokens": 7}, "results": results.collect::<Vec<_>>()})
        }
        Kind::Score => {
            let pairs = count(other("text_2").or(other("documents"))).max(count(other("text_1")));
            let data = listed(
                pairs,
                |index| json!({"index": index, "object": "score", "score": 0.5}),
            );
            json!({"id": id, "object": "list", "created": 1, "model": model, "data": data, "usage": usage})
        }
        Kind::Classify => {
            let data = listed(
                count(asked.input.as_ref()),
                |index| json!({"index": index, "label": "LABEL_0", "probs": [0.75, 0.25], "num_classes": 2}),
            );
            json!({"id": id, "object": "list", "created": 1, "model": model, "data": data, "usage": usage})
        }
        Kind::Pooling => {
            let data = listed(
                count(asked.input.as_ref()),
                |index| json!({"index": index, "object": "pooling", "data": [0.5, -0.25, 0.125, 1.0]}),
            );
            json!({"id": id, "object": "list", "created": 1, "model": model, "data": data, "usage": usage})
        }
        Kind::Tokenize => {
            let tokens: Vec<usize> = (0..asked.prompt().split_whitespace().count()).collect();
            json!({"count": tokens.len(), "max_model_len": 4096, "tokens": tokens, "token_strs": null})
        }
        Kind::Detokenize => {
            let words = listed(count(other("tokens")), |at| json!(format!("token{at}")));
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            json!({"prompt": words.join(" ")})
        }
        _ => return None,
    })
}

fn listed(count: usize, entry: impl Fn(usize) -> Value) -> Vec<Value> {
    (0..count).map(entry).collect()
}
