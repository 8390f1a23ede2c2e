//! What the JSON of an answer says of it: tokens, why it ended, whether it is an error. Read in passing.
//!
//! A scanner that is fed in pieces, cut anywhere, and keeps a few bytes. It follows the few paths on which
//! engines say these things, skips everything else, and checks nothing: that is for whoever reads the answer.
//! A key or a value that is escaped is not one of those looked for; no engine writes them so. It must not
//! keep, change or delay a byte of what passes.

use wide::u8x16;

const LANE: usize = 16;

/// How many tokens an answer took, as its engine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Of the prompt.
    pub(crate) prompt: Option<u64>,
    /// Of the completion.
    pub(crate) completion: Option<u64>,
}

impl Usage {
    /// What was said later counts.
    pub(super) fn update(&mut self, later: Self) {
        self.prompt = later.prompt.or(self.prompt);
        self.completion = later.completion.or(self.completion);
    }

    pub(super) fn is_known(&self) -> bool {
        self.prompt.is_some() || self.completion.is_some()
    }
}

/// Why an engine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
    ToolCalls,
    ContentFilter,
    Abort,
    Other,
}

impl Finish {
    fn of(word: &[u8]) -> Self {
        match word {
            b"stop" | b"end_turn" | b"stop_sequence" | b"completed" => Self::Stop,
            b"length" | b"max_tokens" | b"max_output_tokens" => Self::Length,
            b"tool_calls" | b"tool_use" | b"function_call" => Self::ToolCalls,
            b"content_filter" | b"refusal" => Self::ContentFilter,
            b"abort" | b"cancelled" => Self::Abort,
            _ => Self::Other,
        }
    }

    /// The metric's label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::Abort => "abort",
            Self::Other => "other",
        }
    }
}

/// What a JSON text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    pub(super) usage: Usage,
    /// Of a choice.
    pub(super) finish: Option<Finish>,
    /// Of a message or a response.
    pub(super) stop: Option<Finish>,
    /// There is an `error` that is not null.
    pub(super) error: bool,
    /// There are `choices`, and none in them.
    pub(super) no_choices: bool,
    /// Its `type`.
    pub(super) kind: Short,
}

/// A short text; a longer one is none that is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short {
    bytes: [u8; 40],
    len: u8,
    /// Too long, or escaped.
    odd: bool,
}

impl Default for Short {
    fn default() -> Self {
        Self {
            bytes: [0; 40],
            len: 0,
            odd: false,
        }
    }
}

impl PartialEq for Short {
    fn eq(&self, other: &Self) -> bool {
        self.odd == other.odd && self.get() == other.get()
    }
}

impl Eq for Short {}

impl Short {
    pub(super) fn push(&mut self, more: &[u8]) {
        let start = usize::from(self.len);
        match self.bytes.get_mut(start..start + more.len()) {
            Some(room) => {
                room.copy_from_slice(more);
                self.len = u8::try_from(start + more.len()).unwrap_or(self.len);
            }
            None => self.odd = true,
        }
    }

    /// As much of it as makes this many bytes in all.
    pub(super) fn push_some(&mut self, more: &[u8], most: usize) {
        let room = most.saturating_sub(self.len.into()).min(more.len());
        self.push(more.get(..room).unwrap_or_default());
    }

    pub(super) fn clear(&mut self) {
        (self.len, self.odd) = (0, false);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0 && !self.odd
    }

    /// Empty if it is too long.
    pub(super) fn get(&self) -> &[u8] {
        let text = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        if self.odd { &[] } else { text }
    }
}

/// Where in the text a value stands, as far as that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// Nowhere of interest.
    #[default]
    Other,
    Root,
    Usage,
    Choices,
    Choice,
    /// `response`, `message` or `delta`.
    Nested,
    /// `incomplete_details`.
    Details,
}

impl Place {
    fn has_keys(self) -> bool {
        !matches!(self, Self::Other | Self::Choices)
    }

    /// What a container is that is the value of this key here.
    fn child(self, key: &[u8], opened: u8) -> Self {
        match (self, key, opened) {
            (Self::Root | Self::Nested, b"usage", b'{') => Self::Usage,
            (Self::Root | Self::Nested, b"incomplete_details", b'{') => Self::Details,
            (Self::Root, b"choices", b'[') => Self::Choices,
            (Self::Root, b"response" | b"message" | b"delta", b'{') => Self::Nested,
            (Self::Choices, _, b'{') => Self::Choice,
            _ => Self::Other,
        }
    }

    /// Whether the text of this key's value is looked at.
    fn wants(self, key: &[u8]) -> bool {
        match self {
            Self::Usage => matches!(
                key,
                b"prompt_tokens" | b"completion_tokens" | b"input_tokens" | b"output_tokens"
            ),
            Self::Choice => key == b"finish_reason",
            Self::Root => matches!(key, b"type" | b"stop_reason" | b"status"),
            Self::Nested => matches!(key, b"stop_reason" | b"status"),
            Self::Details => key == b"reason",
            Self::Other | Self::Choices => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Between,
    Key,
    Text,
    /// A number or a word.
    Scalar,
}

/// Deepest level at which anything is of interest.
const LEVELS: usize = 3;

/// The scanner.
#[derive(Debug, Default)]
pub(super) struct JsonScan {
    facts: Facts,
    depth: usize,
    places: [Place; LEVELS],
    place: Place,
    state: State,
    /// The next string is a key.
    key_next: bool,
    key: Short,
    /// The value that is being read, if it is wanted.
    value: Short,
    wanted: bool,
    escaped: bool,
    closed: bool,
}

impl JsonScan {
    /// What the whole text says.
    pub(super) fn all(text: &[u8]) -> Facts {
        let mut scan = Self::default();
        scan.push(text);
        *scan.facts()
    }

    /// What was said so far.
    pub(super) fn facts(&mut self) -> &Facts {
        self.end_scalar();
        &self.facts
    }

    /// True if the outermost object was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The next piece of the text.
    pub(super) fn push(&mut self, text: &[u8]) {
        let mut rest = text;
        while !rest.is_empty() {
            let used = match self.state {
                State::Key | State::Text => self.string(rest),
                State::Scalar => self.scalar(rest),
                State::Between => self.between(rest),
            };
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    fn between(&mut self, rest: &[u8]) -> usize {
        let skipped = match self.place {
            Place::Other if self.depth > 0 => uninteresting(rest),
            _ => 0,
        };
        let Some(byte) = rest.get(skipped) else {
            return skipped;
        };
        match *byte {
            b'"' if self.key_next => {
                self.key.clear();
                self.state = State::Key;
            }
            b'"' => {
                self.begin_value(b'"');
                self.state = State::Text;
            }
            b'{' | b'[' => self.open(*byte),
            b'}' | b']' => self.close(),
            b',' => {
                self.key.clear();
                self.key_next = self.place.has_keys();
            }
            b':' => self.key_next = false,
            b' ' | b'\t' | b'\n' | b'\r' => {}
            _ if self.place == Place::Other => {}
            byte => {
                self.begin_value(byte);
                self.state = State::Scalar;
                return skipped;
            }
        }
        skipped + 1
    }

    fn begin_value(&mut self, first: u8) {
        match self.place {
            Place::Root if self.key.get() == b"error" => self.facts.error |= first != b'n',
            Place::Choices => self.facts.no_choices = false,
            _ => {}
        }
        self.wanted = self.place.wants(self.key.get());
        self.value.clear();
    }

    fn open(&mut self, byte: u8) {
        self.begin_value(byte);
        let place = match (self.depth, byte) {
            (0, b'{') => Place::Root,
            (0, _) => Place::Other,
            _ => self.place.child(self.key.get(), byte),
        };
        self.facts.no_choices |= place == Place::Choices;
        if let Some(slot) = self.places.get_mut(self.depth) {
            *slot = place;
            self.place = place;
        } else {
            self.place = Place::Other;
        }
        self.depth += 1;
        self.key.clear();
        self.key_next = self.place.has_keys();
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.closed |= self.depth == 0;
        let outer = self.depth.checked_sub(1);
        let outer = outer.and_then(|level| self.places.get(level));
        self.place = outer.copied().unwrap_or_default();
        self.key.clear();
        self.key_next = false;
    }

    fn string(&mut self, rest: &[u8]) -> usize {
        if std::mem::take(&mut self.escaped) {
            return 1;
        }
        let end = memchr::memchr2(b'"', b'\\', rest);
        let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let escape = end.and_then(|end| rest.get(end)) == Some(&b'\\');
        match self.state {
            State::Key => keep(&mut self.key, text, escape),
            _ if self.wanted => keep(&mut self.value, text, escape),
            _ => {}
        }
        let Some(end) = end else { return rest.len() };
        self.escaped = escape;
        if !escape {
            if self.state == State::Text {
                self.end_text();
            }
            self.state = State::Between;
        }
        end + 1
    }

    fn end_text(&mut self) {
        if !std::mem::take(&mut self.wanted) {
            return;
        }
        let word = self.value.get();
        match (self.place, self.key.get()) {
            (Place::Root, b"type") => self.facts.kind = self.value,
            (Place::Choice, _) => self.facts.finish = Some(Finish::of(word)),
            // What is under way, or has its reason elsewhere, is told by the same key.
            (_, b"status") if word != b"completed" => {}
            (Place::Root | Place::Nested | Place::Details, _) => {
                self.facts.stop = Some(Finish::of(word));
            }
            _ => {}
        }
    }

    fn scalar(&mut self, rest: &[u8]) -> usize {
        let ends = |byte: &u8| b",]}: \t\r\n\"[{".contains(byte);
        let end = rest.iter().position(ends).unwrap_or(rest.len());
        if self.wanted {
            self.value.push(rest.get(..end).unwrap_or_default());
        }
        if end < rest.len() {
            self.end_scalar();
        }
        end
    }

    fn end_scalar(&mut self) {
        if self.state != State::Scalar {
            return;
        }
        self.state = State::Between;
        if !std::mem::take(&mut self.wanted) || self.place != Place::Usage {
            return;
        }
        let number = std::str::from_utf8(self.value.get()).ok();
        let number = number.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(number) = number.and_then(|text| text.parse().ok()) else {
            return;
        };
        let usage = &mut self.facts.usage;
        match self.key.get() {
            b"prompt_tokens" | b"input_tokens" => usage.prompt = Some(number),
            _ => usage.completion = Some(number),
        }
    }
}

fn keep(into: &mut Short, text: &[u8], escape: bool) {
    into.push(text);
    into.odd |= escape;
}

/// How many bytes stand before the next bracket or quote.
fn uninteresting(text: &[u8]) -> usize {
    let (lanes, rest) = text.as_chunks::<LANE>();
    let mut at = 0;
    for lane in lanes {
        let lane = u8x16::from(*lane);
        // `[` and `{`, and `]` and `}`, differ in this bit alone.
        let folded = lane | u8x16::splat(0x20);
        let brackets = folded.simd_eq(u8x16::splat(b'{')) | folded.simd_eq(u8x16::splat(b'}'));
        let found = (brackets | lane.simd_eq(u8x16::splat(b'"'))).to_bitmask();
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += LANE;
    }
    let interesting = |byte: &u8| matches!(byte, b'"' | b'[' | b'{' | b']' | b'}');
    at + rest.iter().position(interesting).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn usage(prompt: u64, completion: u64) -> Usage {
        Usage {
            prompt: Some(prompt),
            completion: Some(completion),
        }
    }

    #[test]
    fn what_engines_say_is_found() {
        let chat = json!({"id": "x", "choices": [{"index": 0, "message": {"content":
            "say \"usage\": {\"prompt_tokens\": 9}"}, "finish_reason": "length", "stop_reason": null}],
            "usage": {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1, "completion_tokens": 99}}});
        let facts = JsonScan::all(chat.to_string().as_bytes());
        assert_eq!(facts.usage, usage(7, 5));
        assert_eq!(facts.finish, Some(Finish::Length));
        assert!(!facts.error && !facts.no_choices);

        let closing =
            br#"{ "choices" : [ ] , "usage" : { "prompt_tokens" : 7 , "completion_tokens":5 } }"#;
        let facts = JsonScan::all(closing);
        assert!(facts.no_choices);
        assert_eq!(facts.usage, usage(7, 5));

        let response = json!({"type": "response.completed", "response": {"status": "completed",
            "error": null, "usage": {"input_tokens": 3, "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 1}}}});
        let facts = JsonScan::all(response.to_string().as_bytes());
        assert_eq!(facts.usage, usage(3, 4));
        assert_eq!(facts.stop, Some(Finish::Stop));
        assert_eq!(facts.kind.get(), b"response.completed");
        assert!(!facts.error, "{facts:?}");

        let incomplete = json!({"response": {"status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"}}});
        let facts = JsonScan::all(incomplete.to_string().as_bytes());
        assert_eq!(facts.stop, Some(Finish::Length));

        let delta = json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 15}});
        let facts = JsonScan::all(delta.to_string().as_bytes());
        assert_eq!(
            (facts.usage.prompt, facts.usage.completion),
            (None, Some(15))
        );
        assert_eq!(facts.stop, Some(Finish::ToolCalls));
    }

    #[test]
    fn an_error_is_one_unless_it_is_null() {
        for (text, error) in [
            (r#"{"error": {"message": "x"}}"#, true),
            (r#"{"error":"Unauthorized"}"#, true),
            (r#"{"error": null, "a": 1}"#, false),
            (r#"{"a": {"error": 1}, "choices": [{"error": 1}]}"#, false),
            (r#"{"a":"error","b":"error"}"#, false),
        ] {
            assert_eq!(JsonScan::all(text.as_bytes()).error, error, "{text}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_not_taken() {
        for text in [
            "-1",
            "1.5",
            "1e3",
            "\"7\"",
            "null",
            "[7]",
            "99999999999999999999",
        ] {
            let text = format!(r#"{{"usage":{{"prompt_tokens":{text}}}}}"#);
            assert_eq!(JsonScan::all(text.as_bytes()).usage.prompt, None, "{text}");
        }
    }

    #[test]
    fn the_end_of_an_object_is_seen() {
        let text = br#"{"a":[{"b":"}"}],"c":{}} "#;
        for cut in 0..text.len() {
            let mut scan = JsonScan::default();
            scan.push(&text[..cut]);
            assert_eq!(scan.is_closed(), cut >= text.len() - 1, "{cut}");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            Just("usage".to_owned()),
            Just("error".to_owned()),
            Just("choices".to_owned()),
            Just("finish_reason".to_owned()),
            Just("prompt_tokens".to_owned()),
            Just("completion_tokens".to_owned()),
            Just("response".to_owned()),
            "\\PC{0,6}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..1_000_u64).prop_map(Value::from),
            "[a-z\"\\\\{}\\[\\]:, é]{0,20}".prop_map(Value::from),
            Just(Value::from("stop")),
        ];
        leaf.prop_recursive(5, 60, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_a_parser_finds(value in values(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            let facts = JsonScan::all(text.as_bytes());
            let is_error = value.get("error").is_some_and(|error| !error.is_null());
            prop_assert_eq!(facts.error, is_error, "{}", text);
            let number = |object: &Value, key: &str| object.get("usage")?.get(key)?.as_u64();
            let nested = value.get("response").cloned().unwrap_or_default();
            for (key, found) in [("prompt_tokens", facts.usage.prompt),
                ("completion_tokens", facts.usage.completion)] {
                let either = [number(&value, key), number(&nested, key)];
                prop_assert!(either.contains(&found) , "{} {:?}", text, facts);
            }
            let choices = value.get("choices").and_then(Value::as_array);
            prop_assert_eq!(facts.no_choices, choices.is_some_and(Vec::is_empty), "{}", text);
            let reason = |choice: &Value| choice.get("finish_reason")?.as_str().map(|w| Finish::of(w.as_bytes()));
            let reasons = choices.map(|all| all.iter().filter_map(reason).collect::<Vec<_>>());
            prop_assert_eq!(facts.finish, reasons.and_then(|all| all.last().copied()), "{}", text);
        }

        #[test]
        fn pieces_say_what_the_whole_says(
            text in prop_oneof![values().prop_map(|v| v.to_string().into_bytes()),
                prop::collection::vec(any::<u8>(), 0..200),
                "[\\[\\]{}\",:a1 \\\\]{0,60}".prop_map(String::into_bytes)],
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut scan, mut at) = (JsonScan::default(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                scan.push(&text[at..cut]);
                at = cut;
            }
            prop_assert_eq!(*scan.facts(), JsonScan::all(&text));
        }
    }
}
