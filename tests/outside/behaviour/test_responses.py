"""OpenAI's responses: made, streamed, read again, cancelled."""


import openai
import pytest

from processes import eventually

SAME = {"temperature": 0}

pytestmark = pytest.mark.needs("chat")


def test_made(client, model):
    response = client.responses.create(model=model, input="hello", max_output_tokens=16, **SAME)
    assert response.object == "response" and response.id.startswith("resp_")
    assert response.status in ("completed", "incomplete")
    assert response.output_text
    assert response.usage.output_tokens == 16


def test_streamed(client, model):
    stream = client.responses.create(
        model=model, input="hello", max_output_tokens=16, stream=True, **SAME
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text


def test_stream_helper(client, model):
    with client.responses.stream(
        model=model, input="hello", max_output_tokens=16, **SAME
    ) as stream:
        kinds = {event.type for event in stream}
    assert "response.output_text.delta" in kinds


def test_read_again(client, model):
    made = client.responses.create(
        model=model, input="hello", max_output_tokens=16, store=True, **SAME
    )
    read = client.responses.retrieve(made.id)
    assert read.id == made.id
    assert read.output_text == made.output_text


def test_streamed_and_read_again(client, model):
    *_, last = client.responses.create(
        model=model, input="hello", max_output_tokens=16, store=True, stream=True, **SAME
    )
    read = client.responses.retrieve(last.response.id)
    assert read.output_text == last.response.output_text


def test_made_in_the_background(route, model):
    client = route.openai()
    made = client.responses.create(
        model=model, input="hello", max_output_tokens=16, background=True, store=True, **SAME
    )
    assert made.status in ("queued", "in_progress", "completed", "incomplete")
    ends = ("completed", "incomplete")
    ended = lambda: client.responses.retrieve(made.id).status in ends
    eventually("it is made", ended)


def test_cancelled(route, model):
    client = route.openai()
    made = client.responses.create(
        model=model, input="hello", max_output_tokens=1_500, background=True, store=True, **SAME
    )
    cancelled = client.responses.cancel(made.id)
    assert (cancelled.id, cancelled.status) == (made.id, "cancelled")
    assert client.responses.retrieve(made.id).status == "cancelled"
    eventually("the engine rests", lambda: route.engine.running() == 0)


@pytest.mark.parametrize("ask", ["retrieve", "cancel"])
def test_one_that_is_not(route, ask):
    with pytest.raises(openai.NotFoundError) as raised:
        getattr(route.openai().responses, ask)("resp_nobody")
    assert "resp_nobody" in raised.value.message


def test_input_of_parts(client, model):
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    response = client.responses.create(
        model=model, input=parts, instructions="short", max_output_tokens=16, **SAME
    )
    assert response.output_text
