"""Whatever is sent as input: it ends as `InvalidRequest`, every problem named, and no activity was called."""

from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationErrorCategory

from longtake.models import Paid, Stage
from tests.workflows.rig import (
    FULL_VIDEO,
    REQUEST,
    TASK_ID,
    Rig,
    Script,
    accepted,
    completed,
    delivered,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

FULL = delivered(FULL_VIDEO)

SHAPE = {"input"}


def raw(data: bytes, encoding: bytes = b"json/plain") -> RawValue:
    return RawValue(Payload(metadata={"encoding": encoding}, data=data))


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ([], SHAPE),
        ([None], SHAPE),
        ([[]], SHAPE),
        ([[REQUEST]], SHAPE),
        (["a paper boat"], SHAPE),
        ([17], SHAPE),
        ([True], SHAPE),
        ([{}], {"model", "prompt", "prompt_extend"}),
        ([{**REQUEST, "model": None}], {"model"}),
        ([{**REQUEST, "model": "two words"}], {"model"}),
        ([{**REQUEST, "model": "m" * 101}], {"model"}),
        ([{**REQUEST, "prompt": ["a"]}], {"prompt"}),
        ([{**REQUEST, "prompt": "  "}], {"prompt"}),
        ([{**REQUEST, "prompt_extend": 15}], {"prompt_extend"}),
        ([{**REQUEST, "size": {"width": 1280}}], {"size"}),
        ([{**REQUEST, "images": "a.png"}], {"images"}),
        ([{**REQUEST, "images": [{"url": "https://example.com/a.png"}]}], {"images[0].uri", "images[0].url"}),
        ([{**REQUEST, "images": [None]}], {"images[0]"}),
        ([{**REQUEST, "images": [{"uri": "https://["}]}], {"images[0].uri"}),
        ([{**REQUEST, "on_extend_failed": "pray"}], {"on_extend_failed"}),
        ([{**REQUEST, "keep_first": "perhaps"}], {"keep_first"}),
        ([{**REQUEST, "task_id": "two words"}], {"task_id"}),
        ([{**REQUEST, "promt": "a boat"}], {"promt"}),
        (
            [{"model": "veo_4", "prompt": "", "prompt_extend": 7, "size": "big", "images": {}, "seconds": 15}],
            {"model", "prompt", "prompt_extend", "size", "images", "seconds"},
        ),
        # Other SDKs send what they like: what cannot be decoded must not hang the workflow either.
        ([raw(b'{"model": "veo')], SHAPE),
        ([raw(b'{"prompt": "\\ud800"}')], SHAPE),
        ([raw(b"\xff\xfe")], SHAPE),
        ([raw(b"bytes", b"binary/plain")], SHAPE),
        ([raw(b"", b"binary/null")], SHAPE),
        ([raw(b"?", b"binary/unheard-of")], SHAPE),
    ],
    ids=lambda value: str(value)[:70] if isinstance(value, list) else "",
)
async def test_bad_request_is_refused_with_every_problem(rig: Rig, arguments: list[Any], fields: set[str]) -> None:
    generation = await rig.start(Script(), *arguments)

    error, details = await generation.failure()

    assert error.type == "InvalidRequest"
    assert error.category is ApplicationErrorCategory.BENIGN
    assert {problem.field for problem in details.problems} == fields
    assert all(f"{problem.field}: {problem.rule}" in error.message for problem in details.problems)
    assert (details.paid, details.polls) == (Paid.NO, 0)
    assert generation.script.calls == []
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in [e.event_type for e in await generation.events()]
    assert (await generation.status()).stage is Stage.FAILED
    assert await generation.attributes() == {
        "VideoStage": "failed",
        "VideoOutcome": "InvalidRequest",
        "VideoPaid": "no",
    }


@pytest.mark.parametrize(
    "retired",
    [{"model": "veo_2"}, {"size": "640x360"}, {"images": [{"uri": "https://example.com/a.png"}] * 4}],
    ids=str,
)
async def test_what_is_not_offered_any_more_may_have_been_paid(rig: Rig, retired: dict[str, Any]) -> None:
    """Only the ledger can tell, so the request is judged with it: refused where nothing was submitted for the key."""
    bought = await rig.start(
        Script(submit=[accepted(attached=True)], polls_of_task=[completed()], deliver=[FULL]), {**REQUEST, **retired}
    )
    assert (await bought.result()).task_id == TASK_ID
    refused = refusal("InvalidRequest", "not offered", paid=Paid.NO)
    fresh = await rig.start(Script(prepare=[refused]), {**REQUEST, **retired})
    error, details = await fresh.failure()
    assert (error.type, details.paid) == ("InvalidRequest", Paid.NO)
    assert fresh.script.count("submit_generation") == 0


@pytest.mark.parametrize("second", [{"garbage": 1}, "garbage", {}, [1], 17, None], ids=str)
async def test_garbage_in_the_second_argument_is_refused(rig: Rig, second: Any) -> None:
    generation = await rig.start(Script(), REQUEST, second)
    error, details = await generation.failure()
    assert (error.type, details.paid) == ("InvalidRequest", Paid.NO)
    assert generation.script.calls == []


async def test_third_argument_is_refused_or_ignored(rig: Rig) -> None:
    generation = await rig.start(Script(), {}, None, "more")
    error, _ = await generation.failure()
    assert error.type == "InvalidRequest"
