"""Chats and completions by the official SDK."""

import json

import pytest

HELLO = [{"role": "user", "content": "hello"}]
SAME = {"temperature": 0, "seed": 1}
# One value alone: with random weights anything else would run into its limit.
PLACE = {"type": "object", "enum": [{"place": "Paris"}]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": PLACE, "strict": True},
}
FORCED = {"type": "function", "function": {"name": "weather"}}
CITY = {"type": "string", "enum": ["Paris", "Rome"]}

pytestmark = pytest.mark.needs("chat")


def test_chat(client, model):
    chat = client.chat.completions.create(model=model, messages=HELLO, max_tokens=5, **SAME)
    assert chat.model == model
    assert chat.object == "chat.completion" and chat.id.startswith("chatcmpl-")
    assert chat.choices[0].message.content
    assert chat.choices[0].finish_reason in ("length", "stop")
    assert chat.usage.completion_tokens == 5
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + 5


def test_chat_of_every_part(client, model):
    """Roles, parts of content, letters of all planes, and a body of 200 kB."""
    messages = [
        {"role": "system", "content": "you are \u00e4 t\u00ebst \U0001f9ea \\u0000 \"quoted\" \\"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "hello", "name": "somebody"},
    ]
    client.chat.completions.create(
        model=model, messages=messages, max_tokens=3, metadata={"k": "x" * 200_000}, **SAME
    )


def test_stream(client, model):
    stream = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=8, stream=True, **SAME
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_says_what_the_whole_says(client, model):
    ask = {"model": model, "messages": HELLO, "max_tokens": 8, **SAME}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    chunks = client.chat.completions.create(stream=True, **ask)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_stream_with_usage(client, model):
    stream = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=4, stream=True,
        stream_options={"include_usage": True}, **SAME,
    )
    *_, last = stream
    assert last.choices == [] and last.usage.completion_tokens == 4


def test_stream_helper(client, model):
    with client.chat.completions.stream(model=model, messages=HELLO, max_tokens=4, **SAME) as stream:
        kinds = [event.type for event in stream]
        said = stream.current_completion_snapshot
    assert "content.delta" in kinds and "content.done" in kinds
    assert said.choices[0].message.content


def test_forced_tool(client, model):
    chat = client.chat.completions.create(
        model=model, messages=HELLO, tools=[WEATHER], tool_choice=FORCED, max_tokens=100, **SAME
    )
    (call,) = chat.choices[0].message.tool_calls
    assert call.type == "function" and call.function.name == "weather" and call.id
    assert json.loads(call.function.arguments) == {"place": "Paris"}


def test_forced_tool_streamed(client, model):
    stream = client.chat.completions.create(
        model=model, messages=HELLO, tools=[WEATHER], tool_choice=FORCED, max_tokens=100,
        stream=True, **SAME,
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert calls[0].function.name == "weather" and calls[0].id
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert json.loads(arguments) == {"place": "Paris"}


def test_answer_to_a_tool(client, model):
    called = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call-1", "content": "sunny"},
    ]
    chat = client.chat.completions.create(
        model=model, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=3, **SAME
    )
    assert not chat.choices[0].message.tool_calls


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_json_schema(client, model, streamed):
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    answer = client.chat.completions.create(
        model=model, messages=HELLO, response_format=form, max_tokens=100, stream=streamed, **SAME
    )
    if streamed:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    assert json.loads(text) in ("Paris", "Rome")


def test_logprobs(client, model):
    chat = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2, **SAME
    )
    told = chat.choices[0].logprobs.content
    assert len(told) == 3
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_two_choices(client, model, streamed):
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=3, n=2, temperature=0.9, seed=3, stream=streamed
    )
    if streamed:
        found = {choice.index for chunk in answer for choice in chunk.choices}
    else:
        found = {choice.index for choice in answer.choices}
    assert found == {0, 1}


def test_completion(client, model):
    completion = client.completions.create(model=model, prompt="hello", max_tokens=4, **SAME)
    assert completion.object == "text_completion"
    assert completion.usage.completion_tokens == 4


def test_completion_echo(client, model):
    completion = client.completions.create(
        model=model, prompt="hello", max_tokens=2, echo=True, **SAME
    )
    assert completion.choices[0].text.startswith("hello")


def test_completion_of_several_prompts(client, model):
    completion = client.completions.create(model=model, prompt=["a", "b"], max_tokens=2, **SAME)
    assert [choice.index for choice in completion.choices] == [0, 1]


def test_completion_streamed(client, model):
    stream = client.completions.create(
        model=model, prompt="hello", max_tokens=4, stream=True,
        stream_options={"include_usage": True}, **SAME,
    )
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens == 4
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("length", "stop")


def test_tokens(client, model):
    """Paths that no SDK knows, by the SDK's own way to ask for them."""
    base = str(client.base_url).removesuffix("/v1/")
    told = client.with_options(base_url=base).post(
        "/tokenize", body={"model": model, "prompt": "hello you"}, cast_to=object
    )
    assert told["count"] == len(told["tokens"]) > 0
    back = client.with_options(base_url=base).post(
        "/detokenize", body={"model": model, "tokens": told["tokens"]}, cast_to=object
    )
    assert back["prompt"]
