"""What is refused, by the engine and on the way, as the SDK's classes of errors."""

import openai
import pytest

from processes import eventually
from scripted import Silence, chat, error, event, stream, whole

HELLO = [{"role": "user", "content": "hello"}]
CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
}


@pytest.mark.needs("chat")
@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -3}, {"messages": "no list"}, {"top_p": "many"}],
    ids=["range", "type", "number"],
)
def test_bad_request(client, model, wrong):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{"model": model, "messages": HELLO, **wrong})
    assert raised.value.status_code == 400 and raised.value.message


@pytest.mark.needs("chat")
def test_unknown_model(route):
    with pytest.raises(openai.NotFoundError) as raised:
        route.openai().chat.completions.create(model="nobody", messages=HELLO)
    assert raised.value.param == "model"
    assert "`nobody`" in raised.value.message
    if route.through:
        assert raised.value.code == "model_not_found"
        assert raised.value.request_id


@pytest.mark.parametrize("status", CLASSES)
def test_errors_pass_as_they_are(told, status):
    told.upstream.answers(error(status))
    client = told.sdk(http_client=told.route.noted())
    with pytest.raises(CLASSES[status]) as raised:
        client.chat.completions.create(**told.hello)
    body = {"message": f"status {status}, as told", "type": "Scripted", "param": "p", "code": status}
    assert raised.value.body == body
    assert len(told.upstream.asked) == 1
    if told.route.through:
        assert raised.value.request_id


@pytest.mark.parametrize(
    "body", [b'{"detail":"Not Found"}', b'{"error":"Unauthorized"}', b"", b"<html>", b'{"object":"error"}']
)
def test_errors_of_any_shape_pass(told, body):
    told.upstream.answers(whole(404, body))
    client = told.sdk(http_client=told.route.noted())
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**told.hello)


def test_timeout(told):
    told.upstream.answers([Silence])

    def given_up():
        with pytest.raises(openai.APITimeoutError):
            told.sdk(timeout=0.3).chat.completions.create(**told.hello)
        return told.upstream.asked

    eventually("the upstream was asked before the time was over", given_up)
    assert told.upstream.gone.acquire(timeout=30), "the upstream was not told that the client has gone"


def test_timeout_in_a_stream(told):
    told.upstream.answers([*stream(event("a"), end=b""), Silence])

    def given_up():
        said = []
        with pytest.raises(openai.APITimeoutError):
            for chunk in told.sdk(timeout=0.5).chat.completions.create(stream=True, **told.hello):
                said.append(chunk.choices[0].delta.content)
        return said == ["a"]

    eventually("the first event came before the time was over", given_up)
    assert told.upstream.gone.acquire(timeout=30)


def test_nobody_listens(told):
    """Straight it is a refused connection, through the worker one that it could not make."""
    told.upstream.stop()
    expected = openai.InternalServerError if told.route.through else openai.APIConnectionError
    with pytest.raises(expected) as raised:
        told.sdk().chat.completions.create(**told.hello)
    if told.route.through:
        assert raised.value.status_code in (502, 503)


def test_request_ids(told):
    told.upstream.answers(chat())
    answer = told.sdk().chat.completions.create(
        **told.hello, extra_headers={"x-request-id": "the-clients-own"}
    )
    ((_, headers),) = told.upstream.asked
    assert headers["x-request-id"] == "the-clients-own"
    if told.route.through:
        assert answer._request_id == "the-clients-own"
