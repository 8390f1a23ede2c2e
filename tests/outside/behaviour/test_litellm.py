"""litellm's client, which has its own transport and its own classes of errors."""

import asyncio
import os

import pytest

from scripted import error

# Or it asks the network for prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm  # noqa: E402

HELLO = [{"role": "user", "content": "hello"}]
SAME = {"temperature": 0, "seed": 1, "max_tokens": 5}


@pytest.fixture
def ask(route, said, request):
    """Asks by litellm; what is said must be the same on both ways."""
    model = f"hosted_vllm/{route.serves['chat']}"
    told = []
    yield lambda **more: dict(model=model, api_base=f"{route.base}/v1", api_key="any", num_retries=0, **more), told
    test = "litellm " + request.node.nodeid.replace(route.way, "")
    assert said.setdefault(test, told) == told


@pytest.mark.needs("chat")
def test_chat(ask):
    ask, told = ask
    chat = litellm.completion(**ask(messages=HELLO, **SAME))
    told.append(chat.choices[0].message.content)
    assert chat.usage.completion_tokens == 5


@pytest.mark.needs("chat")
def test_stream(ask):
    ask, told = ask
    chunks = list(litellm.completion(**ask(messages=HELLO, stream=True, **SAME)))
    told.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert told[0]


@pytest.mark.needs("chat")
def test_async_stream(ask):
    ask, told = ask

    async def streamed():
        stream = await litellm.acompletion(**ask(messages=HELLO, stream=True, **SAME))
        return [chunk.choices[0].delta.content or "" async for chunk in stream]

    told.append("".join(asyncio.run(streamed())))
    assert told[0]


@pytest.mark.needs("chat")
def test_text_completion(ask):
    ask, told = ask
    told.append(litellm.text_completion(**ask(prompt="hello", **SAME)).choices[0].text)


@pytest.mark.needs("chat")
def test_unknown_model(route):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(
            model="hosted_vllm/nobody", api_base=f"{route.base}/v1", api_key="any", messages=HELLO
        )


@pytest.mark.needs("embed")
def test_embedding(route):
    answer = litellm.embedding(
        model=f"hosted_vllm/{route.serves['embed']}", api_base=f"{route.base}/v1", api_key="any",
        input=["a", "b"],
    )
    assert len(answer.data) == 2


def test_rate_limit(told):
    told.upstream.answers(error(429, retry_after_ms="10"))
    with pytest.raises(litellm.RateLimitError):
        litellm.completion(
            model=f"hosted_vllm/{told.model}", api_base=f"{told.route.base}/v1", api_key="any",
            messages=HELLO, num_retries=0, max_retries=0,
        )
    assert len(told.upstream.asked) == 1
