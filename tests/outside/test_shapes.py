"""The mock answers in the shape in which a real vLLM was seen to answer (captures/, made by shapes.py)."""

import json

import pytest

from shapes import CAPTURES, CASES, ask, fields, steps
from stack import Mock

SERVES = {"chat": "tiny", "embed": "bert", "audio": "whisper"}


@pytest.fixture(scope="module")
def engine():
    mock = Mock(SERVES.values(), interval_ms=1)
    yield mock
    mock.program.stop()


@pytest.mark.parametrize("name", CASES)
def test_shape(engine, name):
    captured = json.loads((CAPTURES / f"{name}.json").read_text())
    told = ask(engine.url, CASES[name], SERVES)
    assert told["status"] == captured["status"]
    assert told["type"] == captured["type"]
    assert set(told["headers"]) <= set(captured["headers"])
    if "events" in captured:
        compare_streams(steps(told), steps(captured))
    else:
        compare(fields(told["body"]), fields(captured["body"]))


def compare(mocked, real):
    """Nothing that vLLM has not, of no other type, and everything that it fills in."""
    invented = set(mocked) - set(real)
    assert not invented
    for path, kind in real.items():
        # The mock always says all that it had to say.
        if kind is not None and not path.endswith("incomplete_details.reason"):
            assert path in mocked, f"{path} is missing"
            assert mocked[path] in (kind, None), path


def compare_streams(mocked, real):
    """The kinds of events in their order, and each kind's fields."""
    kinds = lambda found: list(dict.fromkeys(kind for kind, _ in found))
    assert kinds(mocked) == kinds(real)
    for kind in kinds(real):
        compare(together(mocked, kind), together(real, kind))


def together(found, kind):
    """The fields of all events of a kind."""
    union = {}
    for name, inner in found:
        if name == kind:
            for path, of in inner.items():
                union[path] = union.get(path) or of
    return union
