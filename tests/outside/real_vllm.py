"""By hand, against a real vLLM that runs already: what the mock stands for, checked on the real thing.

    python tests/outside/real_vllm.py --url http://127.0.0.1:8101 --model tiny

Results of a run are kept in docs/bench/real-vllm.md.
"""

import argparse
import asyncio
import random
import re
import tempfile
import threading
import time

import openai

from control_plane import ControlPlane
from processes import eventually
from stack import Stack, get

HELLO = [{"role": "user", "content": "hello"}]


def metric(page, name, **labels):
    """The sum of the samples of a name that have these labels."""
    total = 0.0
    for line in page.splitlines():
        found = re.match(r"(\w[\w:]*)(\{.*\})? (\S+)$", line)
        if found and found[1] == name and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(found[3])
    return total


class Run:
    def __init__(self, stack, url, model):
        self.stack, self.url, self.model = stack, url, model
        self.control = ControlPlane(stack.control)
        self.base = f"http://{stack.gateway}/v1"
        self.sdk = openai.OpenAI(base_url=self.base, api_key="any", max_retries=0)

    def worker(self, name, **labels):
        return metric(get(f"http://{self.stack.admin}/metrics"), name, **labels)

    def running(self):
        return metric(get(f"{self.url}/metrics"), "vllm:num_requests_running")

    def surface(self):
        chat = self.sdk.chat.completions.create(model=self.model, messages=HELLO, max_tokens=8)
        assert chat.usage.completion_tokens > 0
        stream = self.sdk.chat.completions.create(
            model=self.model, messages=HELLO, max_tokens=8, stream=True,
            stream_options={"include_usage": True},
        )
        assert list(stream)[-1].usage.completion_tokens > 0
        self.sdk.completions.create(model=self.model, prompt="hello", max_tokens=8)
        try:
            self.sdk.completions.create(model="nobody", prompt="hello")
            raise AssertionError("an unknown model was served")
        except openai.NotFoundError as error:
            assert error.code == "model_not_found"
        return "chat, stream with usage, completion, unknown model: as with the mock"

    def idle(self):
        """The default idle limit, and the pool that waits for the server's own."""
        self.sdk.completions.create(model=self.model, prompt="hello", max_tokens=1)
        time.sleep(4.5)
        # What is open now carried no request yet: one of the warm floor, which nobody times out.
        ours = self.worker("forebay_pool_connections_closed_total", reason="idle")
        assert ours == 1, ours
        assert self.worker("forebay_pool_connections_closed_total", reason="upstream") == 0
        self.control.call(
            "ModelRegistry", "UpdateModel",
            model={"id": self.model, "pool": {"idleTimeout": "60s"}},
        )
        self.sdk.completions.create(model=self.model, prompt="hello", max_tokens=1)
        began = time.monotonic()
        closed = lambda: self.worker("forebay_pool_connections_closed_total", reason="upstream")
        before = closed()
        eventually("vLLM closes it", lambda: closed() > before, within=10)
        took = time.monotonic() - began
        return f"idle limit 4 s closed {ours:.0f} before vLLM did; with 60 s, vLLM closed after {took:.2f} s"

    def race(self, rounds):
        """Requests at the moment at which vLLM closes, with a pool that does not let go first."""
        failed = []
        for _ in range(rounds):
            try:
                self.sdk.completions.create(model=self.model, prompt="hello", max_tokens=1)
            except openai.OpenAIError as error:
                failed.append(repr(error))
            time.sleep(random.uniform(4.990, 5.010))
        stale = self.worker("forebay_pool_stale_total")
        replays = self.worker("forebay_replays_total")
        return (
            f"{rounds} requests within 10 ms of the close: {len(failed)} failed {failed[:1]}, "
            f"{stale:.0f} found stale, {replays:.0f} replayed"
        )

    def gaps(self, rounds):
        """The defaults, and idle gaps around the server's limit."""
        self.control.call(
            "ModelRegistry", "UpdateModel",
            model={"id": self.model}, updateMask="pool.idleTimeout",
        )
        callers, failed = 10, []

        def caller():
            for _ in range(rounds // callers):
                time.sleep(random.uniform(3, 8))
                try:
                    self.sdk.completions.create(model=self.model, prompt="hello", max_tokens=1)
                except openai.OpenAIError as error:
                    failed.append(repr(error))

        threads = [threading.Thread(target=caller) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return f"{rounds} requests with idle gaps of 3 to 8 s, defaults: {len(failed)} failed {failed[:1]}"

    def cancel(self, rounds):
        took = []
        for _ in range(rounds):
            stream = self.sdk.completions.create(
                model=self.model, prompt="hello", max_tokens=1_900, stream=True,
                extra_body={"ignore_eos": True},
            )
            next(iter(stream))
            eventually("vLLM runs it", lambda: self.running() > 0)
            stream.close()
            closed = time.monotonic()
            eventually("vLLM stops", lambda: self.running() == 0, within=2, every=0.005)
            took.append(time.monotonic() - closed)
        return f"{rounds} streams cut: vLLM idle again after {max(took) * 1000:.0f} ms at most"

    async def resize(self, resizes):
        client = openai.AsyncOpenAI(base_url=self.base, api_key="any", max_retries=0)
        stop, served, failed = asyncio.Event(), 0, []

        async def load(n):
            nonlocal served
            while not stop.is_set():
                try:
                    if n % 3:
                        await client.completions.create(
                            model=self.model, prompt="hello", max_tokens=8
                        )
                    else:
                        stream = await client.chat.completions.create(
                            model=self.model, messages=HELLO, max_tokens=20, stream=True
                        )
                        reasons = [c.choices[0].finish_reason async for c in stream if c.choices]
                        assert reasons[-1] in ("stop", "length"), reasons
                    served += 1
                except (openai.OpenAIError, AssertionError) as error:
                    failed.append(repr(error))

        opened = self.worker("forebay_pool_connections_opened_total")
        closed = self.worker("forebay_pool_connections_closed_total")
        tasks = [asyncio.create_task(load(n)) for n in range(8)]
        for _ in range(resizes):
            await asyncio.to_thread(
                self.control.call, "ModelRegistry", "UpdateModel",
                model={"id": self.model, "pool": {"maxConcurrent": random.randint(20, 80)}},
            )
            await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*tasks)
        opened = self.worker("forebay_pool_connections_opened_total") - opened
        closed = self.worker("forebay_pool_connections_closed_total") - closed
        return (
            f"{resizes} resizes under 8 callers, a third of them streams: {served} served, "
            f"{len(failed)} failed {failed[:3]}, {opened:.0f} connections opened, {closed:.0f} closed"
        )


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--url", required=True)
    arguments.add_argument("--model", required=True)
    arguments = arguments.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        stack = Stack(data_dir)
        try:
            run = Run(stack, arguments.url, arguments.model)
            run.control.register(arguments.model, arguments.url)
            names = lambda: [model.id for model in run.sdk.models.list()]
            eventually("served", lambda: arguments.model in names())
            print(run.surface(), flush=True)
            print(run.idle(), flush=True)
            print(run.race(40), flush=True)
            print(run.gaps(200), flush=True)
            print(run.cancel(10), flush=True)
            print(asyncio.run(run.resize(100)), flush=True)
        finally:
            stack.program.stop()


if __name__ == "__main__":
    main()
