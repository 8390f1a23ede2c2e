//! Streams whose events have names: OpenAI's responses and Anthropic's messages. They end with an event of
//! their own.

use bytes::Bytes;
use serde_json::{Value, json};

/// One event with its name.
pub(crate) fn named(event: &Value) -> String {
    let name = event.get("type").and_then(Value::as_str);
    format!("event: {}\ndata: {event}\n\n", name.unwrap_or("message"))
}

fn all(events: &[Value]) -> Bytes {
    Bytes::from(events.iter().map(named).collect::<String>())
}

/// The whole of a response, at some stage.
pub(crate) fn response(id: &str, model: &str, status: &str, text: &str, tokens: u32) -> Value {
    let (output, usage) = match status {
        "completed" => (
            json!([item(id, "completed", text)]),
            json!({"input_tokens": 7, "output_tokens": tokens,
                "total_tokens": tokens.saturating_add(7),
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0,
                    "input_tokens_per_turn": [], "cached_tokens_per_turn": []},
                "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0,
                    "output_tokens_per_turn": [], "tool_output_tokens_per_turn": []}}),
        ),
        _ => (json!([]), Value::Null),
    };
    json!({"id": id, "created_at": 1, "object": "response", "model": model, "status": status,
        "output": output, "instructions": null, "metadata": null, "temperature": 1.0, "top_p": 1.0,
        "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "background": status == "queued",
        "incomplete_details": null, "max_output_tokens": tokens, "service_tier": "auto",
        "truncation": "disabled", "presence_penalty": 0.0, "frequency_penalty": 0.0, "usage": usage})
}

fn item(id: &str, status: &str, text: &str) -> Value {
    let content = match text {
        "" => json!([]),
        text => json!([part(text)]),
    };
    json!({"id": format!("msg_{id}"), "type": "message", "role": "assistant", "status": status,
        "content": content})
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": null})
}

/// Before the first token of a response.
pub(crate) fn response_opening(id: &str, model: &str) -> Bytes {
    let begun = response(id, model, "in_progress", "", 0);
    all(&[
        json!({"type": "response.created", "sequence_number": 0, "response": begun}),
        json!({"type": "response.in_progress", "sequence_number": 1, "response": begun}),
        json!({"type": "response.output_item.added", "sequence_number": 2, "output_index": 0,
            "item": item(id, "in_progress", "")}),
        json!({"type": "response.content_part.added", "sequence_number": 3, "output_index": 0,
            "content_index": 0, "item_id": format!("msg_{id}"), "part": part("")}),
    ])
}

/// A token of a response.
pub(crate) fn response_delta(id: &str, n: u32, text: &str) -> Bytes {
    all(&[
        json!({"type": "response.output_text.delta", "sequence_number": n.saturating_add(4),
            "output_index": 0, "content_index": 0, "item_id": format!("msg_{id}"), "delta": text,
            "logprobs": []}),
    ])
}

/// After the last token of a response.
pub(crate) fn response_closing(id: &str, tokens: u32, text: &str) -> Bytes {
    let (at, item_id) = (tokens.saturating_add(4), format!("msg_{id}"));
    all(&[
        json!({"type": "response.output_text.done", "sequence_number": at, "output_index": 0,
            "content_index": 0, "item_id": item_id, "text": text, "logprobs": []}),
        json!({"type": "response.content_part.done", "sequence_number": at.saturating_add(1),
            "output_index": 0, "content_index": 0, "item_id": item_id, "part": part(text)}),
        json!({"type": "response.output_item.done", "sequence_number": at.saturating_add(2),
            "output_index": 0, "item": item(id, "completed", text)}),
    ])
}

/// The end of a response.
pub(crate) fn response_end(whole: &Value, tokens: u32) -> Bytes {
    let at = tokens.saturating_add(7);
    all(&[json!({"type": "response.completed", "sequence_number": at, "response": whole})])
}

/// The whole of a message.
pub(crate) fn message(id: &str, model: &str, text: &str, tokens: u32) -> Value {
    json!({"id": id, "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 7, "output_tokens": tokens}})
}

/// Before the first token of a message.
pub(crate) fn message_opening(id: &str, model: &str) -> Bytes {
    all(&[
        json!({"type": "message_start", "message": {"id": id, "type": "message", "role": "assistant",
            "model": model, "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": 7, "output_tokens": 0}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    ])
}

/// A token of a message.
pub(crate) fn message_delta(text: &str) -> Bytes {
    all(&[json!({"type": "content_block_delta", "index": 0,
        "delta": {"type": "text_delta", "text": text}})])
}

/// After the last token of a message.
pub(crate) fn message_closing(tokens: u32) -> Bytes {
    all(&[
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"input_tokens": 7, "output_tokens": tokens}}),
    ])
}

/// The end of a message.
pub(crate) fn message_end() -> Bytes {
    all(&[json!({"type": "message_stop"})])
}

/// What is wrong with a request for a message.
pub(crate) fn error(kind: &str, message: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": message}})
}
