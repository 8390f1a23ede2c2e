"""Clients that ask all the time through the official SDK, and what became of each request."""

import dataclasses
import itertools
import threading
import time
import uuid

import openai

CLIENTS = 8


@dataclasses.dataclass
class Asked:
    """One request."""

    id: str
    began: float
    ended: float = 0.0
    endpoint: str = ""
    failed: str = ""


class Load:
    """Some clients at one address: whole answers and streams in turn, short and long, each checked to its end."""

    def __init__(self, address, models, api_key="any"):
        self.address, self.models, self.api_key = address, list(models), api_key
        self.all = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def served(self, since=0.0):
        """How many requests that began after then were served."""
        return sum(1 for asked in list(self.all) if not asked.failed and asked.began >= since)

    def failed(self):
        return [asked for asked in list(self.all) if asked.failed]

    def _run(self, n):
        client = openai.OpenAI(
            base_url=f"http://{self.address}/v1", api_key=self.api_key, max_retries=0, timeout=30
        )
        for turn in itertools.count(n):
            if self.stopping.is_set():
                return
            asked = Asked(uuid.uuid4().hex, time.monotonic())
            try:
                self._ask(client, asked, turn)
            except Exception as error:  # whatever the SDK or what is below it raises is a request that failed
                asked.failed = f"{type(error).__name__}: {error}"
            asked.ended = time.monotonic()
            self.all.append(asked)
            if asked.failed:
                time.sleep(0.05)

    def _ask(self, client, asked, turn):
        model = self.models[turn % len(self.models)]
        stream, tokens = turn % 2 == 0, (2, 10, 60)[turn % 3]
        answer = client.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=tokens,
            stream=stream,
            extra_headers={"x-request-id": asked.id, "x-forebay-explain": "1"},
        )
        asked.endpoint = answer.headers.get("x-forebay-endpoint", "")
        if not stream:
            assert answer.parse().usage.completion_tokens == tokens
            return
        ends = [choice.finish_reason for chunk in answer.parse() for choice in chunk.choices]
        assert ends and ends[-1], "the stream ended without an end"


def told(what, load, excepted, since):
    """One line for the report of a run, with the counts."""
    print(
        f"{what}: {len(load.all)} requests, {load.served(since)} of them served after it; "
        f"{len(load.failed()) - len(excepted)} failed, and {len(excepted)} that were on it"
    )
