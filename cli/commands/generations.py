"""The commands that work with generations."""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from temporalio.service import RPCError, RPCStatusCode

from cli import known_ledgers
from cli.commands.request import build_request, new_key, read_request_file
from cli.output import CommandProblem, Exit, invalid, print_json, typed, write
from cli.progress import describe, follow
from cli.session import Session, open_session
from longtake.client import (
    DecisionRejected,
    GenerationFailure,
    GenerationNotFound,
    KeyInUse,
    NoWorker,
    Snapshot,
)
from longtake.display import after_cancelling, line
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError, GatewayUnreachable, KeyRefused
from longtake.gateway.preflight import Preflight
from longtake.models import (
    Decision,
    DecisionAction,
    FailureDetails,
    GenerateVideoResult,
    OnKeyRefused,
    Paid,
    StoredVideo,
)
from longtake.request.rules import InvalidRequest, warnings_for
from longtake.settings import Settings, SettingsProblem
from longtake.storage import Store, StoreProblem
from longtake.submission.errors import LedgerError, WrongLedger
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import TemporalProblem, is_configured
from longtake.temporal.key_ring import PayloadUnreadable
from longtake.temporal.ledger_registration import begin_anew, claim, registration
from longtake.temporal.names import InvalidKey, workflow_id
from longtake.temporal.search_attributes import register_search_attributes
from workflows.status_text import in_words

_CANCEL_SECONDS = 20.0

console = Console(stderr=True)
"""Everything for people goes to standard error; standard output is for results."""


@dataclass(frozen=True)
class Order:
    """What `generate` was asked."""

    flags: dict[str, Any]
    images: tuple[str, ...]
    from_file: str | None
    key: str | None
    output: Path | None
    wait: bool
    strict: bool
    as_json: bool


async def generate(order: Order, data_dir: Path | None) -> Exit:
    """Check, start or attach, follow, fetch."""
    settings = load_settings(data_dir)
    key = _checked_key(order.key or new_key())
    _check_output(order.output)
    store = open_store(settings)
    request, _ = await build_request(
        _fields(order), order.images, store, dry_run=False, hide_prompts=settings.hide_prompts, key=order.key
    )
    embedded = not is_configured()
    if embedded:
        await _check_gateway(settings, wait_for_key=request.on_key_refused is OnKeyRefused.WAIT)
    known = _known(key)
    session_of = open_session(settings, worker=True, stay_behind=not order.wait, store=store)
    async with session_of as session, session_errors(known):
        await _show_ledger(settings, store, quiet=order.as_json)
        await _warn_of_other_ledgers(key, store)
        run_id, started = await session.client.start(key, request)
        known["run_id"] = run_id
        if not order.as_json:
            for warning in warnings_for(request):
                _say(f"warning: {warning}")
            _say(f"{'started' if started else 'attached to'} {key}" + _link(session, key, run_id))
        if not order.wait:
            if order.as_json:
                print_json({**known, "started": started})
            else:
                write(f"{key}")
            return Exit.DELIVERED
        await follow(session.client, key, console=console, quiet=order.as_json)
        outcome = await session.client.result(key)
    return await _conclude(outcome, store, known, output=order.output, strict=order.strict, as_json=order.as_json)


async def dry_run(order: Order, data_dir: Path | None) -> Exit:
    """Check everything and show what would be sent."""
    settings = load_settings(data_dir)
    key = _checked_key(order.key or new_key())
    _check_output(order.output)
    store = open_store(settings)
    request, images = await build_request(_fields(order), order.images, store, dry_run=True, key=order.key)
    warnings = warnings_for(request)
    sent = {
        "url": f"{settings.gateway_url}/v1/videos" if settings.gateway_url else None,
        "model": request.model,
        "prompt_characters": len(request.prompt),
        "prompt_extend_characters": len(request.prompt_extend),
        "size": request.size,
        "images": images,
        "on_extend_failed": str(request.on_extend_failed),
        "on_key_refused": str(request.on_key_refused),
    }
    if order.as_json:
        print_json({"dry_run": True, "paid": "no", "key": key, "request": sent, "warnings": list(warnings)})
        return Exit.DELIVERED
    for name, value in sent.items():
        write(f"{name}: {'not given' if value is None else value}")
    for warning in warnings:
        _say(f"warning: {warning}")
    write("the request is good; nothing was sent, nothing was paid")
    return Exit.DELIVERED


async def watch(  # noqa: PLR0913 - one flag each
    key: str,
    data_dir: Path | None,
    *,
    strict: bool,
    as_json: bool,
    output: Path | None = None,
    quiet: bool = False,
) -> Exit:
    """Follow until the end; `result` is the quiet form of it."""
    settings = load_settings(data_dir)
    _check_output(output)
    known = _known(_checked_key(key))
    async with open_session(settings, worker=_can_work(settings)) as session, session_errors(known):
        snapshot = await session.client.snapshot(key)
        known["run_id"] = snapshot.execution.run_id
        if quiet and snapshot.status and snapshot.status.advice:
            _say(f"{key}: {snapshot.status.advice}")
        await follow(session.client, key, console=console, quiet=quiet or as_json)
        outcome = await session.client.result(key)
    store = open_store(settings)
    return await _conclude(outcome, store, known, output=output, strict=strict, as_json=as_json)


async def show_status(key: str, data_dir: Path | None, *, as_json: bool) -> Exit:
    """One look at a generation."""
    settings = load_settings(data_dir)
    known = _known(_checked_key(key))
    async with open_session(settings, worker=_can_work(settings)) as session, session_errors(known):
        snapshot = await session.client.snapshot(key)
        known["run_id"] = snapshot.execution.run_id
    if as_json:
        print_json({**known, **_snapshot_document(snapshot)})
        return Exit.DELIVERED
    write(f"{key}: {describe(snapshot, advice=False)}")
    status = snapshot.status
    if status:
        facts = {
            "what": status.message if snapshot.running else "",
            "outcome": status.outcome,
            "to do": status.advice,
            "decide until": in_words(status.decide_by),
            "about submission": status.slot,
            "paid": status.paid,
            "waits since": in_words(status.waiting_since),
            "charged": status.charged,
            "submitted": in_words(status.submitted_at),
            "task": status.task_id,
            "request id": status.request_id,
            "remix_id": status.remix_id,
            "remix_id_extend": status.remix_id_extend,
            "extension task": status.extension_task_id,
            "link dies": None if status.video else in_words(status.link_expires_at),
            "last problem": status.last_problem,
            "evidence": "; ".join(status.evidence),
            "candidates": ", ".join(status.candidates),
            "video": status.video and status.video.uri,
            "8 s clip": status.first_video and status.first_video != status.video and status.first_video.uri,
        }
        for name, value in facts.items():
            if value:
                write(f"  {name}: {value}")
    return Exit.DELIVERED


async def show_list(query: str, limit: int, data_dir: Path | None, *, as_json: bool) -> Exit:
    """The newest generations."""
    settings = load_settings(data_dir)
    async with open_session(settings, worker=False) as session, session_errors({}):
        rows = [execution async for execution in session.client.generations(query, limit=limit)]
    if as_json:
        print_json(
            [
                {
                    "key": row.key,
                    "workflow_id": row.workflow_id,
                    "run_id": row.run_id,
                    "state": row.state.lower(),
                    "stage": row.stage,
                    "attention": row.attention,
                    "outcome": row.outcome,
                    "paid": row.paid,
                    "model": row.model,
                    "task_id": row.task_id,
                    "started_at": row.started_at.isoformat(),
                    "closed_at": row.closed_at and row.closed_at.isoformat(),
                }
                for row in rows
            ]
        )
        return Exit.DELIVERED
    table = Table("key", "state", "stage", "outcome", "paid", "model", "task", "started")
    for row in rows:
        stage = (row.stage or "") + (f" ({row.attention})" if row.attention else "")
        known = (row.outcome, row.paid, row.model, row.task_id)
        cells = (row.key, row.state.lower(), stage, *(value or "" for value in known))
        table.add_row(*(escape(line(cell)) for cell in cells), f"{row.started_at.astimezone(UTC):%m-%d %H:%M:%S}")
    Console(width=None if sys.stdout.isatty() else 200).print(
        table if rows else "none match" if query else "no generations yet"
    )
    return Exit.DELIVERED


async def cancel(key: str, data_dir: Path | None, *, as_json: bool) -> Exit:
    """Ask it to stop waiting."""
    settings = load_settings(data_dir)
    known = _known(_checked_key(key))
    async with open_session(settings, worker=_can_work(settings)) as session, session_errors(known):
        before = await session.client.snapshot(key)
        known["run_id"] = before.execution.run_id
        if before.running:
            await session.client.cancel(key)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(follow(session.client, key, console=console, quiet=True), _CANCEL_SECONDS)
        after = await session.client.snapshot(key)
    if as_json:
        print_json({**known, **_snapshot_document(after)})
        return Exit.DELIVERED
    task = after.execution.task_id
    if not before.running:
        write(f"{key} had already ended: {after.execution.state.lower()}")
    elif after.running:
        write(f"{key}: its end is requested; it ends as soon as a worker takes it up")
    else:
        named = f" (the gateway's task {task})" if task else ""
        write(f"{key} is cancelled: {after_cancelling(after.execution.paid)}{named}")
    return Exit.DELIVERED


async def poll_now(key: str, data_dir: Path | None, *, as_json: bool) -> Exit:
    """Ask the gateway now."""
    settings = load_settings(data_dir)
    known = _known(_checked_key(key))
    async with open_session(settings, worker=_can_work(settings)) as session, session_errors(known):
        known["run_id"] = (await session.client.snapshot(key)).execution.run_id
        status = await session.client.poll_now(key)
    _print_status(status.model_dump(mode="json"), "the gateway is asked now", known, as_json=as_json)
    return Exit.DELIVERED


async def decide(  # noqa: PLR0913 - one for each flag
    key: str, action: str, task_id: str | None, data_dir: Path | None, *, slot: int | None = None, as_json: bool
) -> Exit:
    """Send a decision, about the submission that was seen."""
    settings = load_settings(data_dir)
    known = _known(_checked_key(key))
    try:
        decision = Decision(action=DecisionAction(action), task_id=task_id)
    except (ValueError, ValidationError):
        message = f"{action!r} is no decision: choose one of {', '.join(DecisionAction)}"
        raise CommandProblem(Exit.USAGE, "InvalidRequest", message, known=known) from None
    async with open_session(settings, worker=_can_work(settings)) as session, session_errors(known):
        snapshot = await session.client.snapshot(key)
        known["run_id"] = snapshot.execution.run_id
        seen = snapshot.status.slot if snapshot.status else None
        status = await session.client.decide(key, decision.model_copy(update={"slot": slot or seen}))
    _print_status(status.model_dump(mode="json"), f"decided: {decision.action}", known, as_json=as_json)
    return Exit.DELIVERED


async def setup(data_dir: Path | None, *, new_ledger: bool = False, confirm: Callable[[str], bool]) -> Exit:
    """Register the search attributes, and which ledger the namespace belongs to.

    Args:
        data_dir: The flag.
        new_ledger: Whether the namespace is to belong to the configured store from now on, whatever it belonged to.
        confirm: Asks a person whether that is meant.
    """
    settings = load_settings(data_dir)
    if not is_configured() and not new_ledger:
        write("the embedded server registers everything by itself: nothing to do")
        return Exit.DELIVERED
    async with open_session(settings, worker=False) as session, session_errors({}):
        added = await register_search_attributes(session.temporal)
        said = f"registered: {', '.join(added)}" if added else "all search attributes are registered already"
        write(f"{said}")
        if is_configured() and settings.store_url is None:
            write("LONGTAKE_STORE_URL is not set here: the first worker registers its ledger")
            return Exit.USAGE if new_ledger else Exit.DELIVERED
        ledger = SubmissionLedger(open_store(settings), longest_exchange=settings.submit_timeout)
        if new_ledger:
            return await _begin_new_ledger(session, ledger, confirm)
        await claim(session.temporal, ledger)
        _, now = await begin_anew(session.temporal, ledger)  # the same ledger; its store may have been moved
        write(f"the namespace belongs to the ledger {now.ledger} in {now.store}")
    return Exit.DELIVERED


async def _begin_new_ledger(session: Session, ledger: SubmissionLedger, confirm: Callable[[str], bool]) -> Exit:
    found, before = await ledger.known_identity(), None
    try:
        before = await registration(session.temporal)
        was = f"the ledger {before.ledger} ({before.store})" if before else "no ledger that it could name"
    except PayloadUnreadable as error:
        was = f"a ledger that cannot be read here ({error})"
    if before is not None and before.ledger == found:
        write(f"the namespace belongs to the ledger {found} in {ledger.store_url} already: nothing to do")
        return Exit.DELIVERED
    question = (
        f"The namespace {session.namespace!r} belongs to {was}. From now on it is to belong to "
        f"{f'the ledger {found}' if found else 'a new, empty ledger'} in {ledger.store_url}.\n"
        "Whatever was submitted with another ledger is unknown here: the SAME KEY, STARTED AGAIN, IS PAID AGAIN. "
        "Stop all workers first.\nIs that meant?"
    )
    if not confirm(question):
        raise CommandProblem(Exit.USAGE, "NotConfirmed", "nothing was changed; --yes confirms without being asked")
    _, now = await begin_anew(session.temporal, ledger)
    write(f"the namespace belongs to the ledger {now.ledger} in {now.store}")
    return Exit.DELIVERED


async def up(data_dir: Path | None) -> Exit:
    """Everything embedded, in the foreground."""
    settings = load_settings(data_dir)
    if is_configured():
        message = (
            "TEMPORAL_ADDRESS or a profile is set: `up` is for the embedded server; run `python worker.py` instead"
        )
        raise CommandProblem(Exit.USAGE, "InvalidRequest", message)
    require_gateway(settings)
    store = open_store(settings)
    async with open_session(settings, worker=True, store=store) as session:
        _say(f"Temporal {session.address}, UI {session.ui_url}")
        await _show_ledger(settings, store)
        _say(f"clients elsewhere: TEMPORAL_ADDRESS={session.address}. Ctrl-C drains and ends it.")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            _say("draining")
    return Exit.DELIVERED


def load_settings(data_dir: Path | None) -> Settings:
    """The environment, with the flag on top.

    Raises:
        CommandProblem: It cannot be used.
    """
    try:
        settings = Settings.load()
    except SettingsProblem as error:
        raise CommandProblem(Exit.USAGE, "InvalidSettings", str(error)) from None
    return settings.in_folder(data_dir) if data_dir else settings


async def _show_ledger(settings: Settings, store: Store, *, quiet: bool = False) -> None:
    """Say where everything lies, and remember it: a key is safe with one ledger, not with another.

    Raises:
        CommandProblem: The store cannot be read.
    """
    try:
        identity = await known_ledgers.remember(store)
    except LedgerError as error:
        raise CommandProblem(Exit.USAGE, "LedgerUnavailable", str(error)) from None
    if not quiet:
        folder = "" if is_configured() else f"data folder {settings.data_dir}, "
        _say(f"{folder}ledger {identity or '(none yet: the first worker makes it)'} in {store.url}")


async def _warn_of_other_ledgers(key: str, store: Store) -> None:
    """On standard error even with --json: it is about money."""
    for url in await known_ledgers.elsewhere(key, store):
        _say(
            f"warning: the key {key} is known to another ledger of yours, {url}: here it is PAID ANEW. If you want "
            "that video, cancel this one and use that data folder or store"
        )


def _fields(order: Order) -> dict[str, Any]:
    return {**(read_request_file(order.from_file) if order.from_file else {}), **order.flags}


def require_gateway(settings: Settings) -> None:
    """See that a worker could be started.

    Raises:
        CommandProblem: Its gateway is not configured.
    """
    try:
        settings.require_gateway()
    except SettingsProblem as error:
        raise CommandProblem(Exit.USAGE, "InvalidSettings", str(error)) from None


def _can_work(settings: Settings) -> bool:
    """Whether an embedded worker could run: looking at generations must work without the gateway's key."""
    return bool(settings.gateway_url and settings.gateway_api_key)


async def _check_gateway(settings: Settings, *, wait_for_key: bool) -> None:
    """Find out at once, not after an hour of patience, that nothing can be submitted from here.

    Raises:
        CommandProblem: The gateway is not configured, not there, or no gateway.
    """
    require_gateway(settings)
    base_url, keys = settings.require_gateway()
    try:
        async with GatewayClient(base_url=base_url, api_keys=keys) as gateway:
            await Preflight(gateway).check()
    except ValueError as error:
        raise CommandProblem(Exit.USAGE, "InvalidSettings", str(error)) from None
    except KeyRefused as error:
        if wait_for_key:
            return
        message = f"{error}; nothing was paid"
        raise CommandProblem(Exit.FAILED, "SubmissionRefused", message, error_details(error)) from None
    except GatewayUnreachable as error:
        message = f"{error}; nothing was paid"
        raise CommandProblem(Exit.UNREACHABLE, "GatewayUnreachable", message, error_details(error)) from None
    except GatewayError as error:
        message = f"{error}; nothing was paid"
        raise CommandProblem(Exit.UNREACHABLE, "NotAGateway", message, error_details(error)) from None


def error_details(error: GatewayError) -> FailureDetails:
    """What the gateway's boundary said before anything was paid."""
    return FailureDetails(
        paid=Paid.NO,
        http_status=error.status,
        gateway_code=error.code,
        gateway_message=error.gateway_message,
        request_id=error.request_id,
    )


def _known(key: str) -> dict[str, Any]:
    """What is told of a generation even where the rest fails; the run is added when it is found."""
    return {"key": key, "workflow_id": workflow_id(key), "run_id": ""}


def _checked_key(key: str) -> str:
    try:
        workflow_id(key)
    except InvalidKey as error:
        raise CommandProblem(Exit.USAGE, "InvalidRequest", f"--key {key[:80]!r}: {error}") from None
    return key


def open_store(settings: Settings) -> Store:
    """The configured store.

    Raises:
        CommandProblem: It cannot be used.
    """
    try:
        return Store.open(settings.store_location)
    except StoreProblem as error:
        raise CommandProblem(Exit.USAGE, "InvalidSettings", str(error)) from None


def _check_output(output: Path | None) -> None:
    """Find out before anything is paid that the copy could not be written."""
    if output is None:
        return
    folder = output if output.is_dir() else output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        message = f"--output {output}: the folder {folder} does not exist or cannot be written to"
        raise CommandProblem(Exit.USAGE, "InvalidRequest", message)


@asynccontextmanager
async def session_errors(known: dict[str, Any]) -> AsyncIterator[None]:
    """What can go wrong with a generation, as exit codes."""
    try:
        yield
    except InvalidRequest as error:
        problem = invalid(error.problems)
        problem.known = known
        raise problem from None
    except (DecisionRejected, GenerationNotFound, WrongLedger) as error:
        raise CommandProblem(Exit.USAGE, type(error).__name__, str(error), known=known) from None
    except LedgerError as error:
        raise CommandProblem(Exit.UNREACHABLE, "LedgerUnavailable", str(error), known=known) from None
    except KeyInUse as error:
        raise CommandProblem(Exit.USAGE, "InvalidRequest", str(error), known=known) from None
    except GenerationFailure as error:
        unreachable = error.kind == "NotSubmitted"
        code = Exit.UNREACHABLE if unreachable else Exit.FAILED
        raise CommandProblem(code, error.kind, error.message, error.details, known) from None
    except NoWorker as error:
        raise CommandProblem(Exit.UNREACHABLE, "NoWorker", str(error), known=known) from None
    except (TemporalProblem, RPCError) as error:
        if isinstance(error, RPCError) and error.status is RPCStatusCode.INVALID_ARGUMENT:
            setup = "; run `starter.py setup` once for this namespace" if "search attribute" in str(error) else ""
            message = f"Temporal does not take this: {error}{setup}"
            raise CommandProblem(Exit.USAGE, "InvalidRequest", message, known=known) from None
        raise CommandProblem(Exit.UNREACHABLE, "TemporalUnreachable", str(error), known=known) from None
    except asyncio.CancelledError:
        key = known.get("key")
        message = f"stopped waiting; to go on where it was: {typed('watch', key)}" if key else "stopped"
        raise CommandProblem(Exit.INTERRUPTED, "Interrupted", message, known=known) from None


async def _conclude(  # noqa: PLR0913 - one flag each
    outcome: GenerateVideoResult,
    store: Store,
    known: dict[str, Any],
    *,
    output: Path | None,
    strict: bool,
    as_json: bool,
) -> Exit:
    copied = await copy_video(store, outcome.video, output, str(known["key"])) if output else None
    if as_json:
        document = {**outcome.model_dump(mode="json"), **known}
        print_json({**document, "output": str(copied)} if copied else document)
    else:
        _print_result(outcome, copied)
    return Exit.FALLBACK if strict and outcome.outcome == "fallback" else Exit.DELIVERED


def _print_result(outcome: GenerateVideoResult, copied: Path | None) -> None:
    video = outcome.video
    sound = "with sound" if video.has_audio else "silent"
    _say(
        f"{outcome.outcome}: {video.duration_seconds:.1f} s, {video.width}x{video.height}, {sound}, "
        f"{video.bytes:,} bytes, {outcome.polls} look{'s' if outcome.polls != 1 else ''}, task {outcome.task_id}"
    )
    if outcome.outcome == "fallback":
        reason = outcome.extend_error_message or outcome.extend_error_code
        _say(f"only the first 8 s: {reason}")
    for warning in outcome.warnings:
        _say(f"warning: {warning}")
    write(f"{copied or video.uri}")


async def copy_video(store: Store, video: StoredVideo, output: Path, key: str) -> Path:
    """Copy a stored video; the old file stays until the new one is whole."""
    target = output / f"{key}.mp4" if output.is_dir() else output
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            async for chunk in store.stream(store.path_of(video.uri)):
                file.write(chunk)
        shutil.move(fresh, target)
    except (OSError, StoreProblem) as error:
        fresh.unlink(missing_ok=True)
        message = f"the video is in the store ({video.uri}), but cannot be copied to {target}: {error}"
        raise CommandProblem(Exit.FAILED, "OutputFailed", message) from None
    return target


def _snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    status = snapshot.status.model_dump(mode="json") if snapshot.status else None
    return {
        "state": snapshot.execution.state.lower(),
        "status": status,
        "steps": [{"name": step.name, "attempt": step.attempt, "problem": step.problem} for step in snapshot.steps],
    }


def _print_status(document: dict[str, Any], message: str, known: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({**known, "status": document})
    else:
        write(f"{known['key']}: {message}")


def _link(session: Session, key: str, run_id: str) -> str:
    link = session.link(key, run_id)
    return f", {link}" if link else ""


def _say(text: str) -> None:
    console.print(f"{datetime.now(UTC):%H:%M:%S} {line(text)}", highlight=False, markup=False, soft_wrap=True)
