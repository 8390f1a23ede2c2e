"""One control plane with a worker, and a mock upstream, for all tests of a run."""

import openai
import pytest

from control_plane import ControlPlane
from processes import eventually
from stack import Mock, Stack

MODELS = ["chat", "slow", "late"]


def pytest_addoption(parser):
    engine = parser.getgroup("the engine behind the behaviour suite; the mock if none is named")
    engine.addoption("--engine", metavar="URL", help="a vLLM that runs, such as http://127.0.0.1:8101")
    engine.addoption(
        "--serves", metavar="CAN=MODEL", action="append", default=[],
        help="what it can (chat, embed, audio) by which model; may be given several times",
    )


@pytest.fixture(scope="session")
def mock():
    mock = Mock(MODELS)
    yield mock
    mock.program.stop()


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("data"))
    yield stack
    stack.program.stop()


@pytest.fixture(scope="session")
def control_plane(stack):
    return ControlPlane(stack.control)


@pytest.fixture(scope="session")
def sdk(stack, mock, control_plane):
    """The official SDK on the worker, with the model `chat` and its alias `default`."""
    control_plane.register("chat", mock.url, aliases=["default"])
    client = openai.OpenAI(base_url=f"http://{stack.gateway}/v1", api_key="any", max_retries=0)
    served = lambda: "chat" in [model.id for model in client.models.list()]
    eventually("the model is served", served)
    return client
