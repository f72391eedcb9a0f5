"""An ended key that is started again, by the client, with its prompts in the other form."""

from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from longtake.client import KeyInUse, VideoClient
from longtake.models import GenerateVideoInput, GenerationPolicy, Paid, PollSchedule
from longtake.request import rules
from longtake.request.rules import InvalidRequest, prompt_path
from longtake.storage import Store
from longtake.submission.ledger import Submission, SubmissionLedger
from longtake.temporal.connection import connect
from longtake.temporal.ledger_registration import begin_anew
from longtake.temporal.names import workflow_id
from tests.end_to_end.processes import DevServer
from tests.workflows.cases import EXTENDED, FIRST, retrying
from tests.workflows.rig import (
    FULL_VIDEO,
    REQUEST,
    Rig,
    Script,
    accepted,
    completed,
    delivered,
    lost,
    refusal,
    rig_on,
)

pytestmark = pytest.mark.system

TEXTS = {name: REQUEST[name] for name in ("prompt", "prompt_extend")}
SOON = GenerationPolicy(schedule=PollSchedule(expected=timedelta(seconds=1), min_interval=timedelta(seconds=1)))
PATHS = {name: prompt_path(text) for name, text in TEXTS.items()}


async def test_what_was_paid_is_collected_in_the_form_that_the_ledger_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DevServer(tmp_path / "temporal") as server:
        async with rig_on(WorkflowEnvironment.from_client(await connect(server.address))) as rig:
            await collect_again(rig, "hidden-since", before=TEXTS, after=PATHS)
            await collect_again(rig, "shown-since", before=PATHS, after=TEXTS)
            await collect_extension_again(rig)
            await collect_what_is_retired(rig, Store.open(str(tmp_path / "store")), monkeypatch)


async def collect_again(rig: Rig, key: str, *, before: dict[str, str], after: dict[str, str]) -> None:
    gone = refusal("DeliveryFailed", "gone", paid=Paid.YES)
    await (await rig.generate(Script(prepare=[SOON], polls=[completed()], deliver=[gone]), key=key, **before)).failure()
    script = Script(prepare=[SOON], polls=[completed()], deliver=[delivered(FULL_VIDEO)])
    rig._fakes.scripts[workflow_id(key)] = script

    client = VideoClient(rig.client)
    _, started = await client.start(key, GenerateVideoInput.model_validate({**REQUEST, **after}))

    assert started
    assert (await client.result(key)).outcome == "full"
    (submitted,) = script.inputs("submit_generation")
    assert submitted.request == GenerateVideoInput.model_validate({**REQUEST, **before})
    another = {**REQUEST, "prompt": prompt_path("another")}
    with pytest.raises(KeyInUse, match="differs in prompt"):
        await client.start(key, GenerateVideoInput.model_validate(another))


async def collect_extension_again(rig: Rig) -> None:
    """A paid extension that got lost: its generation ended well, with the 8 s clip, and can be started again."""
    policy = SOON.model_copy(update={"extension_retries": 1, "lost_grace": timedelta(0)})
    script = retrying(*[lost(**EXTENDED)] * 3, prepare=[policy], deliver=FIRST)
    request = GenerateVideoInput.model_validate({**REQUEST, "on_extend_failed": "retry"})
    result = await (await rig.generate(script, key="lost-extension", on_extend_failed="retry")).result()
    assert (result.outcome, result.uncollected is not None) == ("fallback", True)
    script = retrying(
        completed(**EXTENDED),
        prepare=[policy.model_copy(update={"extensions_sent": 1})],
        submit=[accepted(attached=True)],
        extend=[accepted(**EXTENDED, attached=True)],
    )
    rig._fakes.scripts[workflow_id("lost-extension")] = script

    client = VideoClient(rig.client)
    _, started = await client.start("lost-extension", request)

    assert started
    assert (await client.result("lost-extension")).outcome == "full"
    _, started = await client.start("lost-extension", request)
    assert not started, "everything is collected"


async def collect_what_is_retired(rig: Rig, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is offered today says nothing about a key that Temporal or the ledger knows; a new key is refused."""
    gone = refusal("DeliveryFailed", "gone", paid=Paid.YES)
    script = Script(prepare=[SOON], polls=[completed()], deliver=[gone])
    await (await rig.generate(script, key="retired")).failure()
    request = GenerateVideoInput.model_validate(REQUEST)
    ledger = SubmissionLedger(store, longest_exchange=timedelta(0))
    await begin_anew(rig.client, ledger)
    await ledger.adopt("forgotten", Submission(digest="-", writer="us", model=request.model), "task_1")
    offered = {name: model for name, model in rules.MODELS.items() if name != request.model}
    monkeypatch.setattr(rules, "MODELS", offered)

    for key, client in (("retired", VideoClient(rig.client)), ("forgotten", VideoClient(rig.client, store=store))):
        rig._fakes.scripts[workflow_id(key)] = Script(
            prepare=[SOON],
            submit=[accepted(attached=True)],
            polls=[completed()],
            deliver=[delivered(FULL_VIDEO)],
        )
        with pytest.raises(InvalidRequest):
            await client.start("fresh", request)
        _, started = await client.start(key, request)
        assert started
        assert (await client.result(key)).model == request.model
