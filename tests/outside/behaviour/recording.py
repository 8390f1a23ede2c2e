"""What went over the wire between a client and whatever answered it, noted without being changed, and made
comparable: ids and times are of one answer only, everything else must be the same on every way."""

import json
import re

import httpx2

# Of one connection, of one moment, or of who answered last.
NOT_COMPARED = {"connection", "content-length", "date", "keep-alive", "transfer-encoding", "x-request-id"}
# Who an engine is does not pass; that nobody may hold a stream back is said in its place.
NOT_COMPARED |= {"server", "x-mock-name", "cache-control", "x-accel-buffering"}
IDS = re.compile(rb'"(id|item_id|response_id|call_id|request_id|previous_response_id)":( ?)"([^"]*)"')
TIMES = re.compile(rb'"(created|created_at|completed_at)":( ?)[0-9.]+')


# Where the text of an event stands.
TEXTS = [
    ("choices", 0, "text"),
    ("choices", 0, "delta", "content"),
    ("choices", 0, "delta", "tool_calls", 0, "function", "arguments"),
    ("delta", "text"),
    ("delta",),
]


class Exchange:
    """One request and its answer."""

    def __init__(self, request, answer):
        self.asked = f"{request.method} {request.url.path}"
        self.status = answer.status_code
        self.headers = dict(answer.headers)
        self.body = b""
        self.whole = False

    def comparable(self, names):
        """Ids by their order of appearance, so that what belongs together still does."""

        def name(found):
            known = names.setdefault(found[3], f"id-{len(names)}".encode())
            return b'"%s":%s"%s"' % (found[1], found[2], known)

        # An id in a path is one that was told before.
        parts = [names.get(part.encode(), part.encode()).decode() for part in self.asked.split("/")]
        body = TIMES.sub(rb'"\1":\g<2>0', IDS.sub(name, self.body))
        headers = {n: v for n, v in self.headers.items() if n not in NOT_COMPARED}
        return "/".join(parts), self.status, headers, body, self.whole


class Recording(httpx2.BaseTransport):
    """A transport that notes every exchange."""

    def __init__(self):
        self.inner = httpx2.HTTPTransport()
        self.exchanges = []

    def handle_request(self, request):
        answer = self.inner.handle_request(request)
        exchange = Exchange(request, answer)
        self.exchanges.append(exchange)
        return httpx2.Response(
            answer.status_code,
            headers=answer.headers,
            stream=Noted(answer.stream, exchange),
            extensions=answer.extensions,
        )

    def close(self):
        self.inner.close()

    def comparable(self):
        names = {}
        return [exchange.comparable(names) for exchange in self.exchanges]


class Noted(httpx2.SyncByteStream):
    def __init__(self, inner, exchange):
        self.inner, self.exchange = inner, exchange

    def __iter__(self):
        for part in self.inner:
            self.exchange.body += part
            yield part
        self.exchange.whole = True

    def close(self):
        self.inner.close()


def joined(body):
    """What the events of a stream say together, and which kinds of events they are. A real engine that has made
    two tokens before it comes to send one sends both in one event: when, is a matter of time."""
    said, kinds = "", []
    for block in body.split(b"\n\n"):
        name, _, data = block.rpartition(b"data: ")
        if data in (b"", b"[DONE]"):
            kinds.append((name, data))
            continue
        event = json.loads(data)
        event.pop("sequence_number", None)
        for path in TEXTS:
            text = cut(event, path)
            if isinstance(text, str):
                said += text
                break
        kind = (name, json.dumps(event))
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return said, kinds


def cut(value, path):
    """Takes out what stands there, if it is text."""
    try:
        for step in path[:-1]:
            value = value[step]
        found = value[path[-1]]
    except (KeyError, IndexError, TypeError):
        return None
    if isinstance(found, str):
        value[path[-1]] = ""
    return found
