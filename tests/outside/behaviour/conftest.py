"""Every test of this folder runs twice: straight to the engine, then through the worker. What a client saw
must be the same.

The engine is the mock, unless a real one is named (`--engine`, `--serves`).
"""

import itertools
import re
import urllib.request

import anthropic
import httpx2
import openai
import pytest

from processes import eventually
from recording import Recording, joined
from scripted import Scripted
from stack import Mock, get

WAYS = ["straight", "through"]
MOCK_SERVES = {"chat": "mock-chat", "embed": "mock-embed", "audio": "mock-audio"}


class Vllm:
    """A real engine, somebody else's to start and to stop."""

    exact = False

    def __init__(self, url):
        self.url = url

    def running(self):
        page = get(f"{self.url}/metrics")
        return sum(float(n) for n in re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", page, re.M))


class Route:
    """A way to the engine."""

    def __init__(self, way, base, engine, serves):
        self.way, self.base, self.engine, self.serves = way, base, engine, serves
        self.recording = Recording()
        self.closing = [self.recording]

    @property
    def through(self):
        return self.way == "through"

    @property
    def long(self):
        """More tokens than come before a test is over; of a real engine, as many as it can."""
        return 100_000 if self.engine.exact else 1_900

    def openai(self, **options):
        options = {"max_retries": 0, "timeout": 60, **options}
        client = openai.OpenAI(base_url=f"{self.base}/v1", api_key="any", **options)
        self.closing.append(client)
        return client

    def noted(self):
        client = httpx2.Client(transport=self.recording, timeout=60)
        self.closing.append(client)
        return client


def pytest_collection_modifyitems(config, items):
    """What the named engine cannot do is not asked of it, and counted as such."""
    if config.getoption("engine"):
        serves = dict(word.split("=", 1) for word in config.getoption("serves"))
    else:
        serves = MOCK_SERVES
    wanted = lambda item: {mark.args[0] for mark in item.iter_markers("needs")} <= set(serves)
    gone = [item for item in items if not wanted(item)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if wanted(item)]


@pytest.fixture(scope="session")
def serves(request):
    if request.config.getoption("engine"):
        return dict(word.split("=", 1) for word in request.config.getoption("serves"))
    return MOCK_SERVES


@pytest.fixture(scope="session")
def engine(request, serves):
    url = request.config.getoption("engine")
    if url:
        yield Vllm(url.rstrip("/"))
        return
    mock = Mock(serves.values(), interval_ms=2)
    yield mock
    mock.program.stop()


@pytest.fixture(scope="session")
def worker(stack, control_plane, engine, serves):
    """The worker's address, with the engine's models registered."""
    base = f"http://{stack.gateway}"
    for model in serves.values():
        control_plane.register(model, engine.url)
        eventually("it is served", lambda: answers(f"{base}/v1/models/{model}"))
    return base


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def said():
    """What came straight from the engine, by test."""
    return {}


@pytest.fixture(params=WAYS)
def route(request, engine, worker, serves, said):
    base = worker if request.param == "through" else engine.url
    route = Route(request.param, base, engine, serves)
    yield route
    for client in reversed(route.closing):
        client.close()
    test = request.node.nodeid.replace(request.param, "")
    compare(said, test, route)


def compare(said, test, route):
    """Through the worker a client sees what it sees without."""
    now = route.recording.comparable()
    if not route.through:
        said[test] = now
        return
    before = said.get(test)
    assert before is not None, "it has not run straight"
    assert len(now) == len(before)
    for (straight, through) in zip(before, now):
        if isinstance(route.engine, Vllm) and through != straight:
            straight, through = timeless(straight), timeless(through)
        assert through == straight


def timeless(seen):
    """Of a stream, what does not hang on when the engine came to send it."""
    *rest, headers, body, whole = seen
    if headers["content-type"].startswith("text/event-stream"):
        body = joined(body)
    return *rest, headers, body, whole


@pytest.fixture
def client(route):
    """The official SDK; what it gets is compared."""
    return route.openai(http_client=route.noted())


@pytest.fixture
def claude(route):
    """Anthropic's SDK; what it gets is compared."""
    client = anthropic.Anthropic(
        base_url=route.base, api_key="any", max_retries=0, http_client=route.noted()
    )
    route.closing.append(client)
    return client


@pytest.fixture
def model(route):
    return route.serves["chat"]


numbers = itertools.count()


class Told:
    """A scripted upstream and a way to it."""

    def __init__(self, route, upstream, model):
        self.route, self.upstream, self.model = route, upstream, model
        self.hello = {"model": model, "messages": [{"role": "user", "content": "hello"}]}

    def sdk(self, **options):
        return self.route.openai(**options)


@pytest.fixture(params=WAYS)
def told(request, stack, control_plane, said):
    """A scripted upstream, straight or through the worker; what clients get is compared."""
    model = f"told-{next(numbers)}"
    upstream = Scripted(model)
    base = upstream.url
    if request.param == "through":
        control_plane.register(model, upstream.url)
        base = f"http://{stack.gateway}"
        eventually("it is served", lambda: answers(f"{base}/v1/models/{model}"))
    route = Route(request.param, base, None, {})
    yield Told(route, upstream, model)
    for client in reversed(route.closing):
        client.close()
    upstream.stop()
    compare(said, request.node.nodeid.replace(request.param, ""), route)
