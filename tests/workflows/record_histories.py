"""Records one history for each way that a generation can end: `python -m tests.workflows.record_histories`.

Run it after a change of the workflow that old histories cannot follow, and only then: the stored ones show that what
runs somewhere today still can. Recorded against the fakes, they hold nothing of the machine they were recorded on.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from unittest import mock

from temporalio.api.enums.v1 import EventType

from longtake.models import ClosedSubmission, GenerationPolicy, Paid, Reconciliation, Stage
from tests.workflows.cases import FIRST, FULL, PATIENT, UNKNOWN, asking, retrying
from tests.workflows.cases import adopted as resolved
from tests.workflows.rig import (
    PATIENCE_SECONDS,
    Generation,
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
    running,
    running_rig,
)
from workflows.steps import poll as watching

SHORT_RUN: Final = 3
"""Looks before the one that continues as new does so; 300 would be a megabyte."""
FOLDER: Final = Path(__file__).parent / "histories"


async def full(rig: Rig) -> Generation:
    polls = [running(10), running(61, remix_id="video_first", remix_id_extend="video_second"), completed()]
    return await rig.generate(Script(polls=polls, deliver=FULL), key="full", size="1920x1080")


async def with_trouble(rig: Rig) -> Generation:
    polls = [
        refusal("KeyRefused", "401"),
        refusal("InvalidResponse", "HTML"),
        lost(error_message="gone"),
        completed(),
    ]
    script = Script(submit=[accepted(recorded=False)], record=[None], polls=polls, deliver=[*FULL, *FIRST])
    generation = await rig.generate(script, key="with_trouble", keep_first=True)
    await rig.pass_time(timedelta(seconds=70))
    await generation.handle.execute_update("poll_now")
    return generation


async def fallback(rig: Rig) -> Generation:
    return await rig.generate(Script(polls=[running(30), extend_failed()], deliver=FIRST), key="fallback")


async def decided(rig: Rig) -> Generation:
    generation = await asking(rig, key="decided")
    await generation.handle.execute_update("decide", {"action": "accept"})
    return generation


async def extension_retried(rig: Rig) -> Generation:
    script = retrying(running(40), completed(), prepare=[GenerationPolicy(extension_retries=1)])
    return await rig.generate(script, key="extension_retried", on_extend_failed="retry")


async def extension_failed(rig: Rig) -> Generation:
    script = Script(polls=[extend_failed()], deliver=FIRST)
    return await rig.generate(script, key="extension_failed", on_extend_failed="fail")


async def generation_failed(rig: Rig) -> Generation:
    return await rig.generate(Script(polls=[running(20), generate_failed()]), key="generation_failed")


async def invalid_request(rig: Rig) -> Generation:
    return await rig.start(Script(), {"model": "veo_4", "prompt": ""}, key="invalid_request")


async def refused(rig: Rig) -> Generation:
    no = refusal("SubmissionRefused", "bad size", paid=Paid.NO, http_status=422)
    return await rig.generate(Script(submit=[no], close=[ClosedSubmission()]), key="refused")


async def not_submitted(rig: Rig) -> Generation:
    return await rig.generate(Script(prepare=[refusal("NotAGateway", "HTML", paid=Paid.NO)]), key="not_submitted")


async def unknown(rig: Rig) -> Generation:
    return await rig.generate(Script(submit=[UNKNOWN], reconcile=[Reconciliation()]), key="unknown")


async def adopted(rig: Rig) -> Generation:
    script = Script(
        prepare=[PATIENT],
        submit=[UNKNOWN],
        reconcile=again(Reconciliation(candidates=("task_a",))),
        resolve=[resolved],
        polls=[completed()],
        deliver=FULL,
    )
    generation = await rig.generate(script, key="adopted")
    await generation.reaches(lambda status: status.stage is Stage.AWAITING_DECISION)
    await generation.handle.execute_update("decide", {"action": "adopt", "task_id": "task_a"})
    return generation


async def abandoned(rig: Rig) -> Generation:
    script = Script(prepare=[PATIENT], submit=[UNKNOWN], reconcile=again(Reconciliation()))
    return await rig.generate(script, key="abandoned")


async def task_lost(rig: Rig) -> Generation:
    policy = GenerationPolicy(lost_grace=timedelta(minutes=2))
    polls = again(lost(error_message="upstream returned error"))
    return await rig.generate(Script(prepare=[policy], polls=polls), key="task_lost")


async def overdue(rig: Rig) -> Generation:
    policy = GenerationPolicy(overdue_after=timedelta(minutes=4), give_up_after=timedelta(minutes=20))
    return await rig.generate(Script(prepare=[policy], polls=again(running(60))), key="overdue")


async def delivery_failed(rig: Rig) -> Generation:
    no = refusal("DeliveryFailed", "every source says it is gone")
    return await rig.generate(Script(polls=[completed()], deliver=[no]), key="delivery_failed")


async def cancelled(rig: Rig) -> Generation:
    generation = await rig.generate(Script(polls=[running(10), running(20)]), key="cancelled")
    await rig.pass_time(timedelta(seconds=70))
    await generation.handle.cancel()
    return generation


async def cancelled_while_submitting(rig: Rig) -> Generation:
    held = Held(accepted())
    generation = await rig.generate(Script(submit=[held]), key="cancelled_while_submitting")
    await held.begun.wait()
    await generation.handle.cancel()
    await generation.has_event(EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED)
    held.let_go()
    return generation


async def continued_as_new(rig: Rig) -> Generation:
    polls = [*[running(60, remix_id="video_first")] * 4, completed()]
    return await rig.generate(Script(polls=polls, deliver=FULL), key="continued_as_new")


RECORDINGS: Final[tuple[Callable[[Rig], Awaitable[Generation]], ...]] = (
    full,
    with_trouble,
    fallback,
    decided,
    extension_retried,
    extension_failed,
    generation_failed,
    invalid_request,
    refused,
    not_submitted,
    unknown,
    adopted,
    abandoned,
    task_lost,
    overdue,
    delivery_failed,
    cancelled,
    cancelled_while_submitting,
    continued_as_new,
)


def scrubbed(value: Any) -> Any:
    """Without the stack traces, which name files of this machine; replay does not read them."""
    if isinstance(value, dict):
        return {key: scrubbed(inner) for key, inner in value.items() if key != "stackTrace"}
    return [scrubbed(inner) for inner in value] if isinstance(value, list) else value


async def record(rig: Rig, play: Callable[[Rig], Awaitable[Generation]]) -> str:
    """Play one generation to its end.

    Returns:
        The history of its first run, as JSON.
    """
    with mock.patch.object(
        watching, "POLLS_PER_RUN", SHORT_RUN if play is continued_as_new else watching.POLLS_PER_RUN
    ):
        generation = await play(rig)
        failed = asyncio.create_task(generation.handle.result())
        await asyncio.wait({failed}, timeout=PATIENCE_SECONDS)
    if not failed.done():
        raise SystemExit(f"{play.__name__} does not end")
    failed.exception()  # most of them end with one
    run_id = generation.handle.first_execution_run_id
    history = await rig.client.get_workflow_handle(generation.handle.id, run_id=run_id).fetch_history()
    await rig.clean_up()
    return json.dumps(scrubbed(json.loads(history.to_json())), indent=1, ensure_ascii=False) + "\n"


async def main() -> None:
    texts = {}
    for play in RECORDINGS:
        async with running_rig() as rig:
            texts[play.__name__] = await record(rig, play)
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, text in texts.items():
        (FOLDER / f"{name}.json").write_text(text)
        sys.stdout.write(f"{name}: {len(json.loads(text)['events'])} events\n")


if __name__ == "__main__":
    asyncio.run(main())
    # The SDK's native threads abort a short-lived interpreter at exit now and then (sdk-python issue 300).
    sys.stdout.flush()
    os._exit(0)
