"""What the worker itself answers, as the SDK's classes, advice and ids: nothing of this comes from an engine."""

import contextlib
import itertools
import threading

import httpx2
import openai
import pytest

from processes import eventually
from scripted import Held, Scripted, chat
from stack import get

HELLO = [{"role": "user", "content": "hello"}]
numbers = itertools.count()


@pytest.fixture
def narrow(stack, control_plane):
    """A model with one slot and nobody waiting."""
    upstream = Scripted(f"narrow-{next(numbers)}")
    pool = {"maxConcurrent": 1, "queue": {"maxWaiting": 0}}
    control_plane.register(upstream.model, upstream.url, pool=pool)
    served = lambda: upstream.model in get(f"http://{stack.gateway}/v1/models")
    eventually("it is served", served)
    yield upstream
    upstream.stop()
    control_plane.call("ModelRegistry", "DeleteModel", id=upstream.model)


def sdk(stack, **options):
    options = {"max_retries": 0, "timeout": 30, **options}
    return openai.OpenAI(base_url=f"http://{stack.gateway}/v1", api_key="any", **options)


@contextlib.contextmanager
def occupied(stack, upstream):
    """The slot taken by a request that is answered when the block is left, or before."""
    held = Held()
    upstream.answers([held, *chat()], chat())
    client = sdk(stack, timeout=60)
    ask = lambda: client.chat.completions.create(model=upstream.model, messages=HELLO)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        eventually("it is asked", lambda: len(upstream.asked) == 1)
        yield held
    finally:
        held.let_go.set()
        asking.join()


def test_a_full_queue_is_a_rate_limit(stack, narrow):
    with occupied(stack, narrow), pytest.raises(openai.RateLimitError) as raised:
        sdk(stack).chat.completions.create(model=narrow.model, messages=HELLO)
    assert raised.value.code == "queue_full" and raised.value.request_id
    assert float(raised.value.response.headers["retry-after"]) >= 1


def test_the_sdk_waits_for_a_place(stack, narrow):
    hooks = {"response": [lambda answer: held.let_go.set() if answer.status_code == 429 else None]}
    noting = httpx2.Client(event_hooks=hooks, timeout=60)
    client = sdk(stack, max_retries=10, http_client=noting)
    with noting, occupied(stack, narrow) as held:
        answer = client.chat.completions.create(model=narrow.model, messages=HELLO)
    assert answer.choices[0].message.content == "said"


@pytest.mark.parametrize("path", ["/metrics", "/v1/load_lora_adapter", "/v1/chat/completions/", "/invocations"])
def test_what_is_not_served(stack, path):
    answer = httpx2.post(f"http://{stack.gateway}{path}", json={"model": "narrow"}, timeout=60)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert answer.headers["x-should-retry"] == "false" and answer.headers["x-request-id"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'{"model": "a", "model": "b"}', b'{"model": "\xff"}',
                                  b'{"model": "a", "max_tokens": "many"}', b'{"model": "a", "stream": 1}'])
def test_bodies_that_mean_nothing_or_two_things(stack, body):
    """The SDK does not try again what cannot go well."""
    headers = {"content-type": "application/json"}
    answer = httpx2.post(f"http://{stack.gateway}/v1/chat/completions", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"


def test_nobody_behind_a_model(stack, control_plane):
    """The SDK's own retries end; the answer says what could not be reached, and that it may be tried again."""
    control_plane.register("dead", "http://127.0.0.1:9")
    eventually("it is served", lambda: "dead" in get(f"http://{stack.gateway}/v1/models"))
    with pytest.raises(openai.InternalServerError) as raised:
        sdk(stack).chat.completions.create(model="dead", messages=HELLO)
    assert raised.value.code in ("upstream_connect", "no_endpoint")
    assert raised.value.response.headers["retry-after"]
    assert "x-should-retry" not in raised.value.response.headers
    control_plane.call("ModelRegistry", "DeleteModel", id="dead")
