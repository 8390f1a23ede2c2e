"""The compose file as it stands, with one of its profiles: containers that are started, killed, stopped and looked at."""

import json
import os
import re
import shutil
import signal
import subprocess

from processes import ROOT, eventually
from stack import get

PROJECT = "forebay-outside"
WORKERS = {f"worker-{n}": (f"127.0.0.1:818{n}", f"127.0.0.1:819{n}") for n in (1, 2, 3)}
ENGINES = [f"engine-{n}" for n in (1, 2, 3)]
BALANCER = "127.0.0.1:8080"
START_WITHIN = 90
PROFILES = ["default", "ha", "observability"]


def command():
    """Compose as a plugin of Docker, or as a program of its own."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
    return ["docker", "compose"] if plugin.returncode == 0 else [shutil.which("docker-compose")]


def docker(*args):
    done = subprocess.run(["docker", *args], capture_output=True, text=True)
    assert done.returncode == 0, f"docker {args}: {done.stderr[-2000:]}"
    return done.stdout


class Composed:
    """One profile of the compose file; `None` is what the newcomer's first command starts."""

    def __init__(self, profile, services):
        self.profiles = [profile] if profile else []
        self.services = services

    def compose(self, *args, profiles=None):
        # CI needs to see that it starts, not how fast it is.
        env = {"FOREBAY_BUILD_PROFILE": "dev", **os.environ}
        flags = [flag for name in profiles or self.profiles for flag in ("--profile", name)]
        done = subprocess.run(
            [*command(), "--project-name", PROJECT, *flags, *args],
            cwd=ROOT, env=env, capture_output=True, text=True,
        )
        assert done.returncode == 0, f"{args}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def build(self):
        """The images as the compose file makes them; Forebay's own are left alone with FOREBAY_IMAGES=there."""
        there = os.environ.get("FOREBAY_IMAGES") == "there"
        own = [] if there else ["worker-1", "engine-1"]
        others = ["balancer", *(service for service in self.services if service == "etcd-1")]
        self.compose("build", *own, *others)

    def up(self):
        self.compose("up", "--detach", "--no-build")
        self.all_healthy()

    def down(self, *args):
        """Whatever profile it was that something is left of."""
        self.compose("down", "--timeout", "10", "--remove-orphans", *args, profiles=PROFILES)

    def container(self, service):
        found = docker(
            "ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}",
            "--filter", f"label=com.docker.compose.service={service}",
        )
        assert len(found.split()) == 1, f"{service}: {found!r}"
        return found.strip()

    def inspect(self, service):
        return json.loads(docker("inspect", self.container(service)))[0]

    def healthy(self, service):
        state = self.inspect(service)["State"]
        return state["Running"] and state["Health"]["Status"] == "healthy"

    def all_healthy(self):
        for service in self.services:
            eventually(f"{service} is healthy", lambda: self.healthy(service), START_WITHIN, every=0.3)
        in_use = lambda: all(balancer_uses(worker) for worker in WORKERS)
        eventually("the balancer uses all workers", in_use, START_WITHIN, every=0.3)

    def kill(self, service):
        """Kills it, and it stays dead: its address goes too."""
        docker("kill", self.container(service))

    def crash(self, service):
        """Kills its process; that it comes back is Docker's doing."""
        os.kill(self.inspect(service)["State"]["Pid"], signal.SIGKILL)

    def start(self, service):
        docker("start", self.container(service))
        eventually(f"{service} is back", lambda: self.healthy(service), START_WITHIN, every=0.3)
        if service in WORKERS:
            used = lambda: balancer_uses(service)
            eventually(f"the balancer uses {service}", used, START_WITHIN, every=0.1)

    def logs(self):
        return self.compose("logs", "--no-color", "--tail", "40")

    def balancer_log(self):
        """What the balancer says of requests that did not go well at once: their id to (server, how it ended)."""
        done = subprocess.run(
            ["docker", "logs", self.container("balancer")], capture_output=True, text=True, check=True
        )
        lines = re.findall(r"^(\S+) \S+ \S+ \d+ (\S+) retries=\S+ server=(\S+)", done.stdout, re.M)
        return {id: (server, ended) for id, ended, server in lines}


def balancer_uses(worker):
    """Whether the balancer sends requests there."""
    try:
        page = get("http://127.0.0.1:8404/metrics")
    except OSError:
        return False
    up = rf'^haproxy_server_status{{proxy="workers",server="{worker}",state="UP"}} 1$'
    return re.search(up, page, re.M) is not None


def metric(admin, name, label=""):
    """The sum of a metric's series on a worker; of those with this label, if one is named."""
    page = get(f"http://{admin}/metrics")
    series = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", page, re.M)
    return sum(float(value) for labels, value in series if label in labels)
