//! How the streams of a path look: how they say that they are over, and how an error is told in one.

use bytes::Bytes;
use serde_json::{Value, json};

use super::sse::Dialect;

/// The form of a path's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamStyle {
    /// `data:` alone, `[DONE]` at the end.
    Chat,
    /// As `Chat`, or typed.
    Audio,
    /// OpenAI's typed events.
    Responses,
    /// Anthropic's typed events.
    Messages,
}

impl StreamStyle {
    pub(super) fn dialect(self) -> Dialect {
        match self {
            Self::Chat => Dialect::Plain,
            Self::Audio => Dialect::Either,
            Self::Responses | Self::Messages => Dialect::Typed,
        }
    }

    /// An error as an event of such a stream. The text stands in JSON: what it quotes cannot end the event.
    pub(super) fn error_event(self, message: &str, code: &str) -> Bytes {
        let error =
            json!({"message": message, "type": "server_error", "param": null, "code": code});
        self.event_of(error, message, code)
    }

    /// An upstream's own error object as an event.
    pub(super) fn passed_error(self, error: Value) -> Bytes {
        let text = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
        let message = text("message").unwrap_or_else(|| error.to_string());
        let code = text("code").unwrap_or_else(|| "upstream_error".to_owned());
        self.event_of(error, &message, &code)
    }

    fn event_of(self, error: Value, message: &str, code: &str) -> Bytes {
        let data = match self {
            Self::Chat | Self::Audio => json!({ "error": error }),
            // Typed, for those who go by the type; the SDKs raise what stands in `error`.
            Self::Responses => json!({"type": "error", "code": code, "message": message,
                "param": null, "error": error}),
            Self::Messages => json!({"type": "error",
                "error": {"type": "api_error", "message": message}}),
        };
        Bytes::from(match self {
            Self::Chat | Self::Audio => format!("data: {data}\n\n"),
            Self::Responses | Self::Messages => format!("event: error\ndata: {data}\n\n"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sse::Sse, *};

    #[test]
    fn an_error_is_one_event_whatever_its_text() {
        for style in [
            StreamStyle::Chat,
            StreamStyle::Audio,
            StreamStyle::Responses,
            StreamStyle::Messages,
        ] {
            let nasty = "x\n\ndata: [DONE]\n\n\r\"}";
            let upstreams = json!({"message": nasty, "code": 500});
            for event in [
                style.error_event(nasty, "c\n\n"),
                style.passed_error(upstreams),
            ] {
                let (mut sse, mut events) = (Sse::new(style.dialect()), 0);
                sse.push(&event, |_| events += 1).unwrap();
                assert_eq!(events, 1);
                assert!(sse.seen().error && !sse.seen().ended && sse.is_between_events());
                let text = std::str::from_utf8(&event).unwrap();
                let (_, data) = text.split_once("data: ").unwrap();
                let data: Value = serde_json::from_str(data).unwrap();
                assert_eq!(data["error"]["message"], nasty);
            }
        }
    }
}
