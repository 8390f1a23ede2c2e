"""Node's own fetch (undici), which keeps connections in its own way."""

import json
import pathlib
import shutil
import subprocess

import pytest

from processes import eventually

CLIENT = pathlib.Path(__file__).with_name("client.mjs")


@pytest.mark.needs("chat")
def test_fetch(route, said, model):
    node = shutil.which("node") or shutil.which("nodejs")
    assert node, "node is missing (Debian: nodejs)"
    command = [node, CLIENT, route.base, model, str(route.long)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["whole"] and seen["stream"] == seen["whole"] and seen["done"]
    assert seen["read"] == 3 and seen["aborted"] == "AbortError"
    assert seen["nobody"] == [404, "model"]
    assert seen["many"] == 32
    # An engine may close a connection just as it is used again; the worker outlasts its clients.
    again = seen.pop("again")
    assert again == 0 or not route.through
    assert said.setdefault("node", seen) == seen
    eventually("the engine rests", lambda: route.engine.running() == 0)
