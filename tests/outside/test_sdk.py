"""The official OpenAI SDK, unchanged, through the worker."""

import time

import openai
import pytest

from processes import eventually

HELLO = [{"role": "user", "content": "hello"}]
CANCEL_WITHIN = 0.2


def test_chat(sdk):
    raw = sdk.chat.completions.with_raw_response.create(model="chat", messages=HELLO, max_tokens=3)
    chat = raw.parse()
    assert chat.model == "chat"
    assert chat.choices[0].message.content.strip() == "token0 token1 token2"
    assert chat.usage.completion_tokens == 3
    # The id that the upstream saw is the one that the client is told.
    assert chat.id == f"chatcmpl-{raw.headers['x-request-id']}"


def test_stream_with_usage(sdk):
    stream = sdk.chat.completions.create(
        model="chat", messages=HELLO, max_tokens=4, stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.split() == ["token0", "token1", "token2", "token3"]
    assert chunks[-1].usage.completion_tokens == 4


def test_tokens_arrive_as_they_are_made(sdk, mock):
    stream = sdk.chat.completions.create(model="chat", messages=HELLO, max_tokens=10_000, stream=True)
    for _ in zip(range(3), stream):
        # The answer takes some minutes: buffered, this would be when it is over.
        assert mock.running() == 1
    stream.close()
    eventually("the upstream sees the cancel", lambda: mock.running() == 0)


def test_completion(sdk):
    completion = sdk.completions.create(model="chat", prompt="hello", max_tokens=2)
    assert completion.choices[0].text.split() == ["token0", "token1"]
    stream = sdk.completions.create(model="chat", prompt="hello", max_tokens=2, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream).split() == ["token0", "token1"]


def test_embeddings(sdk):
    # The SDK asks for base64 unless told otherwise.
    for arguments in ({}, {"encoding_format": "float"}):
        answer = sdk.embeddings.create(model="chat", input=["a", "b"], **arguments)
        assert [len(item.embedding) for item in answer.data] == [4, 4]
        assert answer.data[0].embedding == [0.5, -0.25, 0.125, 1.0]


def test_models(sdk):
    assert {"chat", "default"} <= {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("default").id == "default"


def test_alias(sdk):
    chat = sdk.chat.completions.create(model="default", messages=HELLO, max_tokens=1)
    assert chat.model == "chat"


def test_unknown_model(sdk):
    with pytest.raises(openai.NotFoundError) as raised:
        sdk.chat.completions.create(model="nobody", messages=HELLO)
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"
    assert "`nobody`" in raised.value.message
    assert raised.value.request_id


def test_cancel_in_mid_stream(sdk, mock):
    before = mock.stats()["cancelled"]
    took = []
    for n in range(1, 11):
        stream = sdk.chat.completions.create(
            model="chat", messages=HELLO, max_tokens=10_000, stream=True
        )
        next(iter(stream))
        next(iter(stream))
        stream.close()
        closed = time.monotonic()
        eventually(
            "the upstream sees the cancel",
            lambda: mock.stats()["cancelled"] == before + n,
            every=0.001,
        )
        took.append(time.monotonic() - closed)
    took.sort()
    print(f"cancel seen after {took[-1] * 1000:.1f} ms at most, of {len(took)}")
    assert took[5] < CANCEL_WITHIN
    assert mock.stats()["in_flight"] == 0
