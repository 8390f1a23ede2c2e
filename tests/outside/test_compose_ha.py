"""What `docker compose --profile ha up --build` starts: three members of etcd, three control planes on them, and the rest
of the fleet as it is without."""

import itertools
import time

import grpc
import pytest

import surviving
from composed import BALANCER, ENGINES, WORKERS, Composed
from control_plane import ControlPlane
from processes import eventually
from surviving import MODELS

CONTROLS = {f"control-{n}": f"127.0.0.1:5005{n}" for n in (1, 2, 3)}
MEMBERS = [f"etcd-{n}" for n in (1, 2, 3)]
SERVICES = [*MEMBERS, *CONTROLS, *WORKERS, *ENGINES, "balancer"]
# The pause of writes while etcd, or who decides, is elected anew.
WRITES_WITHIN = 15
AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
numbers = itertools.count()


@pytest.fixture(scope="module")
def fleet():
    """Everything up, from images built now; gone without a trace at the end."""
    fleet = Composed("ha", SERVICES)
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


def write_through(addresses):
    """A change, through the first control plane that takes it; then every worker serves by it."""
    name = f"written-{next(numbers)}"
    began = time.monotonic()

    def written():
        for address in addresses:
            try:
                return surviving.also_called(address, name)
            except grpc.RpcError as error:
                assert error.code() in AWAY, error
        return None

    eventually("a control plane takes a write", written, WRITES_WITHIN, every=0.1)
    print(f"written {time.monotonic() - began:.1f} s after it was wanted")
    surviving.everywhere([name])


def test_each_control_plane_takes_writes_and_knows_the_others(fleet):
    for name, address in CONTROLS.items():
        control = ControlPlane(address)
        assert "forebay.v1.ModelRegistry" in control.services()
        write_through([address])
        listed = control.call("ModelRegistry", "ListModels")["models"]
        assert {model["id"] for model in listed} == set(MODELS), name
    for model in MODELS:
        surviving.ask(BALANCER, model)


def test_containers_have_no_more_than_they_need(fleet):
    surviving.containers_have_no_more_than_they_need(fleet)


@pytest.mark.parametrize("service", [*MEMBERS, *CONTROLS])
def test_any_part_of_the_control_plane_may_die_under_load(fleet, service):
    left = [address for name, address in CONTROLS.items() if name != service]
    surviving.one_dies(fleet, service, meanwhile=lambda: write_through(left))


@pytest.mark.parametrize("service", [*WORKERS, *ENGINES])
def test_any_other_container_may_die_under_load(fleet, service):
    surviving.one_dies(fleet, service)


def test_workers_are_stopped_one_by_one_and_nobody_notices(fleet):
    surviving.stop_one_by_one(fleet)


def test_the_balancer_comes_back_by_itself(fleet):
    surviving.the_balancer_dies(fleet)


def test_data_outlive_the_containers(fleet):
    surviving.data_outlive_the_containers(fleet, CONTROLS["control-2"])
