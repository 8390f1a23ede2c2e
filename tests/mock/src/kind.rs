//! What the mock is asked for, by path. It knows the paths of vLLM and nothing of their answers.

/// Which path an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
    Embedding,
    Responses,
    Messages,
    CountTokens,
    Rerank,
    Score,
    Classify,
    Pooling,
    Tokenize,
    Detokenize,
    Transcription,
    Translation,
    Speech,
}

impl Kind {
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completion,
            "/v1/embeddings" => Self::Embedding,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/rerank" | "/v1/rerank" | "/v2/rerank" => Self::Rerank,
            "/score" | "/v1/score" => Self::Score,
            "/classify" => Self::Classify,
            "/pooling" => Self::Pooling,
            "/tokenize" => Self::Tokenize,
            "/detokenize" => Self::Detokenize,
            "/v1/audio/transcriptions" => Self::Transcription,
            "/v1/audio/translations" => Self::Translation,
            "/v1/audio/speech" => Self::Speech,
            _ => return None,
        })
    }

    /// Its body is a form with a file.
    pub(crate) fn is_form(self) -> bool {
        matches!(self, Self::Transcription | Self::Translation)
    }

    /// It makes tokens, all at once or one by one.
    pub(crate) fn generates(self) -> bool {
        use Kind as K;
        self.is_form() || matches!(self, K::Chat | K::Completion | K::Responses | K::Messages)
    }

    /// What its ids begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Completion => "cmpl",
            Self::Embedding => "embd",
            Self::Messages => "msg",
            Self::Rerank => "rerank",
            Self::Score => "score",
            Self::Classify => "classify",
            Self::Pooling => "pool",
            _ => "trsc",
        }
    }
}
