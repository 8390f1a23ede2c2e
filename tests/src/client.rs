//! A client of the gateway that tells a clean end of a stream from a cut one.

use std::{net::SocketAddr, time::Duration};

use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

const LONGEST: Duration = Duration::from_secs(60);

/// Asks one gateway.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// What a chat asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chat {
    /// The answer in one piece.
    Whole,
    /// The answer as a stream.
    Stream,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With a whole answer; a stream with its `[DONE]`.
    Well,
    /// With this status.
    Status(u16, String),
    /// After its head, before its end.
    Cut(String),
    /// Without an answer.
    NoAnswer(String),
}

impl Client {
    /// Of the gateway at this address.
    #[must_use]
    pub fn new(gateway: SocketAddr) -> Self {
        let http = reqwest::Client::builder()
            .timeout(LONGEST)
            .no_proxy()
            .build()
            .expect("an HTTP client");
        Self {
            http,
            base: format!("http://{gateway}"),
        }
    }

    /// A request to this path.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.base))
    }

    /// A request to this path.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    /// A chat with this model, not yet sent.
    pub fn chat(&self, model: &str, chat: Chat, tokens: u32) -> RequestBuilder {
        self.post("/v1/chat/completions").json(&json!({
            "model": model,
            "stream": chat == Chat::Stream,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "hello"}],
        }))
    }

    /// The status of a short chat with this model; none without an answer.
    pub async fn status(&self, model: &str) -> Option<StatusCode> {
        let answer = self.chat(model, Chat::Whole, 1).send().await.ok()?;
        Some(answer.status())
    }

    /// Makes a chat and tells how it ended.
    pub async fn finish(&self, model: &str, chat: Chat, tokens: u32) -> Ended {
        let answer = match self.chat(model, chat, tokens).send().await {
            Ok(answer) => answer,
            Err(error) => return Ended::NoAnswer(format!("{error:?}")),
        };
        ended(answer, chat).await
    }
}

async fn ended(answer: Response, chat: Chat) -> Ended {
    let status = answer.status();
    let text = match answer.text().await {
        Ok(text) => text,
        Err(error) => return Ended::Cut(format!("{error:?}")),
    };
    if !status.is_success() {
        return Ended::Status(status.as_u16(), text);
    }
    let whole = match chat {
        Chat::Whole => serde_json::from_str::<Value>(&text)
            .is_ok_and(|v| v.get("choices").is_some_and(Value::is_array)),
        Chat::Stream => text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""),
    };
    match whole {
        true => Ended::Well,
        false => Ended::Cut(text),
    }
}
