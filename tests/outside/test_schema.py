"""schemathesis with vLLM's own schema, through the worker to the mock: nothing that it thinks of ends in a 5xx."""

import collections

from processes import eventually
from schema import ALLOWED, kept_in, operation, pinned, schemathesis
from shapes import CAPTURES
from stack import Mock, get

SERVES = {"chat": "schema-chat", "embed": "schema-embed", "audio": "schema-audio"}
CASES = 300


def test_no_server_errors(stack, control_plane, tmp_path):
    schema = kept_in(CAPTURES / "openapi.json.gz")
    assert set(schema["paths"]) <= set(ALLOWED)
    mock = Mock(SERVES.values(), interval_ms=0)
    for model in SERVES.values():
        control_plane.register(model, mock.url)
    base = f"http://{stack.gateway}"
    eventually("served", lambda: all(model in get(f"{base}/v1/models") for model in SERVES.values()))
    made, said = schemathesis(pinned(schema, SERVES), base, "fuzzing", 1, 25, 900, tmp_path / "run")
    mock.program.stop()
    statuses = collections.Counter(status for _, status in made)
    print(f"{len(made)} cases: {dict(statuses)}")
    bad = {f"{operation(request)} {status}" for request, status in made if status >= 500}
    assert not bad, said
    assert len(made) > CASES and statuses[200] > CASES / 10
