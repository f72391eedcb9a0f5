"""The alert rules and the dashboard, as far as it can be shown without Prometheus; `tests/system` has the rest."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from longtake.observability.metrics import METRICS, OTHER, Kind, Metric

ROOT = Path(__file__).parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules/longtake.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
CASES = (ROOT / "deploy/prometheus/tests/longtake.yml").read_text()
PANELS = json.loads((ROOT / "deploy/grafana/dashboards/longtake.json").read_text())["panels"]
ASKED = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel.get("targets", ())]

GRAFANA = ROOT / "deploy/grafana/provisioning"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

_SELECTOR = re.compile(r"\b(longtake_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
_ADDED = {"namespace", "task_queue", "workflow_type", "activity_type", "instance", "job"}


def metric(name: str) -> Metric:
    """The one that Prometheus shows under this name.

    Raises:
        KeyError: There is none.
    """
    known = {one.exposed: one for one in METRICS}
    known |= {f"{one.exposed}_{part}": one for one in METRICS if one.kind is Kind.HISTOGRAM for part in PARTS}
    return known[name]


PARTS = ("bucket", "sum", "count")


def slug(heading: str) -> str:
    """The anchor that a heading gets in Markdown, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_and_where_more_stands(name: str) -> None:
    alert = ALERTS[name]
    assert name.startswith("Longtake")
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "runbook"}
    assert alert["annotations"]["summary"].endswith(".")
    advice, _, link = alert["annotations"]["runbook"].rpartition(": ")
    assert advice
    assert link == f"docs/operations.md#{slug(name)}"


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_case_in_which_it_fires(name: str) -> None:
    assert f"""labels: '{{alertname="{name}"}}', value: 1""" in CASES


@pytest.mark.parametrize("expression", ASKED)
def test_what_is_asked_exists(expression: str) -> None:
    """A misspelt name or label is no error for Prometheus: it finds nothing, and is silent for ever."""
    for name, matchers in _SELECTOR.findall(expression):
        one = metric(name)
        for label, operator, value in _MATCHER.findall(matchers):
            if label in _ADDED:
                continue
            values = value.split("|") if "~" in operator else [value]
            assert set(values) <= {*one.labels[label], OTHER}, (name, label)


def test_every_metric_is_asked_for() -> None:
    names = {name for expression in ASKED for name, _ in _SELECTOR.findall(expression)}
    assert {metric(name).name for name in names} == {one.name for one in METRICS}


def test_gauges_are_never_summed_over_workers() -> None:
    gauges = "|".join(one.exposed for one in METRICS if one.kind is Kind.GAUGE)
    wrong = re.compile(rf"sum(?: by \([^)]*\))? ?\((?:{gauges})\b")
    assert wrong.search("sum by (stage) (longtake_running)")
    assert [expression for expression in ASKED if wrong.search(expression)] == []


def test_panels_have_a_place_and_a_name_of_their_own() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


# --- What compose starts ----------------------------------------------------------------------------------------------


def test_the_metrics_are_collected_from_where_the_workers_serve_them() -> None:
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert discovery["names"] == ["worker", "worker-submission"]
    assert SERVICES["worker"]["environment"]["LONGTAKE_METRICS_ADDRESS"] == f"0.0.0.0:{discovery['port']}"
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
    # Every alert that is about workers as such names this job.
    assert {name for rule in RULES for name in re.findall(r'job="(\w+)"', rule["expr"])} == {job["job_name"]}


def test_grafana_is_given_the_dashboard_and_its_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    named = {
        one["datasource"]["uid"]
        for panel in PANELS
        for one in (panel, *panel.get("targets", ()))
        if panel["type"] != "row"
    }
    assert named == {source["uid"]}

    (provider,) = yaml.safe_load((GRAFANA / "dashboards/longtake.yml").read_text())["providers"]
    folder = provider["options"]["path"]
    mounts = SERVICES["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in mounts
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/longtake.json"


def test_grafana_has_no_password_of_its_own() -> None:
    password = SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert password.startswith("${GRAFANA_PASSWORD:?")
