"""The systemd units, by systemd's own tools, and a worker that is started as its socket units start it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

import load
from processes import ROOT, TARGET, eventually, helped
from stack import get

UNITS = ROOT / "deploy/systemd"
NAMES = ["forebay-control.service", "forebay-worker@w1.service", "forebay-gateway@w1.socket", "forebay-admin@w1.socket"]
# systemd's measure of what a service could do, 0 (nothing) to 10; what cannot be less is the network.
EXPOSED_AT_MOST = 2.0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A system on which they are installed, as far as the tools look."""
    root = tmp_path_factory.mktemp("root")
    (root / "etc/systemd/system").mkdir(parents=True)
    for unit in UNITS.iterdir():
        shutil.copy(unit, root / "etc/systemd/system")
    for program in ("usr/bin/forebay", "bin/sh"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).write_text("#!/bin/sh\n")
        (root / program).chmod(0o755)
    (root / "usr/lib").mkdir(exist_ok=True)
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    return root


def analyze(root, *args):
    return subprocess.run(
        ["systemd-analyze", *args[:1], f"--root={root}", *args[1:]],
        capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"},
    )


def test_systemd_accepts_the_units(root):
    done = analyze(root, "verify", *NAMES)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_what_systemd_would_not_accept_is_seen(root):
    """The check checks."""
    unit = root / "etc/systemd/system/wrong.service"
    unit.write_text((UNITS / "forebay-control.service").read_text().replace("WatchdogSec=", "WatchDogSec="))
    try:
        assert "WatchDogSec" in analyze(root, "verify", "wrong.service").stderr
    finally:
        unit.unlink()


@pytest.mark.parametrize("unit", [name for name in NAMES if name.endswith(".service")])
def test_a_service_can_do_little_else(root, unit):
    done = analyze(root, "security", "--offline=true", unit)
    exposed = float(re.search(r"exposure level for \S+: (\S+)", done.stdout).group(1))
    print(f"{unit}: {exposed} of 10")
    assert exposed <= EXPOSED_AT_MOST


def test_the_grace_fits_in_the_stop(root):
    text = (UNITS / "forebay-worker@.service").read_text()
    default = lambda flag: int(re.search(rf"{flag} .*?\[default: (\d+)s\]", helped("worker"), re.S).group(1))
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M).group(1))
    delay = int(re.search(r"^Environment=.*\bFOREBAY_DRAIN_DELAY=(\d+)s$", text, re.M).group(1))
    assert stop >= default("--grace") + delay + 5


class Manager:
    """systemd as far as a worker sees it: two sockets with names, and a place to say how it goes."""

    def __init__(self, folder, control):
        self.folder, self.control = folder, control
        self.sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("gateway", "admin")}
        self.address = {name: "%s:%d" % each.getsockname() for name, each in self.sockets.items()}
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(folder / "notify"))
        self.told.settimeout(60)
        self.process, self.log = None, folder / "log"

    def start(self, **env):
        """As systemd does: the sockets from 3 on, and who they are for. The shell's id is that of what it becomes."""
        fds = [each.fileno() for each in self.sockets.values()]
        moves = " ".join(f"{3 + n}<&{fd}" for n, fd in enumerate(fds))
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec {moves}; export LISTEN_PID=$$; exec "$@"', "bash", TARGET / "forebay",
             "worker", "--control", f"http://{self.control}", "--worker-id", "w", "--data-dir", self.folder],
            # A file: whoever takes over has it too, so it does not end with this process.
            pass_fds=fds, stderr=self.log.open("a"), stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LISTEN_FDS": "2", "LISTEN_FDNAMES": ":".join(self.sockets),
                 "NOTIFY_SOCKET": str(self.folder / "notify"), **env},
        )

    def hears(self, word):
        """Waits until it is told this, and gives what came with it."""
        heard = []
        while True:
            message = dict(line.split("=", 1) for line in self.told.recv(4096).decode().splitlines())
            heard.append(message)
            if word in message:
                return message
            assert len(heard) < 1000, heard

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.ended()

    def ended(self):
        """Waits until it did, and gives its exit code and all that it logged."""
        return self.process.wait(60), self.log.read_text()


@pytest.fixture
def manager(tmp_path, stack, control_plane, mock):
    manager = Manager(tmp_path, stack.control)
    yield manager
    manager.stop()
    for each in [*manager.sockets.values(), manager.told]:
        each.close()


def configured(manager):
    return eventually("it is configured", lambda: ready(manager.address["admin"]))


def ready(admin):
    try:
        return get(f"http://{admin}/readyz").startswith("ready")
    except OSError:
        return False


def test_it_serves_on_the_sockets_that_it_is_passed_and_says_so(manager, sdk):
    manager.start(WATCHDOG_USEC="1000000")
    said = manager.hears("READY")
    assert said["MAINPID"] == str(manager.process.pid) and manager.address["gateway"] in said["STATUS"]
    configured(manager)
    for _ in range(3):
        manager.hears("WATCHDOG")
    manager.process.terminate()
    manager.hears("STOPPING")
    # Told to the end, or it would be taken for dead while it drains.
    code, log = manager.ended()
    assert code == 0, log


@pytest.mark.parametrize("names, says", [
    ("gateway:metrics", "`metrics`"), ("gateway:gateway", "two sockets"), ("gateway", "2 sockets were passed with 1 names"),
])
def test_sockets_that_nobody_would_serve_are_refused(manager, names, says):
    manager.start(LISTEN_FDNAMES=names)
    code, log = manager.ended()
    assert code == 1 and says in log, log


def test_a_restart_refuses_nobody(manager, sdk):
    """systemd keeps the sockets: who comes meanwhile waits in line."""
    # Its clients are told to come anew before it stops, so none of them meets a connection that is being closed.
    manager.start(FOREBAY_DRAIN_DELAY="1s")
    configured(manager)
    with load.Load(manager.address["gateway"], ["chat"]) as clients:
        for _ in range(3):
            before = time.monotonic()
            eventually("requests are served", lambda: clients.served(before) > 20, 60)
            manager.stop()
            manager.start(FOREBAY_DRAIN_DELAY="1s")
        after = time.monotonic()
        eventually("requests are served", lambda: clients.served(after) > 20, 60)
    load.told("restarts with socket activation", clients, [], 0.0)
    assert clients.failed() == []


def test_a_reload_is_a_new_process_and_nobody_notices(manager, sdk):
    """SIGUSR2, which is what `systemctl reload` sends."""
    manager.start(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    first = manager.hears("READY")["MAINPID"]
    configured(manager)
    with load.Load(manager.address["gateway"], ["chat"]) as clients:
        eventually("requests are served", lambda: clients.served() > 20, 60)
        os.kill(int(first), signal.SIGUSR2)
        manager.hears("RELOADING")
        second = manager.hears("READY")["MAINPID"]
        assert second != first
        code, log = manager.ended()
        assert code == 0 and "handed over" in log, log
        after = time.monotonic()
        eventually("requests are served", lambda: clients.served(after) > 20, 60)
    load.told("a reload", clients, [], 0.0)
    assert clients.failed() == []
    os.kill(int(second), signal.SIGTERM)
    manager.hears("STOPPING")
    eventually("it is gone", lambda: not running(second), 60)


def running(pid):
    """Whether a process that is not a child of ours is there and not merely waited for."""
    try:
        state = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()[0]
        return state != "Z"
    except OSError:
        return False
