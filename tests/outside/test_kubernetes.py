"""The Kubernetes manifests: built by kubectl's own kustomize, checked against the API's schemas, and against what these do
not say: that names meet, that the graces add up, that nothing has more rights than it needs."""

import copy
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from processes import ROOT, helped

MANIFESTS = ROOT / "deploy/kubernetes"
GUIDE = ROOT / "docs/deploying.md"
OVERLAYS = ["sled", "etcd"]
# The oldest that is supported, and the newest that there are schemas of.
VERSIONS = ["1.32", "1.37"]
# Who asks a worker: kubelet's probes, each 2 s.
NOTICED_WITHIN = 10


def built(overlay, *components, manifests=MANIFESTS):
    path = manifests / "overlays" / overlay
    if components:
        # As `kustomize edit add component` does.
        listed = "".join(f"  - ../../components/{component}\n" for component in components)
        (path / "kustomization.yaml").open("a").write(f"components:\n{listed}")
    done = subprocess.run(["kubectl", "kustomize", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=[*OVERLAYS, *(f"{overlay} queue-wait" for overlay in OVERLAYS)])
def objects(request, tmp_path_factory):
    """An overlay as it is, and with what may be added to it."""
    manifests = shutil.copytree(MANIFESTS, tmp_path_factory.mktemp("manifests") / "kubernetes")
    return built(*request.param.split(), manifests=manifests)


def of_kind(objects, *kinds):
    return [thing for thing in objects if thing["kind"] in kinds]


def workloads(objects):
    return of_kind(objects, "Deployment", "StatefulSet")


def named(objects, kind, name):
    [found] = [thing for thing in of_kind(objects, kind) if thing["metadata"]["name"] == name]
    return found


def container(workload):
    [only] = workload["spec"]["template"]["spec"]["containers"]
    return only


def environment(workload):
    return {entry["name"]: entry.get("value") for entry in container(workload)["env"]}


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text).group(1))


def chosen(objects, labels):
    """The workloads whose pods a selector means."""
    return [
        each for each in workloads(objects)
        if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_would_take_them(objects, version):
    for thing in objects:
        kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_api_would_refuse_is_seen(version):
    """The check checks: a field that is not there, and one of another type."""
    worker = named(built("sled"), "Deployment", "forebay-worker")
    for path, value in [("spec", {"replica": 3}), ("spec", {"minReadySeconds": "ten"})]:
        wrong = copy.deepcopy(worker)
        wrong[path].update(value)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_selectors_and_ports_meet(objects):
    for each in workloads(objects):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
            # A node with a taint has no pod of these, and would let no other node have two: a rolling update would wait.
            if spread["whenUnsatisfiable"] == "DoNotSchedule":
                assert spread["nodeTaintsPolicy"] == "Honor"
    for service in of_kind(objects, "Service"):
        [target] = chosen(objects, service["spec"]["selector"])
        ports = {port["name"] for port in container(target)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in of_kind(objects, "PodDisruptionBudget"):
        assert len(chosen(objects, budget["spec"]["selector"]["matchLabels"])) == 1
    for policy in of_kind(objects, "NetworkPolicy"):
        targets = chosen(objects, policy["spec"]["podSelector"]["matchLabels"])
        assert targets
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                assert all(port["port"] in [p["name"] for p in container(t)["ports"]] for t in targets)
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        named(objects, target["kind"], target["name"])
        assert "replicas" not in named(objects, target["kind"], target["name"])["spec"]


def test_workers_find_the_control_plane(objects):
    worker = named(objects, "Deployment", "forebay-worker")
    host, port = re.fullmatch(r"http://(\S+):(\d+)", environment(worker)["FOREBAY_CONTROL"]).groups()
    service = named(objects, "Service", host)
    assert service["spec"]["clusterIP"] == "None"
    assert int(port) in [port["port"] for port in service["spec"]["ports"]]
    for stateful in of_kind(objects, "StatefulSet"):
        assert stateful["spec"]["serviceName"] == host


def test_streams_have_the_time_that_they_are_promised(objects):
    worker = named(objects, "Deployment", "forebay-worker")
    delay, grace = (seconds(environment(worker)[name]) for name in ("FOREBAY_DRAIN_DELAY", "FOREBAY_GRACE"))
    spec = worker["spec"]["template"]["spec"]
    # What connections say at their end takes up to 2 s.
    assert spec["terminationGracePeriodSeconds"] >= delay + grace + 5
    assert delay >= NOTICED_WITHIN
    # It would only delay SIGTERM, with which the worker begins to tell its clients.
    assert "lifecycle" not in container(worker)
    scaler = named(objects, "HorizontalPodAutoscaler", "forebay-worker")
    [down] = scaler["spec"]["behavior"]["scaleDown"]["policies"]
    assert down["periodSeconds"] >= spec["terminationGracePeriodSeconds"]
    # A rolling update takes nobody away before somebody is there.
    assert worker["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_looks_at_what_is_there(overlay, tmp_path):
    """A metric without a number keeps it from taking anybody away: what needs an adapter comes with the adapter."""
    manifests = shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    plain = named(built(overlay), "HorizontalPodAutoscaler", "forebay-worker")
    assert [metric["type"] for metric in plain["spec"]["metrics"]] == ["Resource"]
    waits = built(overlay, "queue-wait", manifests=manifests)
    waits = named(waits, "HorizontalPodAutoscaler", "forebay-worker")
    assert [metric["type"] for metric in waits["spec"]["metrics"]] == ["Resource", "Pods"]
    waits["spec"]["metrics"].pop()
    assert waits == plain


def test_nothing_has_more_rights_than_it_needs(objects):
    [namespace] = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for each in workloads(objects):
        spec, only = each["spec"]["template"]["spec"], container(each)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert only["securityContext"]["allowPrivilegeEscalation"] is False
        assert only["securityContext"]["readOnlyRootFilesystem"] is True
        assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert only["resources"]["limits"]["memory"] and only["resources"]["requests"]["cpu"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert only[probe]["httpGet"]["port"] in [port["name"] for port in only["ports"]]
        # Restarting a worker or a control plane helps against nothing that makes it not ready.
        assert only["livenessProbe"]["httpGet"]["path"] == "/livez"
        [covered, *_] = [
            policy for policy in of_kind(objects, "NetworkPolicy")
            if {"Ingress", "Egress"} <= set(policy["spec"]["policyTypes"])
            and each in chosen(objects, policy["spec"]["podSelector"]["matchLabels"])
        ]
        assert covered


def test_the_guide_lists_whom_labels_let_in(objects):
    """By labels alone, never by the name that a namespace happens to have: but for the cluster's own."""
    guide = set(re.findall(r"^kubectl label namespace \w+ +(forebay\.dev/\w+)=true ", GUIDE.read_text(), re.M))
    asked = set()
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
                if labels != {"kubernetes.io/metadata.name": "kube-system"}:
                    assert set(labels.values()) <= {"true"}, labels
                    asked |= labels.keys()
    etcd = {"forebay.dev/etcd"} if "envFrom" in str(workloads(objects)) else set()
    assert asked == guide - ({"forebay.dev/etcd"} - etcd)


def test_every_setting_is_one(objects):
    """Each variable and each path of a probe is known to the binary."""
    stores = [key for config in of_kind(objects, "ConfigMap") for key in config["data"]]
    for each in workloads(objects):
        known = set(re.findall(r"\[env:\s+(\w+)", helped(container(each)["args"][0])))
        names = set(environment(each)) | (set(stores) if "envFrom" in container(each) else set())
        assert names <= known, names - known


def test_mounted_files_are_those_that_are_named(objects):
    for each in workloads(objects):
        mounts = {mount["mountPath"] for mount in container(each).get("volumeMounts", [])}
        spec = each["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container(each).get("volumeMounts", [])} <= volumes
        for name, value in environment(each).items():
            if name.endswith("_FILE") or name.endswith("_DIR"):
                assert any(value == mount or value.startswith(f"{mount}/") for mount in mounts), name
