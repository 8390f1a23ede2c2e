"""Rules, dashboard and the autoscaler's metric: by promtool, and each name in them is one that is exported."""

import json
import re
import subprocess

import pytest
import yaml

from processes import ROOT

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/forebay.rules.yml"
DASHBOARD = DEPLOY / "grafana/dashboards/forebay.json"
ADAPTER = DEPLOY / "kubernetes/monitoring/adapter-rules.yaml"
SCRAPES = [DEPLOY / "compose/prometheus.yml", DEPLOY / "kubernetes/monitoring/scrape-configs.yaml"]
OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")


def exported():
    """The names of metrics in the sources, which is where they are made."""
    sources = [*ROOT.glob("dataplane/src/**/*.rs"), *ROOT.glob("control/src/**/*.rs")]
    return {name for source in sources for name in re.findall(r'"(forebay_[a-z_]+)"', source.read_text())}


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels():
    return json.loads(DASHBOARD.read_text())["panels"]


def expressions():
    """Whatever is asked of Prometheus, with where it stands."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]:
        yield rule["name"]["as"], rule["seriesQuery"]


def without_suffix(name):
    ends = [end for end in OF_A_HISTOGRAM if name.endswith(end)]
    return name.removesuffix(ends[0]) if ends else name


def test_every_metric_that_is_asked_for_is_exported():
    known, asked = exported(), 0
    assert "forebay_pool_coverage_ratio" in known
    for where, expression in expressions():
        for name in re.findall(r"(?<![:\w])forebay_[a-z_]+", expression):
            asked += 1
            assert name in known or without_suffix(name) in known, f"{where}: {name}"
    assert asked > 30


def test_every_recorded_series_that_is_asked_for_is_recorded():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for where, expression in expressions():
        assert set(re.findall(r"forebay:[a-z_:0-9]+", expression)) <= recorded, where


def test_every_job_that_is_asked_for_is_scraped():
    asked = {job for _, expression in expressions() for job in re.findall(r'job="([^"]+)"', expression)}
    assert asked == {"forebay-worker", "forebay-control"}
    for path in SCRAPES:
        assert asked <= {job["job_name"] for job in yaml.safe_load(path.read_text())["scrape_configs"]}


def test_the_autoscaler_asks_for_what_the_adapter_gives():
    patch = yaml.safe_load((DEPLOY / "kubernetes/components/queue-wait/metric.yaml").read_text())
    asked = {each["value"]["pods"]["metric"]["name"] for each in patch}
    given = {rule["name"]["as"] for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]}
    assert asked == given


@pytest.mark.parametrize("check", [
    ["check", "rules", RULES],
    ["test", "rules", DEPLOY / "prometheus/forebay.rules.test.yml"],
], ids=["rules", "their tests"])
def test_promtool_accepts_the_rules(check):
    done = subprocess.run(["promtool", *check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration(tmp_path):
    """As it is mounted in the container: the rules beside it."""
    for path in (SCRAPES[0], RULES):
        (tmp_path / path.name).write_text(path.read_text())
    check = ["promtool", "check", "config", tmp_path / SCRAPES[0].name]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "WARNING" not in done.stdout, done.stdout + done.stderr


def test_panels_do_not_overlap_and_say_what_they_show():
    places = [panel["gridPos"] for panel in panels()]
    for number, one in enumerate(places):
        assert one["x"] + one["w"] <= 24
        for other in places[number + 1:]:
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or apart, (one, other)
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    assert all(panel["description"] for panel in panels() if panel["type"] != "row")
