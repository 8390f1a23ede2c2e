"""The compose file as it stands: register through the control plane, both workers serve, either goes
on without the other and without the control plane, and the data outlive `down`."""

import shutil
import subprocess
import threading

import openai
import pytest

from control_plane import ControlPlane
from processes import ROOT, eventually
from stack import get

PROJECT = "forebay-outside"
CONTROL = "127.0.0.1:50051"
WORKERS = {"worker-1": ("8080", "8081"), "worker-2": ("8082", "8083")}
MODELS = {
    "llama-3.1-8b": "http://mock-llama:8000",
    "qwen2.5-7b": "http://mock-qwen:8000",
    "mistral-7b": "http://mock-mistral:8000",
}
SERVICES = ["control", *WORKERS, "mock-llama", "mock-qwen", "mock-mistral"]
START_WITHIN = 60


def command():
    """Compose as a plugin of Docker, or as a program of its own."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
    return ["docker", "compose"] if plugin.returncode == 0 else [shutil.which("docker-compose")]


def compose(*args):
    done = subprocess.run(
        [*command(), "--project-name", PROJECT, *args], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{args}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def docker(*args):
    return subprocess.run(["docker", *args], check=True, capture_output=True, text=True).stdout


def container(service):
    return compose("ps", "-q", service).strip()


def healthy(service):
    state = docker("inspect", "-f", "{{.State.Health.Status}}", container(service))
    return state.strip() == "healthy"


def all_healthy():
    for service in SERVICES:
        eventually(f"{service} is healthy", lambda: healthy(service), START_WITHIN, every=0.5)


def client(worker):
    url = f"http://127.0.0.1:{WORKERS[worker][0]}/v1"
    return openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=10)


def ask(worker, model):
    chat = client(worker).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=2
    )
    assert chat.model == model


def ask_all(worker):
    for model in MODELS:
        ask(worker, model)


def states():
    workers = ControlPlane(CONTROL).call("Fleet", "ListWorkers")["workers"]
    return {worker["id"]: worker["state"].removeprefix("WORKER_STATE_") for worker in workers}


class Load:
    """Requests to one worker, one after the other, and those that failed."""

    def __init__(self, worker):
        self.served, self.failed = 0, []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(worker,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()

    def _run(self, worker):
        while not self.stopping.is_set():
            try:
                ask_all(worker)
                self.served += len(MODELS)
            except openai.OpenAIError as error:
                self.failed.append(repr(error))


@pytest.fixture(scope="module", autouse=True)
def up():
    """Everything up, from images built now; gone without a trace at the end."""
    compose("down", "--volumes", "--timeout", "5")
    compose("build")
    try:
        compose("up", "--detach", "--no-build")
        all_healthy()
        yield
    except BaseException:
        print(compose("logs", "--no-color", "--tail", "30"))
        raise
    finally:
        compose("down", "--volumes", "--timeout", "5")


def test_what_is_registered_is_served_by_both_workers():
    control = ControlPlane(CONTROL)
    for model, url in MODELS.items():
        assert int(control.register(model, url)["revision"]) > 1
    eventually("both workers run it", lambda: set(states().values()) == {"APPLIED"}, within=5)
    assert set(states()) == set(WORKERS)
    for worker in WORKERS:
        ask_all(worker)


def test_containers_have_no_more_than_they_need():
    for service in SERVICES:
        assert docker("exec", container(service), "id", "-u").strip() == "65532"
        read_only = docker("inspect", "-f", "{{.HostConfig.ReadonlyRootfs}}", container(service))
        assert read_only.strip() == "true"
    for line in docker("ps", "--format", "{{.Names}} {{.Ports}}").splitlines():
        if line.startswith(PROJECT):
            assert "0.0.0.0:" not in line and ":::" not in line, line


def test_one_worker_stops_and_the_other_serves_on():
    with Load("worker-2") as load:
        compose("stop", "worker-1")
        eventually("it is told as gone", lambda: states()["worker-1"] == "GONE", within=5)
        with pytest.raises(openai.APIConnectionError):
            ask("worker-1", "qwen2.5-7b")
        compose("start", "worker-1")
        eventually("it is back", lambda: states()["worker-1"] == "APPLIED", START_WITHIN)
        ask_all("worker-1")
    assert load.served > 0 and load.failed == []


def test_workers_serve_and_start_without_the_control_plane():
    with Load("worker-2") as load:
        compose("kill", "control")
        compose("restart", "worker-1")
        admin = f"http://127.0.0.1:{WORKERS['worker-1'][1]}/readyz"
        eventually("it serves what it knew", lambda: "last known good" in answer_of(admin), 30)
        ask_all("worker-1")
        compose("start", "control")
        eventually("it is followed again", lambda: ", live" in answer_of(admin), START_WITHIN)
    assert load.served > 0 and load.failed == []


def answer_of(url):
    try:
        return get(url)
    except OSError:
        return ""


def test_data_outlive_the_containers():
    before = ControlPlane(CONTROL).call("ModelRegistry", "ListModels")
    compose("down", "--timeout", "5")
    compose("up", "--detach", "--no-build")
    all_healthy()
    after = ControlPlane(CONTROL).call("ModelRegistry", "ListModels")
    assert after == before
    assert {model["id"] for model in after["models"]} == set(MODELS)
    for worker in WORKERS:
        ask_all(worker)
