//! Reads the body of an answer, frame by frame, and says whether all of it came. Pure: no IO, no clock.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::sequence::{Checker, Damage};

/// An event or a whole answer that is longer is not one of ours.
const LONGEST: usize = 1 << 20;
const DONE: &[u8] = b"[DONE]";

/// Why an answer that began well is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cut {
    /// The connection ended, or the framing broke, in the middle of the body.
    Aborted,
    /// A clean end without the last event, or with half an event.
    NoDone,
    /// An error event within the stream.
    ErrorEvent,
    /// Not the JSON or not the events that were asked for.
    Malformed,
    /// The end did not come in time.
    Timeout,
    /// The text is not the one that was sent.
    Text(Damage),
}

/// What of a text is checked.
#[derive(Debug)]
pub(crate) enum Check {
    /// Every word, because the upstream is ours.
    Words(Checker),
    /// That there is some, because the upstream is somebody else's.
    Form { any: bool },
}

impl Check {
    fn push(&mut self, text: &str) {
        match self {
            Self::Words(checker) => checker.push(text),
            Self::Form { any } => *any |= !text.is_empty(),
        }
    }

    fn verdict(&self) -> Result<(), Cut> {
        match self {
            Self::Words(checker) => checker.verdict().map_err(Cut::Text),
            Self::Form { any: true } => Ok(()),
            Self::Form { any: false } => Err(Cut::Text(Damage::Short)),
        }
    }
}

/// Reads one body.
#[derive(Debug)]
pub(crate) struct Reader {
    check: Check,
    stream: bool,
    /// What has come of the answer, or of the event that is on its way.
    begun: Vec<u8>,
    done: bool,
    broken: Option<Cut>,
}

#[derive(Deserialize)]
struct Piece<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Message<'a>>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

impl Reader {
    pub(crate) fn new(stream: bool, check: Check) -> Self {
        Self {
            check,
            stream,
            begun: Vec::new(),
            done: false,
            broken: None,
        }
    }

    /// More of the body.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        while self.stream
            && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
        {
            let (line, rest) = bytes.split_at(end);
            self.begun.extend_from_slice(line);
            let line = std::mem::take(&mut self.begun);
            self.line(line.strip_suffix(b"\r").unwrap_or(&line));
            bytes = rest.get(1..).unwrap_or_default();
        }
        if self.begun.len() + bytes.len() > LONGEST {
            self.broken.get_or_insert(Cut::Malformed);
            return;
        }
        self.begun.extend_from_slice(bytes);
    }

    /// One line of a stream. Comments, other fields and empty lines say nothing.
    fn line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else {
            return;
        };
        let data = data.trim_ascii();
        if self.done {
            self.broken.get_or_insert(Cut::Malformed);
        } else if data == DONE {
            self.done = true;
        } else {
            self.piece(data);
        }
    }

    fn piece(&mut self, json: &[u8]) {
        match serde_json::from_slice::<Piece<'_>>(json) {
            Ok(piece) if piece.error.is_some() => {
                self.broken.get_or_insert(Cut::ErrorEvent);
            }
            Ok(piece) => {
                let message = piece.choices.into_iter().next();
                let message = message.and_then(|choice| choice.delta.or(choice.message));
                if let Some(content) = message.and_then(|message| message.content) {
                    self.check.push(&content);
                }
            }
            Err(_) => {
                self.broken.get_or_insert(Cut::Malformed);
            }
        }
    }

    /// The verdict on a body that ended cleanly.
    pub(crate) fn end(mut self) -> Result<(), Cut> {
        if !self.stream {
            let whole = std::mem::take(&mut self.begun);
            self.piece(&whole);
        }
        match self.broken {
            Some(cut) => Err(cut),
            None if self.stream && (!self.done || !self.begun.is_empty()) => Err(Cut::NoDone),
            None => self.check.verdict(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zero_loss::sequence::Text;

    const NAME: &str = "zl.1.2";

    fn check() -> Check {
        Check::Words(Checker::of(NAME, 3))
    }

    fn event(content: &str) -> String {
        format!(r#"data: {{"choices":[{{"index":0,"delta":{{"content":"{content}"}}}}]}}"#) + "\n\n"
    }

    fn events() -> Vec<String> {
        let mut text = Text::of(NAME, 3);
        (0..3).map(|_| event(&text.token())).collect()
    }

    fn stream(body: &str) -> Result<(), Cut> {
        let mut reader = Reader::new(true, check());
        reader.push(body.as_bytes());
        reader.end()
    }

    fn whole(body: &str) -> Result<(), Cut> {
        let mut reader = Reader::new(false, check());
        reader.push(body.as_bytes());
        reader.end()
    }

    #[test]
    fn a_whole_stream_is_well_in_frames_of_any_size() {
        let opening =
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\r\n\r\n: ping\n\n";
        let usage = "data: {\"choices\":[],\"usage\":{}}\n\n";
        let body = format!("{opening}{}{usage}data: [DONE]\n\n", events().concat());
        for size in [1, 5, 64, body.len()] {
            let mut reader = Reader::new(true, check());
            for frame in body.as_bytes().chunks(size) {
                reader.push(frame);
            }
            assert_eq!(reader.end(), Ok(()), "in frames of {size}");
        }
    }

    #[test]
    fn a_clean_end_before_the_last_event_is_a_cut() {
        let events = events();
        assert_eq!(stream(&events.concat()), Err(Cut::NoDone));
        assert_eq!(stream(""), Err(Cut::NoDone));
        let half = format!("{}data: [DO", events.concat());
        assert_eq!(stream(&half), Err(Cut::NoDone));
        let early = format!("{}data: [DONE]\n\n", events[..2].concat());
        assert_eq!(stream(&early), Err(Cut::Text(Damage::Short)));
    }

    #[test]
    fn an_error_event_is_a_cut_even_with_a_clean_end() {
        let error = "data: {\"error\":{\"message\":\"gone\"}}\n\ndata: [DONE]\n\n";
        let body = format!("{}{error}", events().concat());
        assert_eq!(stream(&body), Err(Cut::ErrorEvent));
    }

    #[test]
    fn what_is_not_an_event_is_malformed() {
        let all = events().concat();
        for bad in [
            "data: {\"choices\"\n\ndata: [DONE]\n\n".to_owned(),
            format!("{all}data: [DONE]\n\n{}", event("x")),
            "x".repeat(LONGEST + 1),
        ] {
            assert_eq!(stream(&bad), Err(Cut::Malformed));
        }
    }

    #[test]
    fn a_plain_answer_is_checked_as_well() {
        let mut text = Text::of(NAME, 3);
        let text: String = (0..3).map(|_| text.token()).collect();
        let body = |text: &str| format!(r#"{{"choices":[{{"message":{{"content":"{text}"}}}}]}}"#);
        assert_eq!(whole(&body(&text)), Ok(()));
        assert_eq!(
            whole(&body(&text[..30])),
            Err(Cut::Text(Damage::Short)),
            "a text that stops"
        );
        assert_eq!(whole(&body(&text)[..40]), Err(Cut::Malformed));
        assert_eq!(whole(r#"{"error":{}}"#), Err(Cut::ErrorEvent));
    }

    #[test]
    fn of_somebody_elses_upstream_only_the_form_is_known() {
        let form = |body: &str| {
            let mut reader = Reader::new(true, Check::Form { any: false });
            reader.push(body.as_bytes());
            reader.end()
        };
        assert_eq!(form(&format!("{}data: [DONE]\n\n", event("Hello"))), Ok(()));
        assert_eq!(form(&event("Hello")), Err(Cut::NoDone));
        assert_eq!(
            form("data: [DONE]\n\n"),
            Err(Cut::Text(Damage::Short)),
            "no text at all"
        );
    }
}
