"""A real Prometheus scrapes real workers, evaluates the rules, and is asked what the dashboard asks."""

import asyncio
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from temporalio.service import RPCError

from longtake.client import GenerationFailure, VideoClient
from longtake.observability.metrics import METRICS, Kind
from longtake.temporal.connection import connect
from longtake.temporal.names import TASK_QUEUE, WORKFLOW_TYPE, workflow_id
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    MODEL,
    ROOT,
    SimulatorProcess,
    Site,
    WorkerProcess,
    environment,
    free_port,
    request,
    request_json,
    secrets_in,
)
from tests.exposition import Exposition

# The generations of this module run once for all its tests, and a submission in doubt needs half a minute.
pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DEPLOY = ROOT / "deploy/prometheus"
RULES = DEPLOY / "rules/longtake.yml"
CASES = DEPLOY / "tests/longtake.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/longtake.json"

ALL_RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
PANELS: dict[str, dict[str, Any]] = {
    panel["title"]: panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"
}

ASKS = "asks"
DOUBT = "doubt"
ENDED = {"full", "full after a busy gateway", "fallback", "refused for safety", "no quota", "bad input"}


# --- The real thing ---------------------------------------------------------------------------------------------------


class Prometheus:
    """Debian's `prometheus`, with the repository's rules; it asks these workers every second."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        program = shutil.which("prometheus")
        assert program, "apt-get install prometheus"
        self.address = f"127.0.0.1:{free_port()}"
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets}]
        folder.mkdir()
        shutil.copytree(DEPLOY / "rules", folder / "rules")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address={self.address}", "--log.level=warn"]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def api(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer.

        Raises:
            AssertionError: Prometheus says that something is wrong with the question.
        """
        question = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(question, timeout=10) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an instant query gives."""
        result: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return result

    def values(self, expression: str, label: str) -> dict[str, float]:
        """What it gives, by a label, without what is 0."""
        found = {one["metric"].get(label, ""): float(one["value"][1]) for one in self.query(expression)}
        return {name: value for name, value in found.items() if value}

    def wait_for(self, expression: str, *, seconds: float = 90) -> None:
        """Wait until a query gives something.

        Raises:
            AssertionError: It does not in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()
            try:
                if self.query(expression):
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.2)
        raise AssertionError(f"Prometheus never saw {expression}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


class Scene:
    """Two workers, a simulator and a Prometheus, and generations that end in every kind of way."""

    def __init__(self, folder: Path) -> None:
        self.simulator = SimulatorProcess(folder / "simulator", folder / "clips")
        self.simulator.wait_until_ready()
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        env = environment(
            LONGTAKE_GATEWAY_URL=self.simulator.url,
            LONGTAKE_GATEWAY_API_KEY=API_KEY,
            LONGTAKE_DATA_DIR=str(folder / "not-used"),
            LONGTAKE_SUBMIT_TIMEOUT_SECONDS="2",
            LONGTAKE_METRICS_ADDRESS=self.addresses[0],
        )
        self.site = Site(folder / "site", env)
        self.second = WorkerProcess(folder / "second", self.site.env | {"LONGTAKE_METRICS_ADDRESS": self.addresses[1]})
        self.caller = f"127.0.0.1:{free_port()}"
        """Where this process serves the metrics of its own client: no worker's."""
        self.prometheus = Prometheus(folder / "prometheus", [*self.addresses, self.caller])

    async def play(self) -> None:
        """Run the generations until all of them have ended or wait for a person, and Prometheus has seen it."""
        client = await self.site.start()
        await self.second.restart()
        # The counters' zeros must be seen first, as in real life: workers run long before the first trouble.
        for address in self.addresses:
            await asyncio.to_thread(self.prometheus.wait_for, f'longtake_generations_total{{instance="{address}"}}')
        await client.start(DOUBT, request(f"{MARK} [sim:submit_502]"))
        await client.start(ASKS, request(f"{MARK} [sim:extend_failed,label=asks]", on_extend_failed="ask"))
        await asyncio.gather(
            self._end(client, "full", f"{MARK} [sim:ok]"),
            self._end(client, "full after a busy gateway", f"{MARK} [sim:no_channel,times=1]"),
            self._end(client, "fallback", f"{MARK} [sim:extend_failed]"),
            self._end(client, "refused for safety", f"{MARK} [sim:generate_failed]"),
            self._end(client, "no quota", f"{MARK} [sim:insufficient_quota]"),
            self._bad_input(client),
        )
        # A worker cannot carry this out; Temporal lets it try again and again.
        temporal = await connect(self.site.server.address, metrics_address=self.caller)
        await temporal.start_workflow("NoSuchWorkflow", id="no-such-workflow", task_queue=TASK_QUEUE)
        # No request of a worker's fails here; the SDK counts a client's in the same way.
        with pytest.raises(RPCError, match="not found"):
            await temporal.get_workflow_handle("never-started").describe()
        for expression in (
            f"sum(longtake_generations_total) == {len(ENDED)}",
            'max(longtake_waiting{reason="choice"}) == 1',
            'max(longtake_waiting{reason="doubt"}) == 1',
            "sum(max by (stage) (longtake_running)) == 2",
            "sum(increase(temporal_workflow_task_execution_failed_total[10m])) > 0",
            "rate(temporal_request_failure_total[10m])",
            'ALERTS{alertstate="firing"}',
        ):
            await asyncio.to_thread(self.prometheus.wait_for, expression)

    async def _end(self, client: VideoClient, name: str, prompt: str) -> None:
        key = name.replace(" ", "-")
        await client.start(key, request(prompt))
        try:
            await client.result(key)
        except GenerationFailure:
            assert name in {"refused for safety", "no quota"}

    async def _bad_input(self, client: VideoClient) -> None:
        """As another SDK may start it, past every check of ours."""
        temporal = await connect(self.site.server.address)
        bad = request_json("", model="no-such-model")
        await temporal.start_workflow(WORKFLOW_TYPE, bad, id=workflow_id("bad-input"), task_queue=TASK_QUEUE)
        with pytest.raises(GenerationFailure, match="model"):
            await client.result("bad-input")

    def stop(self) -> None:
        self.prometheus.stop()
        self.second.stop()
        self.site.stop()
        self.simulator.stop()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        try:
            asyncio.run(scene.play())
            yield scene
        finally:
            scene.stop()


@pytest.fixture
def prometheus(scene: Scene) -> Prometheus:
    return scene.prometheus


# --- What the metrics say is what happened ----------------------------------------------------------------------------


def test_generations_are_counted_by_outcome_and_model(prometheus: Prometheus) -> None:
    assert prometheus.values("sum by (outcome) (longtake_generations_total)", "outcome") == {
        "full": 2,
        "fallback": 1,
        "GenerationFailed": 1,
        "SubmissionRefused": 1,
        "InvalidRequest": 1,
    }
    assert prometheus.values("sum by (model) (longtake_generations_total)", "model") == {MODEL: 5, "other": 1}


def test_paid_submissions_and_their_quota_are_the_gateways_own(scene: Scene) -> None:
    known = 5  # full, full, fallback, refused for safety, and the one that asks; the one in doubt is not known to be
    in_all = sum(scene.simulator.paid(prompt) for prompt in {entry["prompt"] for entry in posts(scene)})
    assert in_all == known + 1
    assert scene.prometheus.values("sum by (task) (longtake_paid_submissions_total)", "task") == {"generation": known}
    quota = scene.prometheus.values("sum by (task) (longtake_quota_total)", "task")["generation"]
    assert quota % 425_000 == 0
    assert 2 * 425_000 <= quota <= known * 425_000


def posts(scene: Scene) -> list[dict[str, Any]]:
    return [entry for entry in scene.simulator._entries() if "paid" in entry and "prompt" in entry]


def test_what_waits_is_seen_by_both_workers(prometheus: Prometheus) -> None:
    for reason in ("doubt", "choice"):
        counts = prometheus.values(f'longtake_waiting{{reason="{reason}"}}', "instance")
        assert len(counts) == 2
        assert set(counts.values()) == {1}
        assert prometheus.values(f'max(longtake_oldest_waiting_seconds{{reason="{reason}"}})', "")[""] > 5
    assert prometheus.values("max by (stage) (longtake_running)", "stage") == {"awaiting_decision": 2}
    assert prometheus.values("max by (attention) (longtake_attention)", "attention") == {"needs_decision": 2}
    assert prometheus.values("sum by (task) (longtake_submissions_in_doubt_total)", "task") == {"generation": 1}


def test_gateway_errors_are_counted_by_code(prometheus: Prometheus) -> None:
    assert prometheus.values("sum by (code) (longtake_gateway_errors_total)", "code") == {
        "http_502": 1,
        "model_not_found": 1,
        "insufficient_user_quota": 1,
    }


def test_seconds_by_stage_polls_verdicts_and_bytes(prometheus: Prometheus) -> None:
    stages = prometheus.values("sum by (stage) (longtake_stage_duration_seconds_count)", "stage")
    # Who asks has left `awaiting_decision` as little as the one in doubt.
    assert stages.keys() == {"preparing", "submitting", "first_segment", "extending", "delivering"}
    assert stages["preparing"] == 7
    seconds = prometheus.values("sum by (stage) (longtake_stage_duration_seconds_sum)", "stage")
    assert seconds["first_segment"] > 1
    assert prometheus.values("sum by (verdict) (longtake_verdicts_total)", "verdict") == {
        "completed": 2,
        "extend_failed": 2,
        "generate_failed": 1,
    }
    polls = prometheus.values("sum by (result) (longtake_polls_total)", "result")
    assert polls["completed"] == 2
    assert sum(polls.values()) >= 5
    delivered = prometheus.values("sum by (clip) (longtake_delivered_bytes_total)", "clip")
    assert delivered.keys() == {"full", "first"}
    assert prometheus.values("longtake:extension_failures:ratio1h", "") == {"": pytest.approx(0.5, abs=0.1)}


def test_a_count_goes_on_from_the_zero_that_the_worker_began_with(prometheus: Prometheus) -> None:
    """Other labels than the SDK adds would make a second series, whose first count is no increase."""
    for metric in METRICS:
        if metric.kind is Kind.COUNTER:
            by = ", ".join([*metric.labels, "activity_type", "instance"])
            assert prometheus.query(f"count by ({by}) ({metric.exposed})")
            assert not prometheus.query(f"count by ({by}) ({metric.exposed}) > 1"), metric.name


def test_the_sdks_own_metrics_are_there(prometheus: Prometheus) -> None:
    completed = prometheus.values("sum by (workflow_type) (temporal_workflow_completed_total)", "workflow_type")
    assert completed == {WORKFLOW_TYPE: 3}
    assert prometheus.query('temporal_worker_task_slots_available{task_queue="video-generation-submission"}')


def test_every_metric_of_ours_is_described_and_nothing_else_is_served(scene: Scene) -> None:
    known = {metric.exposed: metric for metric in METRICS}
    metadata = scene.prometheus.api("metadata")
    ours = {name: told[0] for name, told in metadata.items() if name.startswith("longtake_")}
    assert ours.keys() == known.keys()
    for name, told in ours.items():
        assert (told["type"], told["help"]) == (known[name].kind, known[name].help)
    allowed = {"namespace", "task_queue", "workflow_type", "activity_type", "le"}
    for address in scene.addresses:
        exposition = Exposition.of(address)
        for sample in exposition.ours():
            name = re.sub("_(bucket|sum|count)$", "", sample.name) if "duration" in sample.name else sample.name
            assert sample.labels.keys() <= allowed | known[name].labels.keys()
        assert secrets_in(exposition.text) == []
        assert not re.search(r"task_[0-9a-f]{8}|video-(doubt|asks)", exposition.text)


# --- The dashboard and the rules --------------------------------------------------------------------------------------


TARGETS = [(title, target) for title, panel in PANELS.items() for target in panel["targets"]]


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title}, {target['refId']}" for title, target in TARGETS])
def test_a_panel_shows_what_it_says(title: str, target: dict[str, Any], prometheus: Prometheus) -> None:
    series = prometheus.query(target["expr"].replace("$__rate_interval", "15m"))
    assert [one for one in series if not math.isnan(float(one["value"][1]))], "nothing to draw"
    for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
        assert all(label in one["metric"] for one in series)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_can_be_asked(name: str, prometheus: Prometheus) -> None:
    expression = ALERTS[name]["expr"]
    prometheus.query(expression)
    # What it compares is there before anything is wrong.
    selectors = re.findall(r"\b(?:longtake_|temporal_|up\b)\w*(?:{[^}]*})?|longtake:[\w:]+", expression)
    assert selectors
    for selector in selectors:
        assert prometheus.query(selector), selector


def test_prometheus_evaluates_every_rule_and_sees_what_is_wrong_here(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALL_RULES)
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    for name in ("LongtakeSubmissionInDoubt", "LongtakeQuotaExhausted", "LongtakeWorkflowTaskFailing"):
        prometheus.wait_for(f'ALERTS{{alertname="{name}"}}', seconds=30)  # a rule is evaluated now and then
    assert {one["metric"]["alertname"] for one in prometheus.query("ALERTS")} == {
        "LongtakeSubmissionInDoubt",
        "LongtakeQuotaExhausted",
        "LongtakeWorkflowTaskFailing",
    }


def test_promtool_accepts_configuration_and_rules() -> None:
    for command in (["check", "config", str(DEPLOY / "prometheus.yml")], ["check", "rules", str(RULES)]):
        told = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr
    assert f"{len(ALL_RULES)} rules found" in told.stdout + told.stderr


def test_promtool_tests_the_rules() -> None:
    told = subprocess.run(["promtool", "test", "rules", str(CASES)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_broken_rule_fails_its_case(tmp_path: Path) -> None:
    """The control of the test above."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    broken = RULES.read_text().replace('longtake_waiting{reason="doubt"}) > 0', 'longtake_waiting{reason="doubt"}) > 9')
    (tmp_path / "rules/longtake.yml").write_text(broken)
    cases = yaml.safe_load(CASES.read_text())
    cases["tests"] = [case for case in cases["tests"] if "in doubt" in case["name"]]
    (tmp_path / "tests/longtake.yml").write_text(yaml.safe_dump(cases))
    told = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests/longtake.yml")], capture_output=True, text=True, check=False
    )
    assert told.returncode != 0
    assert "LongtakeSubmissionInDoubt" in told.stdout + told.stderr
