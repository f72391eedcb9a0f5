"""The examination finds what it is there for: evidence that is made up, one wrong thing at a time."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.cases import PLAIN
from tests.chaos.histories import RunOfKey
from tests.chaos.plan import Plan, Planned
from tests.chaos.report import Examination, Json, Report
from tests.chaos.run import Journal
from tests.chaos.summary import summary, summary_document
from tests.end_to_end.processes import ROOT

ONE = Planned("chaos-000", PLAIN, "veo_3_1-remix", 0.0)
BEGAN = datetime(2026, 11, 24, 12, tzinfo=UTC)
AGAIN = "submissions sent again and nobody asked"
FALSE = "false statements about money"


def post(at: float, **more: object) -> Json:
    """A submission as the gateway's own list has it: accepted and paid, if nothing else is said."""
    return {
        "kind": "submit",
        "prompt": ONE.prompt,
        "time": BEGAN.timestamp() + at,
        "status": 200,
        "paid": True,
        "fault": "",
        **more,
    }


def run(number: int = 1, *, paid: str = "", shown: str = "", end: str = "full") -> RunOfKey:
    started = BEGAN + timedelta(seconds=10 * (number - 1))
    result = {"paid": paid} if paid else {}
    return RunOfKey(
        ONE.key, f"run-{number}", started, started + timedelta(seconds=10), end, result=result, paid_shown=shown
    )


def examined(tmp_path: Path, posts: Sequence[Json], *runs: RunOfKey, asked: int = 0) -> Report:
    log = tmp_path / "log"
    log.touch()
    journal = Journal(submitted_again=Counter({ONE.prompt: asked}))
    proxy = SimpleNamespace(counts=Counter[str]())
    store = SimpleNamespace(recreated=[], lost=list, clips=list, read=lambda _: None)
    site: Any = SimpleNamespace(
        server=SimpleNamespace(log=log), workers=[], store=store, gateway_proxy=proxy, cdn_proxy=proxy
    )
    play: Any = SimpleNamespace(journal=journal, operators=SimpleNamespace(did=Counter[str]()))
    plan = Plan(seed=1, seconds=1, generations=(ONE,), events=(), calm_at=1)
    return Examination(plan, site, play, [*runs], [], [*posts]).report()


def found(report: Report, name: str) -> int:
    return next(len(zero.found) for zero in report.zeros if zero.name == name)


@pytest.mark.parametrize(
    ("posts", "asked", "wrong"),
    [
        ([post(1)], 0, 0),
        ([post(1, paid=False, status=504, fault="submit_504"), post(2)], 0, 1),
        ([post(1, paid=False, status=504, fault="submit_504"), post(2)], 1, 0),
        ([post(1, paid=False, status=0), post(2, paid=False, status=0), post(3)], 1, 1),
        ([post(1, paid=False, status=500, fault="get_channel_failed"), post(2)], 0, 1),
        ([post(1, paid=False, status=307, fault="redirect_307"), post(2)], 0, 1),
        ([post(1, paid=False, status=429, fault="rate_limited"), post(2)], 0, 0),
        ([post(1, paid=False, status=503, fault="no_channel"), post(2)], 0, 0),
        ([post(1, paid=False, status=401), post(2)], 0, 0),
    ],
)
def test_a_post_that_nobody_asked_for_is_found(tmp_path: Path, posts: list[Json], asked: int, wrong: int) -> None:
    assert found(examined(tmp_path, posts, run(), asked=asked), AGAIN) == wrong


@pytest.mark.parametrize(
    ("posts", "runs", "wrong"),
    [
        ([post(5)], [run(paid="yes", shown="yes")], 0),
        ([post(5)], [run(paid="no", end="NotSubmitted")], 1),
        ([post(5)], [run(shown="no", end="Cancelled")], 1),
        # Of an attempt that outlived its run.
        ([post(500)], [run(paid="no", end="NotSubmitted")], 1),
        ([post(12)], [run(paid="no", end="SubmissionRefused"), run(2, paid="yes")], 0),
        ([post(12)], [run(shown="no", end="Terminated"), run(2, paid="yes")], 0),
        ([post(5)], [run(paid="yes"), run(2, paid="no", end="SubmissionRefused")], 1),
        ([post(5, paid=False, status=504)], [run(paid="yes", end="TaskLost")], 1),
        ([post(5)], [run(paid="unknown", end="Abandoned")], 0),
    ],
)
def test_a_false_statement_is_found(tmp_path: Path, posts: list[Json], runs: list[RunOfKey], wrong: int) -> None:
    assert found(examined(tmp_path, posts, *runs), FALSE) == wrong


def test_the_table_of_several_runs_tells_what_broke_off(tmp_path: Path) -> None:
    bad = examined(tmp_path, [post(1, paid=False, status=504), post(2)], run())
    document = summary_document({1: bad, 2: None})
    assert not document["good"]
    assert document["broken_off"] == [2]
    assert document["totals"][f"{AGAIN} (0)"] == 1
    assert len(summary({1: bad, 2: None}).splitlines()) == len(document["totals"]) + 1


def test_a_shifted_worker_has_another_wall_clock_only() -> None:
    script = """
import datetime, time, worker
from tests.chaos.shifted_worker import shift
wall, counting = time.time(), time.monotonic()
shift(-300)
from longtake.submission import ledger
assert -301 < time.time() - wall < -299
assert time.monotonic() - counting < 1
told = ledger.datetime.now(datetime.UTC)
assert -301 < told.timestamp() - wall < -299
assert type(told) is datetime.datetime and isinstance(told, ledger.datetime)
assert ledger.Intent(nonce="n", digest="d", sent_at=told, window_seconds=1, writer="o").over_at.tzinfo
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
