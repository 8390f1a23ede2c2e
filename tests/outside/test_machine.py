"""The systemd units on a machine whose first process is systemd (a container): a worker is reloaded, restarted, killed and
stalled under load, within the limits that its unit sets it."""

import subprocess
import time

import pytest

import load
from composed import Composed, docker
from processes import ROOT, eventually
from stack import get

NAME = "forebay-outside-machine"
WORKER = "forebay-worker@w1.service"
# Reachable from this side.
DROP_INS = {
    "forebay-gateway@w1.socket.d": "[Socket]\nListenStream=\nListenStream=0.0.0.0:8080\n",
    "forebay-admin@w1.socket.d": "[Socket]\nListenStream=\nListenStream=0.0.0.0:8081\n",
    "forebay-worker@w1.service.d": "[Service]\nPrivateUsers=no\nEnvironment=FOREBAY_INSECURE=true\n",
    # A container has no users to give away.
    "forebay-control.service.d": "[Service]\nPrivateUsers=no\n",
}


class Machine:
    """A container that is one."""

    def __init__(self):
        # What systemd itself needs to mount and to keep its groups of processes; no more than that.
        docker(
            "run", "--detach", "--name", NAME, "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined",
            "--security-opt", "apparmor=unconfined", "--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup",
            "--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", "--env", "container=docker", NAME,
        )
        eventually("systemd is up", lambda: self.state() in ("running", "degraded"), 60, every=0.2)
        self.address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", NAME).strip()
        self.gateway, self.admin = f"{self.address}:8080", f"http://{self.address}:8081"

    def state(self):
        done = subprocess.run(["docker", "exec", NAME, "systemctl", "is-system-running"], capture_output=True, text=True)
        return done.stdout.strip()

    def does(self, *args):
        return docker("exec", NAME, *args)

    def write(self, path, text):
        subprocess.run(
            ["docker", "exec", "-i", NAME, "sh", "-c", f"mkdir -p $(dirname {path}) && cat >{path}"],
            input=text, text=True, check=True,
        )

    def of_worker(self, what):
        return self.does("systemctl", "show", "--value", "--property", what, WORKER).strip()

    def signal(self, name, pid):
        self.does("sh", "-c", f"kill -{name} {pid}")

    def ready(self):
        try:
            return get(f"{self.admin}/readyz").startswith("ready: revision")
        except OSError:
            return False


@pytest.fixture(scope="module")
def machine():
    Composed(None, ["control"]).build()
    dockerfile = ROOT / "tests/outside/systemd.Dockerfile"
    docker("build", "--tag", NAME, "--file", str(dockerfile), str(ROOT / "deploy/systemd"))
    subprocess.run(["docker", "rm", "--force", NAME], capture_output=True)
    machine = None
    try:
        machine = Machine()
        for folder, text in DROP_INS.items():
            machine.write(f"/etc/systemd/system/{folder}/test.conf", text)
        machine.does("systemctl", "daemon-reload")
        machine.does("systemd-run", "--unit=engine", "forebay-mock-vllm", "--listen", "127.0.0.1:8000", "--models", "m")
        machine.does("systemctl", "enable", "--now", "forebay-control.service")
        machine.does(
            "systemctl", "enable", "--now", "forebay-gateway@w1.socket", "forebay-admin@w1.socket", WORKER
        )
        machine.does("forebay", "models", "create", "m", "--endpoint", "http://127.0.0.1:8000")
        machine.does("forebay", "fleet", "rollout", "--wait")
        yield machine
    finally:
        if machine:
            print(machine.does("journalctl", "--no-pager", "-n", "200", "-u", "forebay*"))
        subprocess.run(["docker", "rm", "--force", NAME], capture_output=True)


def more(clients, count=15):
    since = time.monotonic()
    eventually("requests are served", lambda: clients.served(since) >= count, 60)


def test_both_services_run_in_their_limits(machine):
    for unit in ("forebay-control.service", WORKER):
        assert machine.does("systemctl", "is-active", unit).strip() == "active"
    assert machine.of_worker("StatusText") == "serving on 0.0.0.0:8080"
    pid = machine.of_worker("MainPID")
    status = dict(line.split(":", 1) for line in machine.does("cat", f"/proc/{pid}/status").splitlines() if ":" in line)
    assert status["CapEff"].split() == ["0000000000000000"] and status["NoNewPrivs"].split() == ["1"]
    assert status["Seccomp"].split() == ["2"] and status["Uid"].split()[0] != "0"


def test_a_reload_is_another_process_and_nobody_notices(machine):
    before = machine.of_worker("MainPID")
    with load.Load(machine.gateway, ["m"]) as clients:
        more(clients)
        machine.does("systemctl", "reload", WORKER)
        taken = lambda: machine.of_worker("MainPID") not in (before, "0")
        eventually("another process is the main one", taken, 90, every=0.2)
        gone = lambda: machine.does("sh", "-c", f"test -e /proc/{before} || echo gone").strip() == "gone"
        eventually("the old one has ended", gone, 60, every=0.2)
        more(clients)
    load.told("systemctl reload", clients, [], 0.0)
    assert clients.failed() == []
    assert machine.does("systemctl", "is-active", WORKER).strip() == "active"
    assert machine.of_worker("NRestarts") == "0"


def test_a_restart_refuses_nobody(machine):
    with load.Load(machine.gateway, ["m"]) as clients:
        more(clients)
        machine.does("systemctl", "restart", WORKER)
        more(clients)
    load.told("systemctl restart", clients, [], 0.0)
    assert clients.failed() == []


def test_one_that_is_killed_is_back_and_nobody_is_refused(machine):
    with load.Load(machine.gateway, ["m"]) as clients:
        more(clients)
        pid = machine.of_worker("MainPID")
        killed = time.monotonic()
        machine.signal("KILL", pid)
        replaced = lambda: machine.of_worker("MainPID") not in (pid, "0") and machine.ready()
        eventually("another one serves", replaced, every=0.05)
        back = time.monotonic()
        more(clients)
    load.told("kill -9 under systemd", clients, clients.failed(), killed)
    assert all(asked.began <= back for asked in clients.failed())
    assert not [asked for asked in clients.failed() if "refused" in asked.failed.lower()]
    assert machine.of_worker("NRestarts") == "1"


def test_one_that_is_stuck_is_killed_by_the_watchdog(machine):
    # Not waited for for half a minute; it counts for a process that was started with it.
    machine.write(f"/etc/systemd/system/{WORKER}.d/watchdog.conf", "[Service]\nWatchdogSec=3\n")
    machine.does("systemctl", "daemon-reload")
    machine.does("systemctl", "restart", WORKER)
    eventually("it is ready again", machine.ready, 60, every=0.2)
    before = machine.of_worker("MainPID")
    machine.signal("STOP", before)
    replaced = lambda: machine.of_worker("MainPID") not in (before, "0") and machine.ready()
    eventually("another one serves", replaced, 60, every=0.2)


def test_after_a_boot_all_is_as_it_was(machine):
    docker("restart", NAME)
    machine.address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", NAME).strip()
    eventually("it serves", machine.ready, 90, every=0.2)
    assert "m" in machine.does("forebay", "models", "list")
