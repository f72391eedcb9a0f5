"""What the store keeps of a generation beside the ledger: its request, and the last readable record of each task.

The record has the links until the clip is stored, because links never enter a payload. `starter.py recover` restarts a
paid generation that Temporal has forgotten from the kept request.
"""

import hashlib
import re
from dataclasses import replace

from pydantic import ValidationError

from longtake.gateway.wire import GatewayRecord
from longtake.models import DeliveryKind, GenerateVideoInput, TaskState
from longtake.request.rules import request_digest
from longtake.storage import Store

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def folder_name(key: str) -> str:
    """The folder name of a key: the key itself, or a safe form with a hash if the key has special characters."""
    if _PLAIN.fullmatch(key):
        return key
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', key)[:60].strip('-')}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def video_directory(key: str) -> str:
    """The folder of a generation's videos in the store."""
    return f"videos/{folder_name(key)}"


async def save_record(store: Store, key: str, record: GatewayRecord) -> None:
    """Keep a record. A link that it lacks is copied from the previous record.

    Raises:
        StoreProblem: The store failed.
    """
    try:
        before = await load_record(store, key, record.task_id)
    except ValueError:  # unreadable: replace it
        before = None
    await store.put(_path(key, record.task_id), (record.completed_by(before) if before else record).to_json())


async def load_record(store: Store, key: str, task_id: str) -> GatewayRecord | None:
    """The last record; None if there is none.

    Raises:
        StoreProblem: The store failed.
        ValueError: The kept object is not a record.
    """
    content = await store.get(_path(key, task_id))
    return None if content is None else GatewayRecord.from_json(content)


async def save_request(store: Store, key: str, request: GenerateVideoInput) -> None:
    """Keep a request before it is paid for. Prompts that are paths stay paths.

    Raises:
        StoreProblem: The store failed.
    """
    await store.put(_request_path(key, request_digest(request)), request.model_dump_json().encode())


async def load_request(store: Store, key: str, digest: str) -> GenerateVideoInput | None:
    """The kept request with this digest (`request_digest`); None if there is none.

    Raises:
        StoreProblem: The store failed.
    """
    content = await store.get(_request_path(key, digest))
    try:
        request = None if content is None else GenerateVideoInput.model_validate_json(content)
    except ValidationError:
        return None
    return request if request is not None and request_digest(request) == digest else None


async def forget_links(store: Store, key: str, task_id: str, *, kind: DeliveryKind, keep_first: bool) -> None:
    """Remove the links that are no longer needed after a delivery from the kept record.

    Args:
        store: The store.
        key: The generation's key.
        task_id: The task.
        kind: The clip that is stored now.
        keep_first: Whether the first 8 s of a full video are still to be downloaded.

    Raises:
        StoreProblem: The store failed.
    """
    try:
        record = await load_record(store, key, task_id)
    except ValueError:  # unreadable, and may hold links all the same
        await store.delete(_path(key, task_id))
        return
    if record is None:
        return
    full_is_needed = kind is DeliveryKind.FIRST and record.state is TaskState.COMPLETED
    first_is_needed = kind is DeliveryKind.FULL and keep_first
    without = replace(
        record,
        video_url=record.video_url if full_is_needed else None,
        result_url=record.result_url if full_is_needed else None,
        first_video_url=record.first_video_url if first_is_needed else None,
    )
    if without != record:
        # Not `save_record`, which would copy the links back.
        await store.put(_path(key, task_id), without.to_json())


async def store_gateway_words(store: Store, key: str, words: str) -> str:
    """Keep a gateway's message about a generation with hidden prompts, because it may repeat a prompt in any form.

    Returns:
        The path below the store.

    Raises:
        StoreProblem: The store cannot be written.
    """
    content = words.encode(errors="replace")
    path = f"words/{folder_name(key)}/{hashlib.sha256(content).hexdigest()[:16]}.txt"
    await store.put_by_content(path, content)
    return path


def _path(key: str, task_id: str) -> str:
    return f"records/{folder_name(key)}/{hashlib.sha256(task_id.encode()).hexdigest()[:16]}.json"


def _request_path(key: str, digest: str) -> str:
    return f"records/{folder_name(key)}/request-{digest[:16]}.json"
