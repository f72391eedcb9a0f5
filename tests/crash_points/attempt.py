"""A process that makes one attempt of an activity, with all its real parts, and may be struck at any instant."""

import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from temporalio.exceptions import ApplicationError

from longtake.delivery.download import Fetcher
from longtake.gateway.account import AccountClient, ConsoleAccess
from longtake.gateway.client import GatewayClient
from longtake.gateway.extension import ExtensionClient
from longtake.models import DeliverInput, DeliveryKind, GenerateVideoInput, SubmitInput
from longtake.storage import Store
from longtake.submission import ledger as ledger_module
from tests.activities.conftest import Worker
from tests.crash_points.instants import Blow, Instants
from tests.exploration.broken import sends_without_a_record

API_KEY = "key-of-the-struck"
SUBMIT_SECONDS = 20.0
_TLS = httpx.create_ssl_context()


@dataclass(frozen=True)
class Attempt:
    """What the process is to do, and what happens to it."""

    gateway_url: str
    console: tuple[str, str]
    store: str
    key: str
    folder: Path
    """Where it writes how it ended, and its heartbeats."""
    number: int = 1
    task_id: str = ""
    """Deliver its clip, instead of submitting."""
    blow: Blow = "none"
    at: int = 0
    heartbeat_of: int = 0
    """Which attempt's heartbeat it is given, as Temporal gives it to a retry; 0: none's."""
    stale_after_seconds: float = 5.0
    without_record: bool = False
    """A broken ledger: nothing is written before the send."""

    @property
    def result(self) -> Path:
        """How it ended: `accepted <task id>`, `delivered <sha256>` or `failed <type>`."""
        return self.folder / f"result-{self.number}"

    @property
    def instants(self) -> Path:
        """Where each of its instants was."""
        return self.folder / f"instants-{self.number}"

    def heartbeat(self, number: int) -> Path:
        """What an attempt told Temporal last."""
        return self.folder / f"heartbeat-{number}"


def main(attempt: Attempt) -> None:
    """Make it."""
    logging.disable()
    httpx.create_ssl_context = lambda *_, **__: _TLS  # reading certificates would take a third of a life
    ledger_module._STALE_AFTER_SECONDS = attempt.stale_after_seconds
    if attempt.without_record:
        ledger_module._Attempt._create_intent = sends_without_a_record  # type: ignore[method-assign]
    instants = Instants(attempt.blow, attempt.at)
    instants.run(_make(attempt, instants))


async def _make(attempt: Attempt, instants: Instants) -> None:
    async with _worker(attempt) as worker:
        instants.begin()
        try:
            ended = await (_deliver(worker, attempt) if attempt.task_id else _submit(worker, attempt))
        except ApplicationError as error:
            ended = f"failed {error.type}"
        seen = list(instants.seen)
    _write(attempt.result, ended)
    _write(attempt.instants, json.dumps(seen))


async def _submit(worker: Worker, attempt: Attempt) -> str:
    request = GenerateVideoInput(
        model="veo_3_1-fast-remix", prompt=f"a storm [sim:ok,label={attempt.key}]", prompt_extend="and it ends"
    )
    receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=attempt.key, request=request))
    return f"accepted {receipt.task_id}"


async def _deliver(worker: Worker, attempt: Attempt) -> str:
    input = DeliverInput(key=attempt.key, task_id=attempt.task_id, kind=DeliveryKind.FULL)
    receipt = await worker.run(worker.delivery.deliver_video, input)
    return f"delivered {receipt.video.sha256}"


@contextlib.asynccontextmanager
async def _worker(attempt: Attempt) -> AsyncIterator[Worker]:
    """What `worker.py` builds, and a heartbeat that outlives the process."""
    token, user_id = attempt.console
    key = SecretStr(API_KEY)
    async with contextlib.AsyncExitStack() as stack:
        gateway = GatewayClient(
            base_url=attempt.gateway_url, api_keys=[key], submit_timeout=timedelta(seconds=SUBMIT_SECONDS)
        )
        fetcher = Fetcher(attempt.gateway_url, key.get_secret_value, allow_private_addresses=True)
        account_client = AccountClient(
            base_url=attempt.gateway_url, api_key=key, console=ConsoleAccess(SecretStr(token), user_id)
        )
        extension = ExtensionClient(
            base_url=attempt.gateway_url, api_key=key, model="veo_3_1-extend", submit_timeout=timedelta(seconds=5)
        )
        for client in (gateway, fetcher, account_client, extension):
            stack.push_async_callback(client.aclose)
        worker = Worker(gateway, Store.open(attempt.store), fetcher, account_client, extension)
        await worker.ledger.establish()
        worker.established = True
        worker.environment.info = replace(
            worker.environment.info,
            workflow_id=f"video-{attempt.key}",
            attempt=attempt.number,
            scheduled_time=datetime.now(UTC),
            heartbeat_details=_shown_before(attempt),
        )
        worker.environment.on_heartbeat = lambda *details: _write(
            attempt.heartbeat(attempt.number), json.dumps(details)
        )
        yield worker


def _shown_before(attempt: Attempt) -> tuple[Any, ...]:
    path = attempt.heartbeat(attempt.heartbeat_of)
    return tuple(json.loads(path.read_text())) if attempt.heartbeat_of and path.exists() else ()


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)
