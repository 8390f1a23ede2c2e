"""What every profile of the compose file has to stand: any one container killed under load, workers stopped one by one,
everything taken down and up. The tests of a profile call these; what they count is printed for the report."""

import json
import pathlib
import subprocess
import time

import openai

from composed import BALANCER, ENGINES, WORKERS, docker, metric
from control_plane import ControlPlane
from load import Load, told
from processes import ROOT, eventually

MODELS = ["llama-3.1-8b", "qwen2.5-7b", "mistral-7b"]
# Served after a kill until it counts as survived.
ENOUGH = 40
MODELS_FILE = ROOT / "deploy/compose/models.yaml"


def client(address, api_key="any"):
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key=api_key, max_retries=0, timeout=15)


def ask(address, model, api_key="any"):
    chat = client(address, api_key).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=2
    )
    assert chat.choices[0].finish_reason


def serves(address, model):
    try:
        ask(address, model)
        return True
    except openai.OpenAIError:
        return False


def register_as_the_guide_says(fleet):
    """The one line of docs/deploying.md."""
    subprocess.run(
        ["docker", "exec", "-i", fleet.container("worker-1"), "forebay", "models", "apply", "-f", "-"],
        input=MODELS_FILE.read_bytes(), check=True, capture_output=True,
    )
    everywhere(MODELS)


def also_called(control, name):
    """Gives the last of the models another alias, as a client that knows nothing but reflection."""
    model = {"id": MODELS[-1], "aliases": [name]}
    return ControlPlane(control).call("ModelRegistry", "UpdateModel", model=model, updateMask="aliases")


def everywhere(models):
    """Waits until each worker serves these."""
    for gateway, _ in WORKERS.values():
        for model in models:
            eventually(f"{gateway} serves {model}", lambda: serves(gateway, model), 15, every=0.1)


def keeps_serving(load, since):
    enough = lambda: load.served(since) >= ENOUGH
    eventually(f"{ENOUGH} more requests are served", enough, 60, every=0.05)


def one_dies(fleet, service, meanwhile=lambda: None):
    """Kills it under load through the balancer. All that fails must have been on it when it died."""
    others = [admin for worker, (_, admin) in WORKERS.items() if worker != service]
    with Load(BALANCER, MODELS) as load:
        keeps_serving(load, 0.0)
        left = left_by_clients(others)
        fleet.kill(service)
        killed = time.monotonic()
        meanwhile()
        keeps_serving(load, killed)
        back = time.monotonic()
        fleet.start(service)
        keeps_serving(load, back)
        # What the balancer gave up of another worker's, that worker would have taken for a client that went away.
        assert left_by_clients(others) == left
    balanced = told_of(load.failed(), fleet)
    excepted = [asked for asked in load.failed() if was_on(asked, service, killed, balanced)]
    told(f"{service} killed", load, excepted, killed)
    lost = [asked for asked in load.failed() if asked not in excepted]
    assert lost == [], f"{service}: {lost}, {[balanced.get(asked.id) for asked in lost]}"


def told_of(failed, fleet):
    """What the balancer says of these. Its lines come by way of the container's log, not always at once; some never do."""
    deadline = time.monotonic() + 10
    while True:
        balanced = fleet.balancer_log()
        if all(asked.id in balanced for asked in failed) or time.monotonic() > deadline:
            return balanced
        time.sleep(0.2)


def left_by_clients(admins):
    return sum(metric(admin, "forebay_requests_total", 'code="499"') for admin in admins)


def was_on(asked, service, killed, balanced):
    """A request that had been sent to what was killed before it was."""
    if asked.began > killed:
        return False
    if service in ENGINES:
        return asked.endpoint == service
    if service not in WORKERS:
        return False
    server, _ = balanced.get(asked.id, ("", ""))
    # On a connection that a client has kept, HAProxy closes it without a word and without a line in its log when the
    # server's end breaks before an answer.
    return server == service or (not server and asked.failed.startswith("APIConnectionError"))


def stop_one_by_one(fleet):
    """A rolling restart: nothing at all may fail."""
    with Load(BALANCER, MODELS) as load:
        keeps_serving(load, 0.0)
        for worker in WORKERS:
            fleet.compose("stop", worker)
            stopped = time.monotonic()
            assert fleet.inspect(worker)["State"]["ExitCode"] == 0
            keeps_serving(load, stopped)
            fleet.start(worker)
    told("workers stopped one by one", load, [], 0.0)
    assert load.failed() == []


def the_balancer_dies(fleet):
    """It alone is single: what is asked of the workers themselves goes on, and it comes back by itself."""
    with Load(WORKERS["worker-1"][0], MODELS) as beside, Load(BALANCER, MODELS) as through:
        keeps_serving(through, 0.0)
        fleet.crash("balancer")
        died = time.monotonic()
        keeps_serving(beside, died)
        keeps_serving(through, died)
        fleet.all_healthy()
    told("balancer killed, past it", beside, [], died)
    print(f"balancer killed, through it: {len(through.failed())} failed until it was back")
    assert beside.failed() == []
    assert all(asked.began < died + 30 for asked in through.failed())


def streams_pass_as_they_come():
    """A stream's first event is there while the engine is still at it."""
    stream = client(BALANCER).chat.completions.create(
        model=MODELS[0], messages=[{"role": "user", "content": "hello"}], max_tokens=300, stream=True
    )
    next(iter(stream))
    assert in_flight() >= 1
    stream.close()
    gone_is_cancelled()


def gone_is_cancelled():
    eventually("nothing runs for a client that is gone", lambda: in_flight() == 0, 10)


def a_client_that_goes_away_cancels():
    """Also one that waits for a whole answer, of which nothing has come yet."""
    body = {"model": MODELS[0], "max_tokens": 4000, "messages": [{"role": "user", "content": "hello"}]}
    asking = subprocess.Popen(
        ["curl", "-s", "-H", "content-type: application/json", "-d", json.dumps(body),
         f"http://{BALANCER}/v1/chat/completions"],
        stdout=subprocess.DEVNULL,
    )
    eventually("it runs", lambda: in_flight() == 1)
    asking.kill()
    asking.wait()
    gone_is_cancelled()


def http_2_by_prior_knowledge():
    done = subprocess.run(
        ["curl", "-s", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_version} %{http_code}",
         f"http://{BALANCER}/v1/models"],
        capture_output=True, text=True, check=True,
    )
    assert done.stdout == "2 200", done.stdout


def in_flight():
    return sum(metric(admin, "forebay_pool_in_flight") for _, admin in WORKERS.values())


def containers_have_no_more_than_they_need(fleet):
    for service in fleet.services:
        seen = fleet.inspect(service)
        host = seen["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] and host["PidsLimit"] and host["NanoCpus"], service
        pid = seen["State"]["Pid"]
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
        assert uid != "0", f"{service} runs as root"
        for bindings in (host["PortBindings"] or {}).values():
            assert all(binding["HostIp"] == "127.0.0.1" for binding in bindings), service


def the_image_trusts_the_usual_authorities(fleet, service):
    """Otherwise neither `https://` to engines nor `etcds://` works without a file of one's own; its user must read them."""
    trusted = docker("exec", fleet.container(service), "cat", "/etc/ssl/certs/ca-certificates.crt")
    assert trusted.count("-----BEGIN CERTIFICATE-----") > 50, service


def data_outlive_the_containers(fleet, control):
    """Models, and a client's key with what it was hashed with."""
    before = ControlPlane(control).call("ModelRegistry", "ListModels")
    made = ControlPlane(control).call("Keys", "CreateKey", key={"displayName": "outside"})
    key = made["secret"]
    fleet.down()
    fleet.up()
    after = ControlPlane(control).call("ModelRegistry", "ListModels")
    assert after == before
    assert {model["id"] for model in after["models"]} >= set(MODELS)
    for model in MODELS:
        ask(BALANCER, model, key)
    try:
        ask(BALANCER, MODELS[0], "another")
        raise AssertionError("anybody is let in")
    except openai.AuthenticationError:
        pass
