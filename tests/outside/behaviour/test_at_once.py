"""Many at once, asynchronously, and over HTTP/2."""

import asyncio

import httpx2
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]
CALLERS = 32

pytestmark = pytest.mark.needs("chat")


def run(work):
    return asyncio.run(asyncio.wait_for(work, 120))


def test_32_at_once(route, model):
    async def all_of_them():
        client = openai.AsyncOpenAI(base_url=f"{route.base}/v1", api_key="any", max_retries=0)

        async def whole(n):
            chat = await client.chat.completions.create(model=model, messages=HELLO, max_tokens=16)
            return chat.usage.completion_tokens

        async def streamed(n):
            stream = await client.chat.completions.create(
                model=model, messages=HELLO, max_tokens=16, stream=True,
                stream_options={"include_usage": True},
            )
            usages = [chunk.usage async for chunk in stream]
            return usages[-1].completion_tokens

        async with client:
            ask = [streamed(n) if n % 2 else whole(n) for n in range(CALLERS)]
            return await asyncio.gather(*ask)

    tokens = run(all_of_them())
    assert len(tokens) == CALLERS and all(0 < count <= 16 for count in tokens)


def test_async_cancel(route, model):
    """A task that is cancelled takes its request with it."""

    async def cancelled():
        client = openai.AsyncOpenAI(base_url=f"{route.base}/v1", api_key="any", max_retries=0)
        async with client:
            asking = asyncio.create_task(client.completions.create(
                model=model, prompt="hello", max_tokens=route.long, extra_body={"ignore_eos": True}
            ))
            for _ in range(500):
                await asyncio.sleep(0.01)
                if await asyncio.to_thread(route.engine.running):
                    break
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            for _ in range(2_000):
                if not await asyncio.to_thread(route.engine.running):
                    return True
                await asyncio.sleep(0.01)

    assert run(cancelled())


def test_http2(route, model):
    """h2c by prior knowledge: 32 requests on one connection. Engines do not speak it."""
    if not route.through:
        return

    async def all_of_them():
        transport = httpx2.AsyncHTTPTransport(http1=False, http2=True)
        async with httpx2.AsyncClient(transport=transport, base_url=route.base, timeout=60) as client:
            body = {"model": model, "messages": HELLO, "max_tokens": 8, "stream": True}
            ask = [client.post("/v1/chat/completions", json=body) for _ in range(CALLERS)]
            return await asyncio.gather(*ask)

    answers = run(all_of_them())
    assert {(answer.http_version, answer.status_code) for answer in answers} == {("HTTP/2", 200)}
    assert all(answer.content.endswith(b"data: [DONE]\n\n") for answer in answers)


def test_sdk_over_http2(route, model):
    if not route.through:
        return
    transport = httpx2.HTTPTransport(http1=False, http2=True)
    with httpx2.Client(transport=transport, timeout=60) as http:
        client = route.openai(http_client=http)
        chat = client.chat.completions.create(model=model, messages=HELLO, max_tokens=3)
        assert chat.usage.completion_tokens == 3
        chunks = list(client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=3, stream=True
        ))
        assert chunks[-1].choices[0].finish_reason
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody", messages=HELLO)
