"""An upstream that answers byte by byte as it was told, and notes when it was asked what."""

import json
import socket
import struct
import threading
import time
from collections import deque

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}


def whole(status, body, **headers):
    """A JSON answer; underscores in names of headers stand for hyphens."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers, "content-length": len(body)}
    return [head(status, headers) + body]


def head(status, headers):
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} As-Told", *lines, "", ""]).encode()


def error(status, **headers):
    kind = {"message": f"status {status}, as told", "type": "Scripted", "param": "p", "code": status}
    return whole(status, {"error": kind}, **headers)


def chat(text="said"):
    message = {"role": "assistant", "content": text}
    return whole(200, {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    })


def event(text, finish=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice]}).encode() + b"\n\n"


def stream(*parts, end=b"0\r\n\r\n"):
    """An event stream, a chunk for each part; without its end, what follows decides how it looks."""
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    headers = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
    return [head(200, headers), *chunks, end]


class Fin:
    """Closes, in order."""


class Rst:
    """Resets."""


class Silence:
    """Says nothing until the client has gone."""


class Held:
    """Says nothing more until it is let go."""

    def __init__(self):
        self.let_go = threading.Event()


class Scripted:
    """Answers inference as told, in order; the last one for ever."""

    def __init__(self, model="scripted"):
        self.model = model
        self.plan, self.asked, self.gone = deque(), [], threading.Semaphore(0)
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets = set()
        self.accepting = threading.Thread(target=self._accept, daemon=True)
        self.accepting.start()

    def answers(self, *plan):
        with self.lock:
            self.plan = deque(plan)
            self.asked.clear()

    def waits(self):
        """The seconds between one request and the next."""
        times = [at for at, _ in self.asked]
        return [later - earlier for earlier, later in zip(times, times[1:])]

    def stop(self):
        if not self.accepting.is_alive():
            return
        # Or who is waiting to accept would accept once more.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.accepting.join()
        self.listener.close()
        for connection in list(self.sockets):
            connection.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        self.sockets.add(connection)
        try:
            with connection:
                while self._one(connection):
                    pass
        except OSError:
            pass
        finally:
            self.sockets.discard(connection)

    def _one(self, connection):
        """Reads one request and answers it. False: nothing more comes of this connection."""
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(65536)
            if not more:
                return False
            received += more
        top, _, body = received.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
        if first.startswith("GET"):
            # What a health check or a probe asks is no part of the plan.
            models = [{"id": self.model, "object": "model", "created": 1, "owned_by": "scripted"}]
            connection.sendall(whole(200, {"object": "list", "data": models})[0])
            return True
        with self.lock:
            self.asked.append((time.monotonic(), headers))
            plan = self.plan.popleft() if len(self.plan) > 1 else self.plan[0]
        return all(self._say(connection, part) for part in plan)

    def _say(self, connection, part):
        if part is Rst:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if part in (Fin, Rst):
            return False
        if part is Silence:
            try:
                while connection.recv(65536):
                    pass
            finally:
                self.gone.release()
            return False
        if isinstance(part, Held):
            part.let_go.wait(60)
            return True
        connection.sendall(part)
        return True
