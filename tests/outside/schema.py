"""By hand, against a real vLLM that runs already: schemathesis with vLLM's own schema, straight and through the
worker, from the same seed; and what differs when the very same requests are sent both ways.

    python tests/outside/schema.py --engine http://127.0.0.1:8101 --serves chat=tiny [--seed 1]
        [--phases coverage,fuzzing] [--keep tests/outside/captures/openapi.json.gz]

Fails if the worker answers with a 5xx that vLLM alone does not give. Results of a run are kept in
docs/bench/real-vllm.md; what `--keep` writes is what test_schema.py runs against the mock.
"""

import argparse
import base64
import collections
import gzip
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import httpx2

from control_plane import ControlPlane
from processes import eventually
from stack import Stack, get

# What the gateway serves, and what an engine must be able to do for it.
ALLOWED = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "chat",
    "/v1/responses": "chat",
    "/v1/responses/{response_id}": "chat",
    "/v1/responses/{response_id}/cancel": "chat",
    "/v1/messages": "chat",
    "/v1/messages/count_tokens": "chat",
    "/tokenize": "chat",
    "/detokenize": "chat",
    "/v1/embeddings": "embed",
    "/pooling": "embed",
    "/classify": "embed",
    "/score": "embed",
    "/v1/score": "embed",
    "/rerank": "embed",
    "/v1/rerank": "embed",
    "/v2/rerank": "embed",
    "/v1/audio/transcriptions": "audio",
    "/v1/audio/translations": "audio",
    "/v1/audio/speech": "audio",
}
WORDS = {"description", "title", "summary", "examples", "example", "externalDocs", "tags"}
FEW = {"max_tokens": 8, "max_completion_tokens": 8, "max_output_tokens": 8, "n": 2}
FORM = "application/x-www-form-urlencoded"
NOT_SENT = {"host", "content-length", "connection", "accept-encoding", "user-agent", "x-schemathesis-testcaseid"}


def trimmed(schema, serves):
    """The operations that are allowed and can be served, with what their requests refer to and without prose."""
    paths = {path: plain(item) for path, item in schema["paths"].items() if ALLOWED.get(path) in serves}
    for item in paths.values():
        for operation in item.values():
            operation["responses"] = {"200": {"description": "answered"}}
    kept, todo = {}, [paths]
    while todo:
        for name in set(references(todo.pop())) - set(kept):
            kept[name] = plain(schema["components"]["schemas"][name])
            todo.append(kept[name])
    return {
        "openapi": schema["openapi"],
        "info": {"title": "vLLM", "version": schema["info"]["version"]},
        "paths": paths,
        "components": {"schemas": dict(sorted(kept.items()))},
    }


def plain(value, names=False):
    """Without prose; `names` are a mapping's own, and none of them is a keyword."""
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        name: plain(inner, names=name == "properties" and not names)
        for name, inner in value.items()
        if names or name not in WORDS
    }


def references(value):
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner.rsplit("/", 1)[1]
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def pinned(schema, serves):
    """With `model` being one that is served, or nearly every case would end at an unknown model; and with few tokens."""
    schema = json.loads(json.dumps(schema))
    schemas = schema["components"]["schemas"]
    for path, item in schema["paths"].items():
        model = {"type": "string", "enum": [serves[ALLOWED[path]]]}
        for operation in item.values():
            contents = operation.get("requestBody", {}).get("content", {})
            for content in contents.values():
                content["schema"] = with_model(content["schema"], model, schemas)
            if FORM in contents:
                # vLLM's schema has files in forms that cannot hold any.
                contents["multipart/form-data"] = contents.pop(FORM)
    return schema


def with_model(node, model, schemas):
    if "$ref" in node:
        node = schemas[node["$ref"].rsplit("/", 1)[1]]
    for word in ("anyOf", "oneOf"):
        if word in node:
            return {**node, word: [with_model(inner, model, schemas) for inner in node[word]]}
    if "properties" not in node:
        return node
    fields = {**node["properties"], "model": model}
    if "file" in fields:
        # As schemathesis knows files; or it sends what is no multipart form.
        fields["file"] = {"type": "string", "format": "binary"}
    few = {
        name: {"type": "integer", "minimum": 1, "maximum": most}
        for name, most in FEW.items() if name in fields
    }
    required = {*node.get("required", []), "model", *few}
    return {**node, "properties": {**fields, **few}, "required": sorted(required)}


def schemathesis(schema, base, phases, seed, examples, seconds, folder):
    """Runs it; every request that it made, and the status of the answer."""
    folder.mkdir()
    (folder / "schema.json").write_text(json.dumps(schema))
    command = [
        pathlib.Path(sys.executable).with_name("schemathesis"), "run", folder / "schema.json",
        "--url", base, "--checks", "not_a_server_error", "--phases", phases,
        "--seed", str(seed), "--max-examples", str(examples), "--no-shrink", "--continue-on-failure",
        "--request-timeout", "60", "--report", "har", "--report-har-path", folder / "har.json",
        "--report-preserve-bytes", "--warnings", "off", "--suppress-health-check", "all",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=folder)
    entries = json.loads((folder / "har.json").read_text())["log"]["entries"]
    made = [(entry["request"], entry["response"]["status"]) for entry in entries]
    assert ran.returncode in (0, 1) and made, ran.stdout + ran.stderr
    return made, ran.stdout


def send(client, base, request):
    """One recorded request again."""
    path = request["url"].split("://", 1)[1].partition("/")[2]
    headers = [(h["name"], h["value"]) for h in request["headers"] if h["name"].lower() not in NOT_SENT]
    body = base64.b64decode(request.get("postData", {}).get("text", ""))
    answer = client.request(request["method"], f"{base}/{path}", headers=headers, content=body)
    return answer.status_code, answer.text, body


def operation(request):
    path = "/" + request["url"].split("://", 1)[1].partition("/")[2].partition("?")[0]
    if path.startswith("/v1/responses/"):
        path = "/v1/responses/…" + ("/cancel" if path.endswith("/cancel") else "")
    return f"{request['method']} {path}"


def code(text):
    """What an error calls itself."""
    try:
        error = json.loads(text).get("error")
        return error.get("code") if isinstance(error, dict) else None
    except (ValueError, AttributeError):
        return None


def differences(recorded, straight, through):
    """The same requests both ways: how many of each pair of answers, with an example of those that differ."""
    pairs, examples = collections.Counter(), {}
    with httpx2.Client(timeout=60) as client:
        for request, _ in recorded:
            before, _, body = send(client, straight, request)
            after, text, _ = send(client, through, request)
            key = operation(request), before, after, code(text) if before != after else None
            pairs[key] += 1
            examples.setdefault(key, body[:200])
    return pairs, examples


def table(pairs, examples):
    for (name, before, after, error), count in sorted(pairs.items(), key=str):
        if before != after:
            example = examples[name, before, after, error]
            print(f"{count:6} × {name}: {before} alone, {after} {error} through; such as {example!r}")


def run(arguments, serves, folder, stack):
    schema = json.loads(get(f"{arguments.engine}/openapi.json"))
    version = json.loads(get(f"{arguments.engine}/version"))["version"]
    digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
    print(f"vLLM {version}, schema {digest[:16]}, {len(schema['paths'])} paths")
    schema = trimmed(schema, serves)
    if arguments.keep:
        keep(arguments.keep, schema, version)
    schema = pinned(schema, serves)
    print(f"of them allowed and served: {', '.join(schema['paths'])}")
    control = ControlPlane(stack.control)
    through = f"http://{stack.gateway}"
    for model in serves.values():
        control.register(model, arguments.engine)
        eventually("served", lambda: model in get(f"{through}/v1/models"))
    options = (arguments.phases, arguments.seed, arguments.examples, arguments.seconds)
    alone, _ = schemathesis(schema, arguments.engine, *options, folder / "alone")
    after, _ = schemathesis(schema, through, *options, folder / "through")
    bad = lambda made: collections.Counter(f"{operation(r)} {s}" for r, s in made if s >= 500)
    print(f"alone: {len(alone)} cases, 5xx: {dict(bad(alone))}")
    print(f"through: {len(after)} cases, 5xx: {dict(bad(after))}")
    failed = [(request, status) for request, status in after if status >= 500]
    pairs, examples = differences(alone + failed, arguments.engine, through)
    same = sum(count for (_, before, now, _), count in pairs.items() if before == now)
    print(f"the same requests both ways: {same} of {sum(pairs.values())} with the same status; the others:")
    table(pairs, examples)
    ours = [key for key in pairs if key[2] >= 500 > key[1]]
    print(f"5xx that vLLM alone does not give: {len(ours)}")
    return 1 if ours else 0


def keep(path, schema, version):
    """Adds what this engine serves to what is kept."""
    path = pathlib.Path(path)
    kept = kept_in(path) if path.exists() else {"paths": {}, "components": {"schemas": {}}}
    kept |= {"openapi": schema["openapi"], "info": {"title": "vLLM", "version": version}}
    kept["paths"] |= schema["paths"]
    kept["components"]["schemas"] |= schema["components"]["schemas"]
    # Without a time, so that the same is the same.
    path.write_bytes(gzip.compress(json.dumps(kept, sort_keys=True).encode(), mtime=0))


def kept_in(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--engine", required=True)
    arguments.add_argument("--serves", metavar="CAN=MODEL", action="append", required=True)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--phases", default="fuzzing", help="`coverage` makes tens of thousands of cases")
    arguments.add_argument("--examples", type=int, default=100, help="for each operation and each mode")
    arguments.add_argument("--seconds", type=int, default=1_200)
    arguments.add_argument("--keep", metavar="FILE")
    arguments = arguments.parse_args()
    serves = dict(word.split("=", 1) for word in arguments.serves)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        stack = Stack(folder / "data")
        try:
            return run(arguments, serves, folder, stack)
        finally:
            stack.program.stop()


if __name__ == "__main__":
    sys.exit(main())
