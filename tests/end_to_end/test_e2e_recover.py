"""A Temporal that was lost or restored, and a ledger that was not: nothing is paid twice, and videos are fetched."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    Finished,
    SimulatorProcess,
    Site,
    Starter,
    environment,
    eventually,
    flags,
    processes_of,
)

PART = "lost videos"


@pytest.fixture
def site(simulator: SimulatorProcess, tmp_path: Path) -> Iterator[Site]:
    settings = {"LONGTAKE_GATEWAY_URL": simulator.url, "LONGTAKE_GATEWAY_API_KEY": API_KEY}
    site = Site(tmp_path, environment(**settings, LONGTAKE_DATA_DIR=str(tmp_path / "not-used")))
    yield site
    site.stop()


@pytest.fixture
def starter(site: Site) -> Iterator[Starter]:
    starter = Starter(site.env)
    yield starter
    starter.close()


def prompt(key: str, scenario: str) -> str:
    return f"{key} {MARK} [sim:{scenario},label=recover]"


def database(site: Site) -> list[Path]:
    """Temporal's file and its neighbours."""
    return [*(site.store.parent / "temporal").glob("temporal.sqlite*")]


async def stop(site: Site) -> None:
    """Worker and Temporal, at once."""
    await site.worker.kill()
    site.server.stop()


async def pay(starter: Starter, store: Path, key: str, scenario: str, **settings: str) -> None:
    """Start a generation and wait until the ledger has its task."""
    started = await starter.but(**settings)(
        "generate", *flags(prompt(key, scenario)), "--key", key, "--no-wait", "--json"
    )
    assert started.code == 0, started
    await eventually(lambda: _outcome(store, key), f"{key} is paid")


def _outcome(store: Path, key: str) -> bool:
    intents = (intent for intent in store.glob("submit/*/*/intent") if f"video-{key}/" in intent.read_text())
    return any((intent.parent / "outcome").exists() for intent in intents)


async def recover(starter: Starter, *arguments: str) -> dict[str, dict[str, Any]]:
    finished: Finished = await starter("recover", "--json", *arguments)
    assert finished.code == 0, finished
    assert MARK not in finished.out + finished.err
    return {row["key"]: row for row in finished.json()["tasks"]}


async def doctor(starter: Starter) -> list[str]:
    finished = await starter("doctor", "--json")
    return [finding["level"] for finding in finished.json() if finding["check"] == PART]


@pytest.mark.system
@pytest.mark.timeout(240)
async def test_a_database_older_than_the_post(
    site: Site, starter: Starter, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    scenario, key = "ok,seconds=300", "older-1"
    await site.start()
    await stop(site)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in database(site):
        shutil.copy(file, copy)
    await site.start()
    await pay(starter, site.store, key, scenario)
    await stop(site)
    for file in database(site):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy(file, site.store.parent / "temporal")
    await site.start()
    assert await doctor(starter) == ["warning"]
    assert (await starter("status", key)).code == 2, "Temporal does not know it"
    dry = await recover(starter)
    assert [(row["request_kept"], row["started"], row["problem"]) for row in dry.values()] == [(True, False, None)]
    assert (await starter("status", key)).code == 2, "a dry run starts nothing"
    done = await recover(starter, "--yes")
    assert done[key]["started"]
    # Whoever starts the same key with the same request attaches to it.
    again = await starter("generate", *flags(prompt(key, scenario)), "--key", key, "--json")
    assert again.code == 0, again
    assert again.json()["task_id"] == dry[key]["task_id"]
    assert again.json()["video"]["uri"].startswith(site.store.as_uri())
    assert simulator.paid(prompt(key, scenario)) == len(simulator.posts(prompt(key, scenario))) == 1
    assert await doctor(starter) == ["ok"]
    assert await recover(starter, "--yes") == {}


@pytest.mark.system
@pytest.mark.timeout(240)
async def test_an_empty_database(site: Site, starter: Starter, simulator: SimulatorProcess) -> None:
    """The new namespace takes the store's ledger; what was delivered, or failed for good, is left alone."""
    slow = "ok,seconds=600"
    cases = {"empty-delivered": "ok", "empty-failed": "generate_failed", "empty-hidden": slow, "empty-no-request": slow}
    await site.start()
    for key in ("empty-delivered", "empty-failed"):
        await pay(starter, site.store, key, cases[key])
    assert (await starter("result", "empty-delivered")).code == 0
    assert (await starter("result", "empty-failed")).code == 1
    await pay(starter, site.store, "empty-no-request", slow)
    await pay(starter, site.store, "empty-hidden", slow, LONGTAKE_HIDE_PROMPTS="true")
    await stop(site)
    (hidden,) = site.store.glob("records/empty-hidden/request-*.json")
    assert MARK not in hidden.read_text(), "prompts that are kept out of Temporal are kept out of this too"
    assert json.loads(hidden.read_text())["prompt"].startswith("prompts/")
    for request in site.store.glob("records/empty-no-request/request-*.json"):
        request.unlink()
    for file in database(site):
        file.unlink()
    await site.start()
    assert await doctor(starter) == ["warning"]
    dry = await recover(starter)
    assert {key: row["request_kept"] for key, row in dry.items()} == {"empty-hidden": True, "empty-no-request": False}
    done = await recover(starter, "--yes")
    assert all(row["started"] for row in done.values())
    for key, row in dry.items():
        result = await starter("result", key, "--json", seconds=90)
        assert result.code == 0, result
        assert (result.json()["outcome"], result.json()["task_id"]) == ("full", row["task_id"])
    for key, scenario in cases.items():
        assert len(simulator.posts(prompt(key, scenario))) == 1, key
    assert await recover(starter) == {}


@pytest.mark.timeout(240)
async def test_what_ended_after_it_was_paid_is_listed_by_the_ledger_and_brought_home(
    site: Site, starter: Starter, simulator: SimulatorProcess
) -> None:
    """Temporal's list cannot say it: a run that is terminated in time has no word of what it paid."""
    slow = "ok,seconds=600"
    client = await site.start()
    for key in ("ended-cancelled", "ended-terminated", "ended-running"):
        await pay(starter, site.store, key, slow)
    await pay(starter, site.store, "ended-delivered", "ok")
    assert (await starter("result", "ended-delivered")).code == 0
    assert (await starter("cancel", "ended-cancelled")).code == 0
    await client._handle("ended-terminated").terminate("by hand")

    async def listed() -> dict[str, str]:
        rows = (await starter("list", "--paid-without-video", "--json")).json()
        return {row["key"]: row["state"] for row in rows}

    while (rows := await listed()).get("ended-cancelled") != "canceled":  # noqa: ASYNC110 (a server tells nobody)
        await asyncio.sleep(0.5)
    assert rows == {"ended-cancelled": "canceled", "ended-terminated": "terminated"}
    assert await recover(starter) == {}, "Temporal knows them all"
    done = await recover(starter, "--ended", "--yes")
    assert {key: row["started"] for key, row in done.items()} == dict.fromkeys(rows, True)
    for key in rows:
        result = await starter("result", key, "--json", seconds=90)
        assert (result.code, result.json()["outcome"]) == (0, "full"), result
        assert len(simulator.posts(prompt(key, slow))) == 1
    assert await listed() == {}


@pytest.mark.timeout(240)
async def test_an_embedded_server_that_lost_its_file(simulator: SimulatorProcess, tmp_path: Path) -> None:
    """The worker that `recover` starts stays behind until everything is fetched, as that of `--no-wait` does."""
    data, key = tmp_path / "data", "embedded-lost"
    settings = {"LONGTAKE_GATEWAY_URL": simulator.url, "LONGTAKE_GATEWAY_API_KEY": API_KEY}
    starter = Starter(environment(**settings, LONGTAKE_DATA_DIR=str(data)))
    try:
        await pay(starter, data / "store", key, "ok,seconds=600")
        for pid in processes_of(data):
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not processes_of(data), "nothing runs")
        files = [*data.rglob("temporal.sqlite*")]
        assert files
        for file in files:
            file.unlink()
        assert (await recover(starter, "--yes"))[key]["started"]
        videos = data / "store" / "videos" / key
        await eventually(lambda: [*videos.glob("full-*.mp4.json")], "the video is fetched")
        assert len(simulator.posts(prompt(key, "ok,seconds=600"))) == 1
    finally:
        starter.close()
        for pid in processes_of(data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
