"""The programs that most tests need: a mock vLLM, and a control plane with a worker."""

import json
import urllib.request

from processes import Program

ANY = "127.0.0.1:0"


class Mock:
    """A mock vLLM and what it counts."""

    exact = True

    def __init__(self, models, interval_ms=20):
        self.program = Program(
            "forebay-mock-vllm", "--listen", ANY, "--models", ",".join(models),
            "--interval-ms", str(interval_ms),
        )
        self.url = self.program.printed(r"mock vLLM on (\S+)")

    def stats(self):
        return json.loads(get(f"{self.url}/__stats"))

    def running(self):
        return self.stats()["in_flight"]


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
