"""The shape of answers: which fields, of which type, in which events; and captures of a real vLLM's.

    python tests/outside/shapes.py --engine http://127.0.0.1:8101 --serves chat=tiny

keeps its answers in tests/outside/captures/, with which test_shapes.py compares those of the mock.
"""

import argparse
import io
import json
import pathlib
import wave

import httpx2

CAPTURES = pathlib.Path(__file__).with_name("captures")
# Of a transport, or of the mock alone.
NO_HEADERS = {"connection", "content-length", "date", "transfer-encoding", "x-mock-name"}
HELLO = [{"role": "user", "content": "hello"}]
SAME = {"temperature": 0, "seed": 1, "max_tokens": 2}
PLACE = {"type": "object", "enum": [{"place": "Paris"}]}
TOOL = {
    "tools": [{
        "type": "function", "function": {"name": "weather", "parameters": PLACE, "strict": True}
    }],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "max_tokens": 100,
}
CITY = {"name": "city", "schema": {"type": "string", "enum": ["Paris", "Rome"]}, "strict": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def chat(**more):
    return "chat", "/v1/chat/completions", {"messages": HELLO, **SAME, **more}


def completion(**more):
    return "chat", "/v1/completions", {"prompt": "hello", **SAME, **more}


def response(**more):
    return "chat", "/v1/responses", {
        "input": "hello", "temperature": 0, "max_output_tokens": 16, **more
    }


def message(**more):
    return "chat", "/v1/messages", {"messages": HELLO, "max_tokens": 2, "temperature": 0, **more}


def sound(path, **fields):
    return "audio", path, {"temperature": "0", "max_completion_tokens": "2", **fields}


CASES = {
    "chat": chat(),
    "chat-stream": chat(**USAGE),
    "chat-stream-without-usage": chat(stream=True),
    "chat-tool": chat(**TOOL),
    "chat-tool-stream": chat(**TOOL, stream=True),
    "chat-json": chat(response_format={"type": "json_schema", "json_schema": CITY}, max_tokens=20),
    "chat-logprobs": chat(logprobs=True, top_logprobs=2),
    "chat-two": chat(n=2, temperature=0.9),
    "chat-bad-range": chat(temperature=-3),
    "chat-bad-type": ("chat", "/v1/chat/completions", {"messages": "no list"}),
    "chat-unknown-model": chat(model="nobody"),
    "completion": completion(),
    "completion-stream": completion(**USAGE),
    "completion-echo": completion(echo=True),
    "completion-logprobs": completion(logprobs=1),
    "completion-two-prompts": completion(prompt=["a", "b"]),
    "response": response(),
    "response-stream": response(stream=True),
    "response-background": response(background=True, store=True),
    "response-unknown": ("chat", "/v1/responses/resp_nobody", None),
    "message": message(),
    "message-stream": message(stream=True),
    "message-tokens": ("chat", "/v1/messages/count_tokens", {"messages": HELLO}),
    "message-unknown-model": message(model="nobody"),
    "message-bad": message(max_tokens="many"),
    "tokenize": ("chat", "/tokenize", {"prompt": "hello"}),
    "detokenize": ("chat", "/detokenize", {"tokens": [7, 8]}),
    "models": ("chat", "/v1/models", None),
    "embedding-float": ("embed", "/v1/embeddings", {"input": ["a", "b"], "encoding_format": "float"}),
    "embedding-base64": ("embed", "/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    "pooling": ("embed", "/pooling", {"input": ["a"], "task": "embed"}),
    "score": ("embed", "/score", {"text_1": "a", "text_2": ["b", "c"]}),
    "rerank": ("embed", "/rerank", {"query": "a", "documents": ["b", "c"]}),
    "transcription": sound("/v1/audio/transcriptions", language="en"),
    "transcription-stream": sound("/v1/audio/transcriptions", language="en", stream="true"),
    "translation": sound("/v1/audio/translations"),
}


def second():
    """A second of silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(bytes(32_000))
    return file.getvalue()


def ask(base, case, serves):
    """The answer to a case: status, names of headers, and what is in it."""
    can, path, body = case
    with httpx2.Client(base_url=base, timeout=120) as client:
        if body is None:
            answer = client.get(path)
        elif can == "audio":
            answer = client.post(path, data={"model": serves[can], **body}, files={"file": ("a.wav", second())})
        else:
            answer = client.post(path, json={"model": serves[can], **body})
    told = {
        "status": answer.status_code,
        "type": answer.headers["content-type"],
        "headers": sorted(set(answer.headers) - NO_HEADERS),
    }
    if "event-stream" in told["type"]:
        return told | {"events": events(answer.text)}
    return told | {"body": answer.json()}


def events(text):
    assert text.endswith("\n\n")
    return [event(block) for block in text[:-2].split("\n\n")]


def event(block):
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    data = fields["data"]
    return {"event": fields.get("event"), "data": data if data == "[DONE]" else json.loads(data)}


def fields(value, path="$"):
    """Every path in a value with the type that stands there; what is null has none."""
    if isinstance(value, dict):
        found = {path: "object"} if path == "$" or value else {path: None}
        # Where a completion tells tokens, they are the names.
        tokens = path.endswith(".logprobs.top_logprobs[]") and "token" not in value
        for name, inner in value.items():
            found |= fields(inner, f"{path}.{'*' if tokens else name}")
        return found
    if isinstance(value, list):
        found = {path: "list"}
        for inner in value:
            for name, kind in fields(inner, f"{path}[]").items():
                found[name] = found.get(name) or kind
        return found
    if isinstance(value, bool):
        return {path: "bool"}
    kinds = {int: "number", float: "number", str: "string", type(None): None}
    return {path: kinds[type(value)]}


def steps(told):
    """The events of a stream by their kind, one after the other; repetitions count once."""
    found = []
    for one in told["events"]:
        kind = (one["event"], fields(one["data"]))
        if kind not in found:
            found.append(kind)
    return found


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--engine", required=True)
    arguments.add_argument("--serves", metavar="CAN=MODEL", action="append", required=True)
    arguments = arguments.parse_args()
    serves = dict(word.split("=", 1) for word in arguments.serves)
    CAPTURES.mkdir(exist_ok=True)
    for name, case in CASES.items():
        if case[0] in serves:
            told = ask(arguments.engine, case, serves)
            if name == "models":
                told["body"]["data"][0]["root"] = "tiny"
            text = json.dumps(told, indent=1, ensure_ascii=True)
            (CAPTURES / f"{name}.json").write_text(text + "\n")
            print(name, told["status"])


if __name__ == "__main__":
    main()
