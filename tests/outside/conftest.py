"""One control plane with a worker, and a mock upstream, for all tests of a run."""

import json
import urllib.request

import openai
import pytest

from control_plane import ControlPlane
from processes import Program, eventually

MODELS = ["chat", "slow", "late"]
ANY = "127.0.0.1:0"


class Mock:
    """A mock vLLM and what it counts."""

    def __init__(self):
        self.program = Program(
            "forebay-mock-vllm", "--listen", ANY, "--models", ",".join(MODELS), "--interval-ms", "20"
        )
        self.url = self.program.printed(r"mock vLLM on (\S+)")

    def stats(self):
        return json.loads(get(f"{self.url}/__stats"))


class Stack:
    """A control plane with a worker in one process."""

    def __init__(self, data_dir):
        self.program = Program(
            "forebay", "standalone", "--data-dir", str(data_dir), "--listen", ANY,
            "--admin-listen", ANY, "--control-listen", ANY,
        )
        self.gateway = self.program.printed(r"gateway +http://(\S+)/v1")
        self.admin = self.program.printed(r"admin +http://(\S+)")
        self.control = self.program.printed(r"control +(127\S+)")


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture(scope="session")
def mock():
    mock = Mock()
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
    eventually("the model is served", served, within=1)
    return client
