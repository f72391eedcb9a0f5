"""What a command works with: settings, a connection to Temporal, one generation; and its errors as exit codes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from cli.embedded import START_SECONDS, EmbeddedProblem, EmbeddedServer, embedded_server
from cli.embedded_worker import EmbeddedWorker
from cli.output import CommandProblem, Exit, interrupted, invalid
from longtake.client import (
    DecisionRejected,
    GenerationFailure,
    GenerationNotFound,
    KeyInUse,
    NoWorker,
    Snapshot,
    VideoClient,
)
from longtake.request.rules import InvalidRequest
from longtake.settings import Settings, SettingsProblem
from longtake.storage import Store, StoreProblem
from longtake.submission.errors import LedgerError, WrongLedger
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import TemporalProblem, connect, is_configured, target
from longtake.temporal.key_ring import PayloadUnreadable
from longtake.temporal.ledger_registration import check
from longtake.temporal.names import InvalidKey, workflow_id
from longtake.temporal.search_attributes import register_search_attributes

_PROBLEMS: tuple[tuple[type[Exception], Exit, str], ...] = (
    (SettingsProblem, Exit.USAGE, "InvalidSettings"),
    (PayloadUnreadable, Exit.USAGE, "PayloadUnreadable"),
    (DecisionRejected, Exit.USAGE, "DecisionRejected"),
    (GenerationNotFound, Exit.USAGE, "GenerationNotFound"),
    (KeyInUse, Exit.USAGE, "KeyInUse"),
    (WrongLedger, Exit.USAGE, "WrongLedger"),
    (LedgerError, Exit.UNREACHABLE, "LedgerUnavailable"),
    (StoreProblem, Exit.UNREACHABLE, "StoreUnavailable"),
    (NoWorker, Exit.UNREACHABLE, "NoWorker"),
    (EmbeddedProblem, Exit.UNREACHABLE, "TemporalUnreachable"),
    (TemporalProblem, Exit.UNREACHABLE, "TemporalUnreachable"),
    (RPCError, Exit.UNREACHABLE, "TemporalUnreachable"),
)
"""Exit code and type of each expected error; the first row that fits counts."""


def problem_of(error: Exception, ids: dict[str, Any]) -> CommandProblem | None:
    """The error as exit code, type and message; None for a defect, whose traceback is needed."""
    match error:
        case CommandProblem():
            error.ids = error.ids or ids
            return error
        case InvalidRequest():
            problem = invalid(error.problems)
            problem.ids = ids
            return problem
        case GenerationFailure():
            code = Exit.UNREACHABLE if error.kind == "NotSubmitted" else Exit.FAILED
            return CommandProblem(code, error.kind, error.message, error.details, ids)
        case RPCError(status=RPCStatusCode.INVALID_ARGUMENT):
            setup = "; run `starter.py setup` once for this namespace" if "search attribute" in str(error) else ""
            message = f"Temporal rejects this: {error}{setup}"
            return CommandProblem(Exit.USAGE, "InvalidRequest", message, ids=ids)
    for kind, code, name in _PROBLEMS:
        if isinstance(error, kind):
            return CommandProblem(code, name, str(error), ids=ids)
    return None


@contextlib.contextmanager
def _as_command_problems(ids: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        problem = interrupted(ids.get("key"), found=bool(ids.get("run_id")))
        problem.ids = ids
        raise problem from None
    except Exception as error:
        expected = problem_of(error, ids)
        if expected is None:
            raise
        raise expected from None


@dataclass(frozen=True)
class Session:
    """A connection to Temporal.

    Attributes:
        client: Starts and reads generations.
        temporal: The SDK's client below it.
        address: Where Temporal listens.
        ui_url: Temporal's UI, where its address is known.
        namespace: Temporal's.
    """

    client: VideoClient
    temporal: Client
    address: str
    ui_url: str | None
    namespace: str = "default"

    def link(self, key: str, run_id: str = "") -> str | None:
        """The generation's page in Temporal's UI; None where the UI's address is unknown."""
        if self.ui_url is None:
            return None
        return f"{self.ui_url}/namespaces/{self.namespace}/workflows/{workflow_id(key)}/{run_id}".rstrip("/")


@dataclass(frozen=True)
class Generation:
    """The generation that a command is about.

    Attributes:
        key: Its idempotency key.
        client: Reads and steers it.
        settings: The environment, with `--data-dir`.
        snapshot: How the command found it.
        ids: Key, workflow id and run id, as every JSON document has them.
    """

    key: str
    client: VideoClient
    settings: Settings
    snapshot: Snapshot
    ids: dict[str, Any]


@asynccontextmanager
async def open_generation(key: str, data_dir: Path | None) -> AsyncIterator[Generation]:
    """Connect, and find one generation. An embedded worker runs only where the gateway is configured.

    Raises:
        CommandProblem: Any expected error, here or in the block, with its exit code and the ids.
    """
    settings = load_settings(data_dir)
    ids = ids_of(key)
    can_work = bool(settings.gateway_url and settings.gateway_api_key)
    async with open_session(settings, worker=can_work, ids=ids) as session:
        snapshot = await session.client.snapshot(key)
        ids["run_id"] = snapshot.execution.run_id
        yield Generation(key, session.client, settings, snapshot, ids)


@asynccontextmanager
async def open_session(
    settings: Settings,
    *,
    worker: bool,
    stay_behind: bool = False,
    store: Store | None = None,
    ids: dict[str, Any] | None = None,
) -> AsyncIterator[Session]:
    """Connect to the configured Temporal, or to the embedded one.

    Args:
        settings: Where the data folder is, and what an embedded worker needs.
        worker: Whether the command needs a worker; only the embedded server gets one.
        stay_behind: Let the embedded worker run in the background until every generation has ended.
        store: Required to start generations: its ledger must be the namespace's.
        ids: Of the generation; reported with every error.

    Raises:
        CommandProblem: Any expected error, here or in the block, with its exit code.
    """
    with _as_command_problems({} if ids is None else ids):
        if is_configured():
            where = target()
            temporal = await connect()
            yield Session(VideoClient(temporal, store=store), temporal, where.address, None, where.namespace)
            return
        async with AsyncExitStack() as stack:
            server = stack.enter_context(server_of(settings))
            temporal = await connect_when_healthy(server.address)
            # A server on an older database does not add the attributes that it is started with.
            await register_search_attributes(temporal)
            if store is not None:  # the worker would fail for the same reason, but only in its log
                try:
                    await check(temporal, SubmissionLedger(store, longest_exchange=settings.submit_timeout))
                except LedgerError as error:
                    kind = "WrongLedger" if isinstance(error, WrongLedger) else "LedgerUnavailable"
                    raise CommandProblem(Exit.USAGE, kind, str(error)) from None
            if worker:
                await stack.enter_async_context(EmbeddedWorker(settings, server, stay_behind=stay_behind))
            yield Session(VideoClient(temporal, store=store), temporal, server.address, server.ui_url)


def server_of(settings: Settings) -> AbstractContextManager[EmbeddedServer]:
    """The embedded server of the data folder, for the time of the block; see `embedded_server`."""
    return embedded_server(
        settings.data_dir,
        binary=settings.temporal_binary,
        sha256=settings.temporal_binary_checksum,
        codec=settings.codec_url,
    )


async def connect_when_healthy(address: str) -> Client:
    """Connect to a server that has just been started: it listens some moments before it is healthy.

    Raises:
        TemporalProblem: It is not healthy within `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return await connect(address)
        except TemporalProblem:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


def load_settings(data_dir: Path | None) -> Settings:
    """The environment, with `--data-dir` on top.

    Raises:
        SettingsProblem: A variable is unusable.
    """
    settings = Settings.load()
    return settings.in_folder(data_dir) if data_dir else settings


def open_store(settings: Settings) -> Store:
    """The configured store.

    Raises:
        CommandProblem: It cannot be used.
    """
    try:
        return Store.open(settings.store_location)
    except StoreProblem as error:
        raise CommandProblem(Exit.USAGE, "InvalidSettings", str(error)) from None


def ids_of(key: str) -> dict[str, Any]:
    """The ids of a generation, as every JSON document has them; the run id is added when it is found.

    Raises:
        CommandProblem: The key is invalid.
    """
    try:
        return {"key": key, "workflow_id": workflow_id(key), "run_id": None}
    except InvalidKey as error:
        raise CommandProblem(Exit.USAGE, "InvalidRequest", f"--key {key[:80]!r}: {error}") from None
