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

from longtake import ledger as ledger_module
from longtake.gateway.client import GatewayClient, SubmissionForm
from longtake.ledger import Accepted, Answer, Arm, LedgerError, SubmissionLedger
from longtake.storage import Store

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


def main(order: Order) -> None:
    """Submit, once."""
    logging.disable()
    httpx.create_ssl_context = lambda *_, **__: _TLS  # reading certificates would take a third of a life
    ledger_module._STALE_AFTER_SECONDS = order.stale_after_seconds
    asyncio.run(_submit(order))


async def _submit(order: Order) -> None:
    try:
        ended = f"accepted {await _attempt(order)}"
    except LedgerError as error:
        ended = f"failed {type(error).__name__}"
    unfinished = order.result.with_suffix(f".{os.getpid()}")
    unfinished.write_text(ended)
    unfinished.replace(order.result)


async def _attempt(order: Order) -> str:
    form = SubmissionForm(model="veo_3_1-fast-remix", prompt=order.prompt, prompt_extend="and then it ends")

    async def send(arm: Arm) -> Answer:
        async def before_send() -> None:
            if order.stops == "before":
                os.kill(os.getpid(), signal.SIGSTOP)
            await arm()

        answer = await gateway.submit(form, before_send=before_send)
        return Answer(answer.task_id, answer.request_id)

    async with GatewayClient(
        base_url=order.gateway_url, api_keys=[SecretStr(API_KEY)], submit_timeout=timedelta(seconds=20)
    ) as gateway:
        if not order.with_ledger:
            return (await send(_armed)).task_id
        ledger = SubmissionLedger(_store(order), longest_exchange=timedelta(seconds=20))
        accepted: Accepted = await ledger.submit(
            order.key, digest="the same", send=send, owner=f"process {os.getpid()}", model=form.model
        )
        return accepted.task_id


async def _armed() -> None:
    """Whoever keeps no ledger may always send."""


def _store(order: Order) -> Store:
    if order.stops == "after":
        return _StoppingStore.open(order.store_folder)
    return Store.open(order.store_folder)


class _StoppingStore(Store):
    """Stops the process at the instant when its intent has been written and before it knows."""

    async def create(self, path: str, content: bytes) -> bool:
        created = await super().create(path, content)
        if path.endswith("/intent"):
            os.kill(os.getpid(), signal.SIGSTOP)
        return created
