"""A process that submits once and may be killed or stopped at any instant; see `test_killed_submissions.py`."""

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
from pydantic import SecretStr

from longtake.gateway.client import GatewayClient, SubmissionForm, SubmittedTask
from longtake.models import SubmissionReceipt
from longtake.storage import Store
from longtake.submission import ledger as ledger_module
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import CreateIntent, Submission, SubmissionLedger

API_KEY = "key-of-the-killed"

_TLS = httpx.create_ssl_context()


@dataclass(frozen=True)
class Order:
    """What one process is to do."""

    gateway_url: str
    store_folder: str
    key: str
    prompt: str
    result: Path
    """The process writes here how it ended: `accepted <task id>` or `failed <error's name>`."""
    with_ledger: bool = True
    """Without it: the naive client, which knows nothing of what was sent before it."""
    stops: str = ""
    """`before` or `after` the intent the process stops itself, as SIGSTOP or a sleeping laptop would."""
    stale_after_seconds: float = 5.0


def main(input: Order) -> None:
    """Submit, once."""
    logging.disable()
    httpx.create_ssl_context = lambda *_, **__: _TLS  # reading certificates would take a third of a life
    ledger_module._STALE_AFTER_SECONDS = input.stale_after_seconds
    asyncio.run(_submit(input))


async def _submit(input: Order) -> None:
    try:
        ended = f"accepted {await _attempt(input)}"
    except LedgerError as error:
        ended = f"failed {type(error).__name__}"
    unfinished = input.result.with_suffix(f".{os.getpid()}")
    unfinished.write_text(ended)
    unfinished.replace(input.result)


async def _attempt(input: Order) -> str:
    form = SubmissionForm(model="veo_3_1-fast-remix", prompt=input.prompt, prompt_extend="and then it ends")

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        async def before_send() -> None:
            if input.stops == "before":
                os.kill(os.getpid(), signal.SIGSTOP)
            await create_intent()

        answer = await gateway.submit(form, before_send=before_send)
        return SubmittedTask(answer.task_id, answer.request_id)

    async with GatewayClient(
        base_url=input.gateway_url, api_keys=[SecretStr(API_KEY)], submit_timeout=timedelta(seconds=20)
    ) as gateway:
        if not input.with_ledger:
            return (await send(_intent_created)).task_id
        ledger = SubmissionLedger(_store(input), longest_exchange=timedelta(seconds=20))
        accepted: SubmissionReceipt = await ledger.submit(
            input.key, Submission(digest="the same", writer=f"process {os.getpid()}", model=form.model), send
        )
        return accepted.task_id


async def _intent_created() -> None:
    """Whoever keeps no ledger may always send."""


def _store(input: Order) -> Store:
    if input.stops == "after":
        return _StoppingStore.open(input.store_folder)
    return Store.open(input.store_folder)


class _StoppingStore(Store):
    """Stops the process at the instant when its intent has been written and before it knows."""

    async def create(self, path: str, content: bytes) -> bool:
        created = await super().create(path, content)
        if path.endswith("/intent"):
            os.kill(os.getpid(), signal.SIGSTOP)
        return created
