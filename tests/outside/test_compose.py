"""What `docker compose up --build` starts: one control plane, three workers, three engines, a balancer."""

import json
import urllib.error
import urllib.parse

import pytest
import yaml

import surviving
import test_monitoring
from composed import BALANCER, ENGINES, WORKERS, Composed
from control_plane import ControlPlane
from processes import ROOT, eventually
from stack import get
from surviving import MODELS

CONTROL = "127.0.0.1:50051"
SERVICES = ["control", *WORKERS, *ENGINES, "balancer"]


@pytest.fixture(scope="module")
def fleet():
    """Everything up, from images built now; gone without a trace at the end."""
    fleet = Composed(None, SERVICES)
    fleet.down("--volumes")
    fleet.build()
    try:
        fleet.up()
        surviving.register_as_the_guide_says(fleet)
        yield fleet
    except BaseException:
        print(fleet.logs())
        raise
    finally:
        fleet.down("--volumes")


def test_each_image_is_built_by_one_service():
    """The first in the file that uses it, and one that every profile with that image has."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    users = {}
    for name, service in services.items():
        if service["image"].endswith(":local"):
            users.setdefault(service["image"], []).append(name)
    assert {"forebay:local", "forebay-mock:local", "forebay-etcd:local"} <= users.keys()
    for image, names in users.items():
        assert [name for name in names if "build" in services[name]] == names[:1], image
        profiles = {profile for name in names for profile in services[name].get("profiles", [])}
        assert set(services[names[0]].get("profiles", profiles)) == profiles, image
        # Nobody asks a registry for it.
        assert all(services[name].get("pull_policy") == "never" for name in names[1:]), image


def states():
    workers = ControlPlane(CONTROL).call("Fleet", "ListWorkers")["workers"]
    return {worker["id"]: worker["state"].removeprefix("WORKER_STATE_") for worker in workers}


def test_what_is_registered_is_served_through_the_balancer(fleet):
    control = ControlPlane(CONTROL)
    assert "forebay.v1.ModelRegistry" in control.services()
    changed = surviving.also_called(CONTROL, "newest")
    assert int(changed["revision"]) > 1
    eventually("it is applied", lambda: set(states().values()) == {"APPLIED"})
    assert set(states()) == set(WORKERS)
    for model in [*MODELS, "default", "newest"]:
        surviving.ask(BALANCER, model)


def test_containers_have_no_more_than_they_need(fleet):
    surviving.containers_have_no_more_than_they_need(fleet)


@pytest.mark.parametrize("service", ["control", "worker-1"])
def test_the_image_trusts_the_usual_authorities(fleet, service):
    surviving.the_image_trusts_the_usual_authorities(fleet, service)


def test_the_balancer_passes_on_what_clients_do(fleet):
    surviving.streams_pass_as_they_come()
    surviving.a_client_that_goes_away_cancels()
    surviving.http_2_by_prior_knowledge()


@pytest.mark.parametrize("service", ["control", *WORKERS, *ENGINES])
def test_any_container_may_die_under_load(fleet, service):
    surviving.one_dies(fleet, service)


def test_workers_are_stopped_one_by_one_and_nobody_notices(fleet):
    surviving.stop_one_by_one(fleet)


def test_the_balancer_comes_back_by_itself(fleet):
    surviving.the_balancer_dies(fleet)


def test_workers_start_without_the_control_plane(fleet):
    fleet.kill("control")
    fleet.compose("restart", "worker-1")
    admin = f"http://{WORKERS['worker-1'][1]}/readyz"
    eventually("it serves what it knew", lambda: "last known good" in answer_of(admin), 30)
    for model in MODELS:
        surviving.ask(WORKERS["worker-1"][0], model)
    fleet.start("control")
    eventually("it is followed again", lambda: ", live" in answer_of(admin), 60)
    fleet.all_healthy()


def test_prometheus_scrapes_everything_and_answers_the_dashboard(fleet):
    profiles = ["default", "observability"]
    fleet.compose("build", "prometheus", profiles=profiles)
    fleet.compose("up", "--detach", "--no-build", "--no-deps", "prometheus", profiles=profiles)
    there = {"forebay-worker": set(WORKERS), "forebay-control": 1, "balancer": {"balancer"}, "prometheus": 1}
    eventually("all targets are up", lambda: scraped() == there, 90, every=0.5)
    loaded = asked_of_prometheus("rules")["groups"]
    assert {group["name"] for group in loaded} == {"forebay-recorded", "forebay-worker", "forebay-control", "forebay-fleet"}
    assert all(rule["health"] != "err" for group in loaded for rule in group["rules"])
    for where, expression in test_monitoring.expressions():
        if expression.startswith("label_values"):
            continue
        for name, means in [("$instance", ".*"), ("$model", ".*")]:
            expression = expression.replace(name, means)
        asked_of_prometheus("query", query=expression)
    coverage = lambda: asked_of_prometheus("query", query="min(forebay_pool_coverage_ratio)")["result"]
    assert eventually("pools are seen", coverage)[0]["value"][1] == "1"


def scraped():
    """The targets that are up: by name, or how many where they have none of their own."""
    up = {}
    for target in asked_of_prometheus("targets")["activeTargets"]:
        if target["health"] == "up":
            up.setdefault(target["labels"]["job"], set()).add(target["labels"]["instance"])
    return {job: names if names & {*WORKERS, "balancer"} else len(names) for job, names in up.items()}


def asked_of_prometheus(what, **query):
    url = f"http://127.0.0.1:9090/api/v1/{what}?{urllib.parse.urlencode(query)}"
    try:
        answer = json.loads(get(url))
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{query}: {error.read()}") from error
    except OSError:
        return {"activeTargets": [], "groups": [], "result": []}
    assert answer["status"] == "success", answer
    return answer["data"]


def test_data_outlive_the_containers(fleet):
    surviving.data_outlive_the_containers(fleet, CONTROL)


def answer_of(url):
    try:
        return get(url)
    except OSError:
        return ""
