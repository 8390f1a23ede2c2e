"""Streams that are cut, by either side, and streams of every legal form."""

import json

import openai
import pytest

from processes import eventually
from scripted import Fin, Rst, Silence, event, stream

TIMES = 20
LAST = event("", finish="stop")
DONE = b"data: [DONE]\n\n"
DIED = b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}\n\n'
WHOLE = event("a") + event("b") + LAST + DONE


@pytest.mark.parametrize("how", [Fin, Rst])
@pytest.mark.parametrize(
    "parts",
    [[], [event("a")], [event("a")] * 50, [event("a"), event("b")[:20]], [event("a"), LAST]],
    ids=["before the first", "after one", "after fifty", "in an event", "before the end"],
)
def test_a_cut_stream_raises(told, parts, how):
    """Every time; a clean end would be taken for the whole answer."""
    told.upstream.answers([*stream(*parts, end=b""), how])
    for _ in range(TIMES):
        with pytest.raises(openai.APIError):
            list(told.sdk().chat.completions.create(stream=True, **told.hello))


@pytest.mark.parametrize("how", [Fin, Rst])
def test_a_cut_answer_raises(told, how):
    told.upstream.answers([
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{", how
    ])
    for _ in range(TIMES):
        with pytest.raises(openai.APIError):
            told.sdk().chat.completions.create(**told.hello)


def test_a_dying_engine_raises(told):
    """vLLM sends an error event, then `[DONE]` and a clean end."""
    told.upstream.answers(stream(event("a"), DIED, DONE))
    client = told.sdk(http_client=told.route.noted())
    with pytest.raises(openai.APIError) as raised:
        list(client.chat.completions.create(stream=True, **told.hello))
    assert "EngineCore died" in raised.value.message


@pytest.mark.parametrize(
    "parts",
    [
        [WHOLE],
        [WHOLE[n : n + 1] for n in range(len(WHOLE))],
        [WHOLE.replace(b"\n", b"\r\n")],
        [WHOLE.replace(b"\n", b"\r")],
        [b": a comment\n\n", WHOLE, b": another\n\n"],
        [b"retry: 100\nid: 7\n", WHOLE],
        [b"\xef\xbb\xbf", WHOLE],
    ],
    ids=["one chunk", "bytes", "crlf", "cr", "comments", "fields", "mark"],
)
def test_every_legal_form_passes_as_it_is(told, parts):
    """Byte for byte, which the comparison of both ways sees to."""
    told.upstream.answers(stream(*parts))
    answer = told.route.noted().post(f"{told.route.base}/v1/chat/completions", json=told.hello | {"stream": True})
    assert answer.content == b"".join(parts)
    if parts[0] != b"\xef\xbb\xbf":
        client = told.sdk(http_client=told.route.noted())
        chunks = client.chat.completions.create(stream=True, **told.hello)
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "ab"


def test_events_come_one_by_one(told):
    """A stream that never ends is still read event by event."""
    told.upstream.answers([*stream(event("a"), event("b"), end=b""), Silence])
    chunks = iter(told.sdk().chat.completions.create(stream=True, **told.hello))
    assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["a", "b"]


@pytest.mark.needs("chat")
def test_closing_a_stream_stops_the_engine(route, model):
    for _ in range(5):
        stream = route.openai().completions.create(
            model=model, prompt="hello", max_tokens=route.long, stream=True,
            extra_body={"ignore_eos": True},
        )
        for _ in zip(range(3), stream):
            pass
        # vLLM's count comes behind: what its end says is that it was told, not how fast.
        assert route.engine.running() > 0 or not route.engine.exact
        stream.close()
        eventually("the engine rests", lambda: route.engine.running() == 0)


@pytest.mark.needs("chat")
def test_a_client_that_gives_up_stops_the_engine(route, model):
    with pytest.raises(openai.APITimeoutError):
        route.openai(timeout=0.2).completions.create(
            model=model, prompt="hello", max_tokens=route.long, extra_body={"ignore_eos": True}
        )
    eventually("the engine rests", lambda: route.engine.running() == 0)


def test_a_long_event(told):
    """One event of a megabyte."""
    text = json.dumps("x" * 1_000_000)[1:-1]
    told.upstream.answers(stream(event(text), LAST, DONE))
    client = told.sdk(http_client=told.route.noted())
    chunks = client.chat.completions.create(stream=True, **told.hello)
    assert sum(len(chunk.choices[0].delta.content) for chunk in chunks) == 1_000_000
