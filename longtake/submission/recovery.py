"""Which paid tasks still have a video to fetch, as the store alone knows it, and with which request to fetch it."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime

from longtake.delivery.download import is_delivered
from longtake.delivery.task_records import load_record, load_request, video_directory
from longtake.models import DeliveryKind, GenerateVideoInput, OnExtendFailed, TaskState
from longtake.storage import Store
from longtake.submission.ledger import PaidTask, SubmissionLedger

_NO_PROMPT = "(not kept)"


async def undelivered_tasks(
    store: Store,
    ledger: SubmissionLedger,
    *,
    since: datetime,
    key_of: Callable[[str], str],
    on_progress: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[PaidTask]:
    """The paid tasks since then whose video is not in the store and may still be had. Reads only.

    Raises:
        LedgerUnavailable, StoreProblem: The store did not answer.
    """
    async for task in ledger.paid_tasks(since=since, key_of=key_of, on_progress=on_progress):
        if task.key is None or await _has_a_video_to_fetch(store, task.key, task):
            yield task


async def _has_a_video_to_fetch(store: Store, key: str, task: PaidTask) -> bool:
    directory = video_directory(key)
    if await is_delivered(store, directory, DeliveryKind.FULL, task.task_id):
        return False
    try:
        record = await load_record(store, key, task.task_id)
    except ValueError:  # it cannot be read: the gateway is asked again
        record = None
    state = record.state if record else None
    if state is TaskState.GENERATE_FAILED or (state is TaskState.EXTEND_FAILED and task.retry):
        return False
    first = await is_delivered(store, directory, DeliveryKind.FIRST, task.task_id)
    # The first clip is all there is, unless it was stored while the full video could not be had.
    return not first or state is TaskState.COMPLETED


async def request_for(
    store: Store, ledger: SubmissionLedger, task: PaidTask, *, key_of: Callable[[str], str]
) -> tuple[GenerateVideoInput | None, bool]:
    """What to start the key of a paid task with, so that nothing is paid, and whether that is the request as it was.

    Returns:
        Without the request: one that takes over the key's own task. None where the key has no first payment.

    Raises:
        LedgerUnavailable, StoreProblem: The store did not answer.
    """
    if task.key is None:
        return None, False
    first = task if task.retry is None else await ledger.first_paid(task.key, key_of=key_of)
    if first is None:
        return None, False
    request = await load_request(store, task.key, first.digest)
    if request is None:
        prompts = {"prompt": _NO_PROMPT, "prompt_extend": _NO_PROMPT}
        return GenerateVideoInput(model=first.model, task_id=first.task_id, **prompts), False
    if request.on_extend_failed is OnExtendFailed.RETRY:
        # That would pay: a person is asked instead.
        request = request.model_copy(update={"on_extend_failed": OnExtendFailed.ASK})
    return request, True
