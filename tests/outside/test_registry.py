"""Reflection clients: what a person with grpcurl would do, by two clients that are not ours."""

import json
import subprocess
import time

import grpc
import openai
import pytest

from control_plane import bad_fields
from processes import eventually

SERVICES = {
    "forebay.v1.ModelRegistry",
    "forebay.v1.PoolSettings",
    "forebay.v1.Fleet",
    "forebay.v1.Revisions",
    "forebay.v1.WorkerSync",
    "grpc.health.v1.Health",
}
BAD = {
    "id": "no spaces",
    "aliases": [""],
    "endpoints": [{"url": "ftp://x"}, {"url": "http://h:1/v1", "weight": 0}],
    "pool": {"maxConcurrent": 0, "keepalive": 100, "idleTimeout": "0.001s"},
}
BAD_FIELDS = {
    "model.id",
    "model.aliases[0]",
    "model.endpoints[0].url",
    "model.endpoints[1].url",
    "model.endpoints[1].weight",
    "model.pool.max_concurrent",
    "model.pool.idle_timeout",
}


def buf_curl(stack, *args):
    """Runs `buf curl`; its exit code, and what it printed."""
    command = ["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_lists_registers_and_reads(stack, mock, control_plane, sdk, version):
    url = f"http://{stack.control}"
    reflect = ["--reflect-protocol", version]
    listed = buf_curl(stack, *reflect, "--list-services", url)
    assert set(listed.stdout.split()) >= SERVICES, listed.stderr

    model = {"id": "slow" if version == "grpc-v1" else "late", "endpoints": [{"url": mock.url}]}
    create = f"{url}/forebay.v1.ModelRegistry/CreateModel"
    created = buf_curl(stack, *reflect, "-d", json.dumps({"model": model}), create)
    assert created.returncode == 0, created.stderr
    answer = json.loads(created.stdout)
    assert int(answer["revision"]) > 1
    assert answer["resolvedPool"]["keepalive"] == 50
    control_plane.everywhere()
    chat = sdk.chat.completions.create(
        model=model["id"], messages=[{"role": "user", "content": "hello"}], max_tokens=1
    )
    assert chat.model == model["id"]

    bad = buf_curl(stack, *reflect, "-d", json.dumps({"model": BAD}), create)
    assert bad.returncode == 24, "8 x the code of INVALID_ARGUMENT"
    # This client shows details as base64 whatever the server does, so the message says it all.
    for field in BAD_FIELDS:
        assert field in bad.stderr, bad.stderr


def test_services_are_listed(control_plane):
    assert control_plane.services() >= SERVICES


def test_every_bad_field_is_told_at_once(control_plane):
    with pytest.raises(grpc.RpcError) as raised:
        control_plane.call("ModelRegistry", "CreateModel", model=BAD)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert set(bad_fields(raised.value)) >= BAD_FIELDS
    # The types of the details can be looked up, so that grpcurl prints them as text.
    for name in ("google.rpc.BadRequest", "google.rpc.ErrorInfo"):
        assert control_plane.pool.FindMessageTypeByName(name)


def test_the_seeds_mistake_is_refused_with_the_arithmetic(control_plane):
    with pytest.raises(grpc.RpcError) as raised:
        control_plane.call("PoolSettings", "UpdatePoolSettings", settings={"keepalive": 100})
    (field, said), = bad_fields(raised.value).items()
    assert field == "settings.keepalive"
    for part in ("150 connections", "100", "66.7 %", "50"):
        assert part in said, said


def test_a_mistake_is_found_and_undone(control_plane):
    """By a client that knows the services from reflection alone."""
    endpoints = [{"url": "http://127.0.0.1:9"}]
    models = [{"create": {"model": {"id": f"undo-{n}", "endpoints": endpoints}}} for n in range(3)]
    made = control_plane.call("ModelRegistry", "BatchUpdateModels", items=models)
    assert made["created"] == 3
    assert {change["model"] for change in made["changes"]} == {"undo-0", "undo-1", "undo-2"}
    diff = control_plane.call("Revisions", "DiffRevisions")
    assert diff["changes"] == made["changes"]
    assert diff["changes"][0]["kind"] == "KIND_CREATED"
    before = str(int(made["revision"]) - 1)
    back = control_plane.call("Revisions", "RollbackRevision", revision=before)
    assert back["changed"] == 3
    newest = control_plane.call("Revisions", "ListRevisions", pageSize=1)["revisions"][0]
    assert (newest["revision"], newest["rolledBackTo"]) == (back["revision"], before)


def test_a_registration_is_served_at_once(control_plane, mock, sdk):
    """The mock does not know these models, so the first answer that is not ours is its 404."""
    took, plain = [], []
    for n in range(50):
        began = time.monotonic()
        sdk.completions.create(model="chat", prompt="hello", max_tokens=1)
        plain.append(time.monotonic() - began)
        # Pools of one: the worker holds as many open files for them as it has slots.
        control_plane.register(f"at-once-{n}", mock.url, pool={"maxConcurrent": 1})
        answered = time.monotonic()
        eventually("it is served", lambda: is_served(sdk, f"at-once-{n}"), every=0)
        took.append(time.monotonic() - answered)
    took.sort()
    plain.sort()
    print(f"answer to first response: median {took[25] * 1000:.1f} ms, max {took[-1] * 1000:.1f} ms")
    # Pushes are 50 ms apart at the least, and what a request takes here and now comes on top.
    assert took[25] < 0.05 + 2 * plain[25]


def is_served(sdk, model):
    """Whether the answer is the engine's, which has no such model."""
    with pytest.raises(openai.NotFoundError) as raised:
        sdk.completions.create(model=model, prompt="hello")
    return raised.value.code != "model_not_found"


def test_a_revision_is_everywhere(control_plane, sdk):
    control_plane.everywhere()
    rollout = control_plane.call("Fleet", "GetRollout")
    assert rollout["complete"] and rollout["applied"] == 1
    assert rollout["workers"][0]["state"] == "WORKER_STATE_APPLIED"
