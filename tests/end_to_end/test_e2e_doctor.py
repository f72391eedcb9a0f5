"""`starter.py doctor` against a whole installation, as it is set up, worked with, and broken."""

import asyncio
import re
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest

from cli.doctor.temporal import RUNBOOK
from cli.embedded import temporal_binary
from longtake.client import VideoClient
from longtake.models import Stage
from longtake.settings import Settings
from longtake.temporal.connection import connect, data_converter
from longtake.temporal.key_ring import new_key
from longtake.temporal.names import SEARCH_ATTRIBUTES
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    ROOT,
    Finished,
    SimulatorProcess,
    Site,
    Starter,
    WorkerProcess,
    environment,
    free_port,
    request,
)

pytestmark = pytest.mark.system

WRONG_KEY = "sk-e2e-9876543210-wrong"
RUNBOOK_FILTER = re.compile(r"(?:starter\.py list |--query )'([^']+)'")

Doctor = Callable[..., Awaitable[Finished]]
"""`doctor --json`, with changed settings."""
ASKING = f"a {MARK} [sim:extend_failed,seconds=60]"


@pytest.fixture(scope="module")
def site(simulator: SimulatorProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {"LONGTAKE_GATEWAY_URL": simulator.url, "LONGTAKE_GATEWAY_API_KEY": API_KEY}
    settings["LONGTAKE_METRICS_ADDRESS"] = f"127.0.0.1:{free_port()}"
    site = Site(tmp_path_factory.mktemp("doctor"), environment(**settings))
    yield site
    site.stop()


@pytest.fixture
def starter(site: Site) -> Iterator[Starter]:
    starter = Starter(site.env)
    yield starter
    starter.close()


def said(run: Finished, part: str) -> list[tuple[str, str, str]]:
    """Level, words and advice of one part's findings; each that is not well says what to do."""
    findings = run.json()
    assert all(finding["advice"] for finding in findings if finding["level"] != "ok"), findings
    assert all(finding["good"] == (finding["level"] != "problem") for finding in findings)
    assert not [secret for secret in (API_KEY, WRONG_KEY) if secret in run.out + run.err]
    return [(one["level"], one["message"], one["advice"]) for one in findings if one["check"] == part]


def levels(run: Finished, part: str) -> list[str]:
    return [level for level, _, _ in said(run, part)]


def problems(run: Finished) -> set[str]:
    return {finding["check"] for finding in run.json() if finding["level"] == "problem"}


def temporal(site: Site, *arguments: str) -> None:
    subprocess.run([temporal_binary(), *arguments, "--address", site.server.address], check=True, capture_output=True)


@pytest.mark.timeout(300)  # a dozen commands one after the other, which a busy machine starts slowly
async def test_doctor(site: Site, starter: Starter, simulator: SimulatorProcess) -> None:
    async def doctor(**changes: str | None) -> Finished:
        return await starter.but(**changes)("doctor", "--json")

    with ExitStack() as stack:
        await before_any_worker(site, doctor)
        await all_is_well(site, starter, doctor, stack)
        await broken_on_one_machine(site, doctor)
        await encrypted_elsewhere(site, starter, doctor)
    assert simulator.paid(ASKING) == 1


def filters() -> dict[str, bool]:
    """Every filter of the runbook, and whether it finds a generation that asks whether 8 s are enough."""
    given = RUNBOOK_FILTER.findall((ROOT / RUNBOOK).read_text())
    assert given
    return {" ".join(text.split()): not re.search(r"Failed|VideoOutcome|IS NULL", text) for text in given}


async def before_any_worker(site: Site, doctor: Doctor) -> None:
    # Nothing runs yet: Temporal cannot be reached, and what needs it is not checked.
    gone = await doctor()
    assert (gone.code, problems(gone)) == (4, {"Temporal"}), gone
    assert levels(gone, "workers") == ["warning"], "not checked"

    # A Temporal without workers or generations, and a namespace that is not set up.
    await site.start_server()
    temporal(site, "operator", "namespace", "create", "--namespace", "bare")
    empty, bare = await asyncio.gather(doctor(), doctor(TEMPORAL_NAMESPACE="bare"))
    assert (empty.code, levels(empty, "workers"), levels(empty, "metrics")) == (0, ["warning"], ["warning"]), empty
    ((_, missing, advice),) = said(bare, "search attributes")
    assert (bare.code, "search attributes" in problems(bare)) == (1, True), bare
    assert all(name in missing for name in SEARCH_ATTRIBUTES)
    assert "starter.py setup" in advice

    # A generation that nobody takes up.
    client = await site.client()
    await client.start("asking", request(ASKING, on_extend_failed="ask"))
    waiting = await doctor()
    assert (waiting.code, problems(waiting)) == (1, {"workers"}), waiting
    assert "#longtakenoworker" in said(waiting, "workers")[0][2]


async def all_is_well(site: Site, starter: Starter, doctor: Doctor, stack: ExitStack) -> None:
    # A worker of a build that nobody has made current gets no work; the command that is named changes that.
    worker = WorkerProcess(site.store.parent / "worker", site.env | {"LONGTAKE_BUILD_ID": "build-1"})
    stack.callback(worker.stop)
    await worker.restart()
    while problems(idle := await doctor()) != {"versions"}:  # it is ready some moments before all its pollers are
        assert problems(idle) <= {"versions", "workers"}, idle
    assert idle.code == 1
    ((_, _, advice),) = said(idle, "versions")
    temporal(site, *shlex.split(advice.split("`")[1])[1:], "--yes")

    # The generation needs somebody, and the filter finds exactly it.
    client = await site.client()
    while (await client.snapshot("asking")).execution.stage != Stage.AWAITING_DECISION:  # noqa: ASYNC110 - only asking tells
        await asyncio.sleep(0.1)
    well = await doctor()
    assert (well.code, problems(well)) == (0, set()), well
    for part in (
        "workers",
        "versions",
        "metrics",
        "ledger",
        "namespace's ledger",
        "search attributes",
        "Temporal's clock",
    ):
        assert levels(well, part) == ["ok"], (part, said(well, part))
    assert levels(well, "ledger and generations") == ["ok", "ok"]
    ((level, what, advice),) = said(well, "generations")
    assert (level, "needs_decision" in what) == ("warning", True)
    listed = await starter(*shlex.split(advice.split("`")[1])[1:], "--json")
    assert [row["key"] for row in listed.json()] == ["asking"]
    for text, found in filters().items():
        keys = [generation.key async for generation in client.generations(text)]
        assert keys == (["asking"] if found else []), text


async def broken_on_one_machine(site: Site, doctor: Doctor) -> None:
    other = site.store.parent / "other"
    (other / "submit").mkdir(parents=True)
    (other / "submit/identity").write_text('{"identity": "another"}')
    ring, console, store, ledger = await asyncio.gather(
        doctor(LONGTAKE_GATEWAY_API_KEY=f"{API_KEY},{WRONG_KEY}"),
        doctor(LONGTAKE_CONSOLE_TOKEN="no-token", LONGTAKE_CONSOLE_USER="1"),
        doctor(LONGTAKE_STORE_URL=(site.store.parent / "elsewhere").as_uri()),
        doctor(LONGTAKE_STORE_URL=other.as_uri()),
    )
    assert (ring.code, problems(ring), levels(ring, "gateway")) == (1, {"gateway"}, ["ok", "problem"]), ring
    assert (console.code, problems(console)) == (1, {"account records"}), console
    assert (store.code, problems(store)) == (1, {"namespace's ledger", "ledger and generations"}), store
    assert "has no ledger" in said(store, "ledger and generations")[0][1]
    assert (ledger.code, problems(ledger)) == (1, {"namespace's ledger", "ledger and generations"}), ledger
    assert "began with the ledger" in said(ledger, "ledger and generations")[1][1]


async def encrypted_elsewhere(site: Site, starter: Starter, doctor: Doctor) -> None:
    key = new_key("k9")
    converter = data_converter(Settings.model_validate({"encryption_keys": key}))
    client = VideoClient(await connect(site.server.address, data_converter=converter))
    await client.start("locked", request(MARK))
    while [found.key async for found in client.generations(limit=1)] != ["locked"]:  # noqa: ASYNC110 - only asking tells
        await asyncio.sleep(0.1)
    locked, open_ = await asyncio.gather(doctor(), doctor(LONGTAKE_ENCRYPTION_KEYS=key))
    assert (locked.code, problems(locked)) == (1, {"ledger and generations"}), locked
    assert "'k9'" in said(locked, "ledger and generations")[0][1]
    assert (open_.code, levels(open_, "encryption")) == (0, ["ok"]), open_

    # For people: one line for each finding, and a sum.
    plain = await starter("doctor")
    lines = plain.out.splitlines()
    assert len(lines) == len(locked.json()) + 1
    assert all(re.match(r"(ok     |warning|problem)  [^:]+: .+( -> .+)?$", line) for line in lines[:-1])
    assert re.fullmatch(r"\d+ ok, \d+ warning, 1 problem", lines[-1])


async def test_doctor_with_nothing_but_a_gateway(alone: Starter) -> None:
    well, misspelt = await asyncio.gather(
        alone("doctor", "--json"), alone.but(LONGTAKE_GATEWY_URL="http://127.0.0.1")("doctor", "--json")
    )
    assert (well.code, problems(well)) == (0, set()), well
    assert levels(well, "Temporal") == levels(well, "workers") == levels(well, "search attributes") == ["ok"]
    assert (misspelt.code, problems(misspelt)) == (1, {"settings"}), misspelt
    assert "did you mean LONGTAKE_GATEWAY_URL?" in misspelt.out
