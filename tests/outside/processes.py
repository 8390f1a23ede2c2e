"""Programs as child processes that end with the tests, and waiting for a fact instead of a time."""

import os
import pathlib
import re
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"


def eventually(what, ask, within=20.0, every=0.02):
    """The first answer of `ask` that is true; fails, naming what it waited for, after so long and at least ten looks."""
    # A machine that stands still for a while uses up no more than a part of the patience.
    spent, most = 0.0, max(within / 10, 2 * every)
    while True:
        began = time.monotonic()
        answer = ask()
        if answer:
            return answer
        assert spent < within, f"not within {within} s: {what}"
        time.sleep(every)
        spent += min(time.monotonic() - began, most)


class Program:
    """A program and the lines that it printed."""

    def __init__(self, name, *args, **env):
        path = TARGET / name
        assert path.exists(), f"{path} is missing: cargo build --workspace"
        self.lines = []
        self.process = subprocess.Popen(
            [path, *args],
            env={"PATH": os.environ["PATH"], **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def printed(self, pattern):
        """The first group of a pattern, once it was printed."""

        def ask():
            found = re.search(pattern, "".join(self.lines))
            assert found or self.process.poll() is None, "".join(self.lines)
            return found

        return eventually(f"printed {pattern}", ask).group(1)

    def stop(self):
        self.process.terminate()
        try:
            code = self.process.wait(20)
        finally:
            self.process.kill()
            self.reader.join()
        assert code == 0, f"ended with {code}:\n{''.join(self.lines)}"


def helped(role):
    """What `--help` says of a role: its flags and variables."""
    asked = [TARGET / "forebay", role, "--help"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout
