"""Anthropic's messages by Anthropic's SDK."""

import anthropic
import pytest

HELLO = [{"role": "user", "content": "hello"}]
SAME = {"temperature": 0}

pytestmark = pytest.mark.needs("chat")


def test_message(claude, model):
    message = claude.messages.create(
        model=model, messages=HELLO, max_tokens=5, system="be short", extra_body=SAME
    )
    assert message.type == "message" and message.model == model
    assert message.content[0].text
    assert message.usage.output_tokens == 5


def test_streamed(claude, model):
    with claude.messages.stream(
        model=model, messages=HELLO, max_tokens=5, extra_body=SAME
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert final.content[0].text and final.usage.output_tokens == 5


def test_streamed_raw(claude, model):
    stream = claude.messages.create(
        model=model, messages=HELLO, max_tokens=5, extra_body=SAME, stream=True
    )
    assert [event.type for event in stream][-1] == "message_stop"


def test_count_tokens(claude, model):
    assert claude.messages.count_tokens(model=model, messages=HELLO).input_tokens > 0


def test_unknown_model(route):
    client = anthropic.Anthropic(base_url=route.base, api_key="any", max_retries=0)
    route.closing.append(client)
    with pytest.raises(anthropic.NotFoundError) as raised:
        client.messages.create(model="nobody", messages=HELLO, max_tokens=5)
    assert "nobody" in raised.value.message


def test_bad_request(claude, model):
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model=model, messages=HELLO, max_tokens=5, extra_body={"top_p": "many"})
