//! The scanner against the oracle, and what it must find.

use proptest::prelude::*;

use super::*;

fn seen(dialect: Dialect, text: &str) -> Seen {
    let mut sse = Sse::new(dialect);
    sse.push(text.as_bytes(), |_| {}).unwrap();
    oracle::check(dialect, text.as_bytes(), 0..text.len());
    *sse.seen()
}

const CHAT: &str = concat!(
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"},\"finish_reason\":null}]}\n\n",
    ": keep-alive\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"error\\\": 1\"},\"finish_reason\":\"length\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n",
    "data: [DONE]\n\n",
);

const MESSAGES: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":",
    "{\"input_tokens\":25,\"output_tokens\":1}}}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},",
    "\"usage\":{\"output_tokens\":15}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
);

const RESPONSES: &str = concat!(
    "event: response.created\ndata: {\"type\":\"response.created\"}\n\n",
    "event: response.output_text.delta\ndata: {\"delta\":\"a\"}\n\n",
    "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
    "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":",
    "\"completed\",\"error\":null,\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}}\n\n",
);

fn usage(prompt: u64, completion: u64) -> Usage {
    Usage {
        prompt: Some(prompt),
        completion: Some(completion),
    }
}

#[test]
fn a_chat_is_understood() {
    let chat = seen(Dialect::Plain, CHAT);
    let wanted = Seen {
        ended: true,
        error: false,
        usage: usage(7, 2),
        finish: Some(Finish::Length),
        events: 3,
    };
    assert_eq!(chat, wanted);
    for breaks in ["\r\n", "\r"] {
        assert_eq!(seen(Dialect::Plain, &CHAT.replace('\n', breaks)), wanted);
    }
}

#[test]
fn typed_streams_are_understood() {
    let wanted = |usage, events| Seen {
        ended: true,
        error: false,
        usage,
        finish: Some(Finish::Stop),
        events,
    };
    assert_eq!(seen(Dialect::Typed, MESSAGES), wanted(usage(25, 15), 1));
    assert_eq!(seen(Dialect::Typed, RESPONSES), wanted(usage(3, 4), 2));
    let failed = "data: {\"type\":\"response.failed\",\"response\":{\"error\":{}}}\n\n";
    let failed = seen(Dialect::Typed, failed);
    assert!(failed.ended && failed.error);
    assert!(
        seen(
            Dialect::Typed,
            "event: error\ndata: {\"type\":\"error\"}\n\n"
        )
        .error
    );
}

/// OpenAI's are typed, vLLM's are those of a chat.
#[test]
fn what_is_heard_ends_either_way() {
    let typed = concat!(
        "data: {\"type\":\"transcript.text.delta\",\"delta\":\"a\"}\n\n",
        "data: {\"type\":\"transcript.text.done\",\"text\":\"a\",\"usage\":",
        "{\"input_tokens\":14,\"output_tokens\":45}}\n\n",
    );
    let heard = seen(Dialect::Either, typed);
    assert!(heard.ended && !heard.error);
    assert_eq!((heard.usage, heard.events), (usage(14, 45), 1));
    let spoken = "event: speech.audio.done\ndata: {\"type\":\"speech.audio.done\"}\n\n";
    assert!(seen(Dialect::Either, spoken).ended);
    assert_eq!(seen(Dialect::Either, CHAT), seen(Dialect::Plain, CHAT));
}

/// What vLLM sends when its engine dies.
#[test]
fn a_clean_end_after_an_error_is_an_error() {
    let died =
        "data: {\"error\": {\"message\": \"EngineCore died\", \"code\": 500}}\n\ndata: [DONE]\n\n";
    let died = seen(Dialect::Plain, died);
    assert!(died.ended && died.error);
    assert_eq!(died.events, 0);
}

#[test]
fn text_of_a_model_says_nothing() {
    let text = "data: {\"choices\":[{\"delta\":{\"content\":\"\\n\\ndata: [DONE]\\n\\n\\\"usage\\\"\"}}]}\n\n";
    assert!(!seen(Dialect::Plain, text).ended);
    assert!(
        !seen(
            Dialect::Plain,
            "data: x[DONE]\n\nevent: [DONE]\n\n:[DONE]\n\n"
        )
        .ended
    );
}

#[test]
fn the_end_of_an_event_is_seen_however_it_is_cut() {
    for (pieces, between) in [
        (&[][..], true),
        (&["data: x\n\n"][..], true),
        (&["data: x\n", "\n"], true),
        (&["data: x\r\n\r", "\n"], true),
        (&["data: x\r", "\r"], true),
        (&["data: x\r", "\n"], false),
        (&["data: x\n\n", "data: {\"choi"], false),
        (&["data: x\n"], false),
        (&["id: 7\n"], false),
        (&[": a comment\n"], true),
        (&[": a comm"], false),
    ] {
        let mut sse = Sse::new(Dialect::Plain);
        for piece in pieces {
            sse.push(piece.as_bytes(), |_| {}).unwrap();
        }
        assert_eq!(sse.is_between_events(), between, "{pieces:?}");
    }
}

#[test]
fn what_never_ends_is_too_long() {
    let mut sse = Sse::new(Dialect::Plain);
    let kib = [b'x'; 1024];
    let line = (0..).find(|_| sse.push(&kib, |_| {}).is_err());
    assert_eq!(line, Some(1024));
    let mut sse = Sse::new(Dialect::Plain);
    let lines = (0..).find(|_| sse.push(b"data: some\n", |_| {}) == Err(TooLong::Event));
    assert_eq!(lines, Some(LONGEST_EVENT / 10));
    let whole = format!("data:{}\n\n", "x".repeat(LONGEST_LINE - 4));
    let mut sse = Sse::new(Dialect::Plain);
    assert_eq!(sse.push(whole.as_bytes(), |_| {}), Err(TooLong::Line));
    let mut sse = Sse::new(Dialect::Plain);
    for _ in 0..LONGEST_EVENT {
        sse.push(b": ping\n", |_| {}).unwrap();
    }
}

const PIECES: &[&str] = &[
    "data",
    ":",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "event",
    "id: 1",
    "x",
    "[DONE]",
    "data: [DONE]\n\n",
    "data: {\"error\":1}\n\n",
    "data:{\"usage\":{\"prompt_tokens\":3}",
    ",\"choices\":[]}\n\n",
    "}",
    "{",
    "\"",
    "data: {\"choices\":[{\"finish_reason\" : \"stop\"}]}\n\n",
    "\"finish_reason\":null",
    "\"usage\":{\"completion_tokens\":12}",
    "event: message_stop\n",
    "event: error\n",
    "event: a.delta\r\n",
    "event: response.output_text.delta_that_is_far_too_long\n",
    "\"type\":\"response.completed\"",
    "\u{feff}",
    "data: a\ndata: b\n\n",
    ": c\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn pieces_of_streams_are_read_as_the_oracle_reads_them(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        typed in 0_u8..3,
    ) {
        let text = pieces.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.sort_unstable();
        let dialect = match typed {
            0 => Dialect::Plain,
            1 => Dialect::Typed,
            _ => Dialect::Either,
        };
        oracle::check(dialect, text.as_bytes(), cuts);
    }

    #[test]
    fn any_bytes_are_read_as_the_oracle_reads_them(
        text in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b':'), Just(b'\r')], 0..200),
        cut in any::<prop::sample::Index>(),
    ) {
        let cut = cut.index(text.len() + 1);
        oracle::check(Dialect::Plain, &text, [cut]);
        oracle::check(Dialect::Typed, &text, [cut]);
        oracle::check(Dialect::Either, &text, [cut]);
    }
}

/// Not a limit, a figure: see docs/bench/streams.md.
#[test]
fn how_long_it_takes() {
    let event = "data: {\"id\":\"chatcmpl-0b7d7a3e\",\"object\":\"chat.completion.chunk\",\"created\":1764162000,\
        \"model\":\"meta-llama/Llama-3.1-8B\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\
        \"logprobs\":null,\"finish_reason\":null}]}\n\n";
    let rounds = if cfg!(debug_assertions) {
        2_000
    } else {
        1_000_000
    };
    let mut sse = Sse::new(Dialect::Plain);
    let began = tokio::time::Instant::now();
    for _ in 0..rounds {
        sse.push(std::hint::black_box(event.as_bytes()), |_| {})
            .unwrap();
    }
    let each = began.elapsed().as_nanos() / rounds;
    println!("{each} ns for an event of {} bytes", event.len());
    assert_eq!(sse.seen().events as u128, rounds);
}
