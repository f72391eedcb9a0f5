"""The list filters of docs/ui.md, each run against a real server with a generation of every kind."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from longtake.models import GenerationPolicy, GenerationStatus, Paid, PollSchedule
from longtake.temporal.connection import connect
from tests.end_to_end.processes import DevServer
from tests.workflows.cases import FIRST, FULL, UNKNOWN
from tests.workflows.rig import (
    REQUEST,
    Held,
    Rig,
    Script,
    accepted,
    again,
    completed,
    extend_failed,
    generate_failed,
    lost,
    refusal,
    rig_on,
    running,
)
from workflows.steps import deliver as delivering

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.system]

DOCS = Path(__file__).parents[2] / "docs" / "ui.md"
POLICY = GenerationPolicy(
    schedule=PollSchedule(expected=timedelta(seconds=1), min_interval=timedelta(seconds=1)),
    decision_window=timedelta(days=1),
)
OVERDUE_AT_ONCE = POLICY.model_copy(update={"overdue_after": timedelta(0)})
FRAMES = {"model": "veo_3_1-fast-fl-remix", "images": [{"uri": "https://example.com/dawn.jpg"}]}

# What happens to each, and what more is asked for.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({"polls": [completed()], "deliver": FULL}, {}),
    "fallback": ({"polls": [extend_failed()], "deliver": FIRST}, {}),
    "refused by safety": ({"polls": [generate_failed()]}, {}),
    "never sent": ({"prepare": [refusal("SubmissionRefused", "the key is refused", paid=Paid.NO)]}, {}),
    "preparing": ({"prepare": again(Held())}, {}),
    "in doubt": ({"submit": [UNKNOWN], "reconcile": again({})}, {}),
    "doubt ended": ({"submit": [UNKNOWN], "reconcile": again({}), "prepare": [GenerationPolicy()]}, {}),
    "asking": ({"polls": [extend_failed()], "deliver": FIRST}, {"on_extend_failed": "ask"}),
    "key refused": ({"polls": again(refusal("KeyRefused", "401"))}, {}),
    "overdue": ({"polls": again(running(61)), "prepare": [OVERDUE_AT_ONCE]}, {}),
    "lost": ({"polls": again(lost(error_message="upstream returned error"))}, {}),
    "troubled": ({"polls": again(refusal("InvalidResponse", "a web page"))}, {}),
    "undelivered": ({"polls": [completed()], "deliver": again(refusal("StoreRefused", "disk full", retried=True))}, {}),
    "delivery failed": ({"polls": [completed()], "deliver": [refusal("DeliveryFailed", "gone", paid=Paid.YES)]}, {}),
    "frames": ({"polls": again(running(10)), "submit": [accepted(task_id="task_8ca26cbf")]}, FRAMES),
}
ENDED = {"full", "fallback", "refused by safety", "never sent", "doubt ended", "delivery failed"}

FINDS = [
    {"in doubt", "asking", "key refused"},
    {"in doubt", "asking"},
    {"in doubt", "doubt ended"},
    {"key refused"},
    {"overdue", "lost", "troubled"},
    {"undelivered", "delivery failed"},
    {"preparing"},
    {"refused by safety", "delivery failed"},
    {"fallback"},
    {"frames"},
]
"""What each filter of the page is to find, in their order."""


def filters() -> list[tuple[str, str]]:
    """The rows of the page's table: what it finds, and the filter."""
    return re.findall(r"^\| \d+ \| (.+?) \| `([^`]+)` \|", DOCS.read_text(), re.MULTILINE)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A real server, which has seen generations of all kinds."""
    with DevServer(tmp_path_factory.mktemp("filters") / "temporal") as server, pytest.MonkeyPatch.context() as patch:
        client = await connect(server.address)
        patch.setattr(delivering, "QUIET_WINDOW", timedelta(seconds=1))
        async with rig_on(WorkflowEnvironment.from_client(client)) as rig:
            await _make(rig)
            yield client


async def _make(rig: Rig) -> None:
    generations = {
        kind: await rig.start(Script(**{"prepare": [POLICY], **script}), {**REQUEST, **fields}, key=_key(kind))
        for kind, (script, fields) in KINDS.items()
    }
    for kind in ENDED:
        await asyncio.gather(generations[kind].handle.result(), return_exceptions=True)
    wanted = {
        "in doubt": "needs_decision",
        "asking": "needs_decision",
        "key refused": "needs_api_key",
        "overdue": "overdue",
        "lost": "task_lost",
        "troubled": "poll_failing",
        "undelivered": "delivery_failing",
    }
    for kind, attention in wanted.items():
        await generations[kind].reaches(_shows(attention))
    await generations["frames"].reaches(lambda status: status.polls)


def _shows(attention: str) -> Callable[[GenerationStatus], bool]:
    return lambda status: status.attention == attention


def _key(kind: str) -> str:
    return kind.replace(" ", "-")


async def test_the_page_has_ten_filters() -> None:
    assert len(filters()) == len(FINDS) == 10


@pytest.mark.parametrize("number", range(len(FINDS)), ids=lambda number: f"filter-{number + 1}")
async def test_filter_finds_exactly_what_it_says(client: Client, number: int) -> None:
    _, query = filters()[number]
    # The page's moment stands for "ten minutes ago"; here everything has just begun.
    query = re.sub(r'"\d{4}-\d\d-\d\dT[0-9:]+Z"', f'"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"', query)
    wanted = {f"video-{_key(kind)}" for kind in FINDS[number]}
    found: set[str] = set()
    for _ in range(100):  # the list is some moments behind
        found = {execution.id async for execution in client.list_workflows(query)}
        if found == wanted:
            break
        await asyncio.sleep(0.1)
    assert found == wanted, query
