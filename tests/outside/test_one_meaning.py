"""The gateway and Python read the same of a body, or the gateway refused it. vLLM reads JSON with Python and forms
with Starlette, which is python-multipart."""

import asyncio
import json
import struct
import subprocess

import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from processes import TARGET

BOUNDARY = "b0undary.of-Forebay"
LIMITS = ["max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"]


def bodies(kind, count, seed):
    """Each body and what the gateway reads of it."""
    path = TARGET / "one-meaning"
    assert path.exists(), f"{path} is missing: cargo build --workspace"
    written = subprocess.run([path, kind, str(count), str(seed)], stdout=subprocess.PIPE, check=True).stdout
    records, at = [], 0
    while at < len(written):
        (length,) = struct.unpack_from(">I", written, at)
        records.append(written[at + 4 : at + 4 + length])
        at += 4 + length
    assert len(records) == 2 * count
    for body, verdict in zip(records[::2], records[1::2]):
        yield body, json.loads(verdict)


@pytest.mark.parametrize("seed", [1, 2])
def test_json(seed):
    count, accepted = 50_000, 0
    for body, verdict in bodies("json", count, seed):
        if "refused" in verdict:
            continue
        accepted += 1
        read = json.loads(body)
        assert type(read) is dict, body
        assert read.get("model") == verdict["model"], body
        assert read.get("stream") in (True, False, None), body
        assert bool(read.get("stream")) == verdict["stream"], body
        for name in LIMITS:
            limit = read.get(name)
            assert limit is None or type(limit) is int, body
            # Which asks for as much as there is.
            limit = None if limit == -1 else limit
            assert limit == verdict["limits"][name], body
        options = read.get("stream_options") or {}
        assert bool(options.get("include_usage")) == verdict["include_usage"], body
        # Whatever else is in it can be written again: no halves of surrogate pairs, no infinity.
        json.dumps(read, ensure_ascii=False, allow_nan=False).encode("utf-8", "strict")
    print(f"{accepted} of {count} accepted")
    assert 0.2 * count < accepted < 0.9 * count


def parse(body):
    async def pieces():
        yield body
        yield b""

    headers = Headers({"content-type": f"multipart/form-data; boundary={BOUNDARY}"})
    return asyncio.run(MultiPartParser(headers, pieces()).parse())


TRUTHS = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}


def test_forms():
    count, accepted = 20_000, 0
    for body, verdict in bodies("form", count, 3):
        if "refused" in verdict:
            continue
        accepted += 1
        form = parse(body)
        models = form.getlist("model")
        assert models == ([] if verdict["model"] is None else [verdict["model"]]), body
        streams = form.getlist("stream")
        assert [TRUTHS[text] for text in streams] == ([verdict["stream"]] if streams else []), body
        assert streams or not verdict["stream"], body
        for name in LIMITS:
            limit = verdict["limits"][name]
            assert [int(text) for text in form.getlist(name)] == ([] if limit is None else [limit]), body
    print(f"{accepted} of {count} accepted")
    assert 0.2 * count < accepted < 0.9 * count
