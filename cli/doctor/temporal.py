"""The checks of `doctor` that query Temporal. They only read."""

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType, WorkerVersioningMode
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeTaskQueueResponse
from temporalio.client import Client

from cli.addresses import host_and_port, is_loopback
from cli.commands.recover import DAYS, lost_tasks
from cli.doctor.findings import Finding, Findings, Level, TemporalSite, ok, problem, warning
from cli.doctor.parts import judge_clock
from longtake.client import VideoClient
from longtake.models import Attention
from longtake.observability.metrics import PAYING_ACTIVITIES, WORKER_CLOCK_SKEW
from longtake.storage import Store
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import SubmissionLedger
from longtake.submission.records import IDENTITY as LEDGER_IDENTITY
from longtake.temporal.connection import configured_profile, target
from longtake.temporal.key_ring import PayloadUnreadable
from longtake.temporal.ledger_registration import check
from longtake.temporal.names import DEPLOYMENT, SUBMISSION_TASK_QUEUE, TASK_QUEUE, WORKFLOW_TYPE
from longtake.temporal.search_attributes import HOW_TO_CREATE_ATTRIBUTES, missing_search_attributes

RUNBOOK = "docs/operations.md"
UPGRADING = "docs/upgrading.md"
RUNNING = f'WorkflowType = "{WORKFLOW_TYPE}" AND ExecutionStatus = "Running"'
_RPC = timedelta(seconds=10)
_POLL_INTERVAL = timedelta(seconds=90)
"""A worker polls at least once a minute; Temporal lists the pollers of the last five minutes."""
_POLLED = {
    f"{TASK_QUEUE} (workflows)": (TASK_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
    f"{TASK_QUEUE} (activities)": (TASK_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
    SUBMISSION_TASK_QUEUE: (SUBMISSION_TASK_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
}


def filter_for(attention: Attention) -> str:
    """The list filter for running generations with this attention, for `starter.py list`."""
    return f'ExecutionStatus = "Running" AND VideoAttention = "{attention}"'


_WALK_SECONDS = 15
"""Less than a check may take, so that the count so far is reported."""


async def connection(site: TemporalSite) -> Findings:
    """Where the connection goes and how it is protected; shows no secret."""
    if not site.distributed:
        yield ok("the embedded server runs (TEMPORAL_ADDRESS is not set)")
        return
    where, profile = target(), configured_profile()
    config = profile.to_client_connect_config()
    tls = profile.tls
    protected = [
        "TLS" if config.get("tls") else "no TLS",
        *(["a client certificate"] if tls and tls.client_cert else []),
        *(["its own CA"] if tls and tls.server_root_ca_cert else []),
        *([f"server name {tls.server_name}"] if tls and tls.server_name else []),
        *(["an API key"] if profile.api_key else []),
        *([f"profile {name}"] if (name := os.environ.get("TEMPORAL_PROFILE")) else []),
    ]
    connection = f"{where.address}, namespace {where.namespace}, {', '.join(protected)}"
    if config.get("tls") or is_loopback(host_and_port(where.address)[0]):
        yield ok(connection)
    else:
        yield warning(
            f"{connection}: the network can read and change payloads",
            "Use TLS (TEMPORAL_TLS…, or a profile). Ignore this in a closed network.",
        )


async def search_attributes(site: TemporalSite) -> Findings:
    """Whether the namespace has all of them: without one, generations hang."""
    if missing := await missing_search_attributes(site.client):
        advice = f"Run `starter.py setup` once; if the cluster refuses it, {HOW_TO_CREATE_ATTRIBUTES}."
        yield problem(f"the namespace lacks {', '.join(missing)}", advice)
    else:
        yield ok("the namespace has all of them")


async def workers(site: TemporalSite) -> Findings:
    """Whether workers poll every task queue."""
    if not site.distributed:
        yield ok("embedded: each command starts its own worker when it needs one")
        return
    waiting = (await site.client.count_workflows(RUNNING)).count
    found = {queue: _judge_pollers(pollers, waiting) for queue, _, pollers in await _polled(site.client)}
    for finding in _together(found):
        yield finding


def _judge_pollers(pollers: Iterable["_Poller"], waiting: int) -> Finding:
    workers = [f"{poller.identity} ({'build' if poller.build else 'version'} {poller.version})" for poller in pollers]
    if workers:
        since = f"{_POLL_INTERVAL.total_seconds():.0f} s"
        return ok(f"{len(workers)} polled in the last {since} (some may have stopped since): {', '.join(workers)}")
    if waiting:
        advice = f"Start workers: `python worker.py`. {RUNBOOK}#longtakenoworker"
        return problem(f"no worker polls, and {waiting} generations wait", advice)
    return warning("no worker polls; no generation waits", "Start a worker: `python worker.py`.")


async def versions(site: TemporalSite) -> Findings:
    """Whether the workers that poll are of the build that Temporal gives work to."""
    if not site.distributed:
        return
    polled = await _polled(site.client)
    found = {
        queue: _judge_builds(current, {poller.build for poller in pollers})
        for queue, current, pollers in polled
        if pollers
    }
    for finding in _together(found):
        yield finding


def _judge_builds(current: str, builds: set[str]) -> Finding:
    """Judge the builds that poll; an empty build is an unversioned worker."""
    others = ", ".join(sorted(build or "unversioned workers" for build in builds - {current}))
    if builds == {current}:
        return ok(f"the current build {current} polls" if current else "unversioned: LONGTAKE_BUILD_ID is not set")
    if current in builds:
        advice = f"Wait while you roll out a release; then drain the others. {UPGRADING}"
        return warning(f"the current build {current or '(none)'} polls, and so do {others}", advice)
    if current:
        advice = f"Start workers of {current}, or set another build current. {UPGRADING}"
        return problem(f"only {others} poll, not the current build {current}: no worker gets work", advice)
    set_current = f"temporal worker deployment set-current-version --deployment-name {DEPLOYMENT} --build-id"
    return problem(f"no build is current: {others} get no work", f"Set it: `{set_current} {max(builds)}`. {UPGRADING}")


def _together(found: dict[str, Finding]) -> Iterable[Finding]:
    """One finding for all task queues with the same result."""
    for finding in dict.fromkeys(found.values()):
        queues = [queue for queue, its in found.items() if its == finding]
        named = "both task queues" if len(queues) == len(_POLLED) else ", ".join(queues)
        yield replace(finding, message=f"{named}: {finding.message}")


async def clock(site: TemporalSite) -> Findings:
    """Whether this machine's clock is behind Temporal's. Says nothing about the machines of the workers.

    Temporal's API does not return the time. But a timestamp that it has recorded is in the past, so one in our future
    shows a difference. That this machine is ahead cannot be detected: only workers get the time with every task.
    """
    moments = [
        poller.last_access
        for queue, kind in _POLLED.values()
        for poller in _pollers(await _describe(site.client, queue, kind))
    ]
    newest = site.client.list_workflows(f'WorkflowType = "{WORKFLOW_TYPE}"', limit=1)
    moments += [execution.start_time async for execution in newest]
    yield judge_newest(max(moments) - datetime.now(UTC) if moments else None)


def judge_newest(ahead: timedelta | None) -> Finding:
    """Judge the newest timestamp that Temporal has recorded.

    Args:
        ahead: How far it is in this machine's future; negative: in its past; None: there is no timestamp.
    """
    workers = f"each worker checks its own clock, warns in its log and exports {WORKER_CLOCK_SKEW.exposed}"
    if ahead is None:
        return ok(f"Temporal has recorded no timestamp yet; {workers}")
    found = judge_clock("Temporal", max(ahead, timedelta(0)))
    if found.level is not Level.OK:
        return found
    return ok(f"this machine is not behind Temporal (whether it is ahead cannot be detected); {workers}")


async def running_generations(site: TemporalSite) -> Findings:
    """Which running generations need attention."""
    total = (await site.client.count_workflows(RUNNING)).count
    needing = 0
    for attention in Attention:
        count = (await site.client.count_workflows(f'{RUNNING} AND VideoAttention = "{attention}"')).count
        needing += count
        if count:
            yield warning(
                f"{count} of {total} running: {attention}",
                f"`starter.py list '{filter_for(attention)}'`, then {RUNBOOK}#{attention}",
            )
    if not needing:
        yield ok(f"{total} running, none needs attention")


async def namespace_ledger(site: TemporalSite) -> Findings:
    """Whether the namespace belongs to the ledger of this store."""
    ledger = SubmissionLedger(Store.open(site.settings.store_location), longest_exchange=site.settings.submit_timeout)
    advice = f"Fix LONGTAKE_STORE_URL, mount or restore the store. {RUNBOOK}#a-new-ledger"
    try:
        registered = await check(site.client, ledger)
    except LedgerError as error:
        yield problem(str(error), advice)
    except PayloadUnreadable as error:
        yield problem(str(error), "Give every worker and client the same LONGTAKE_ENCRYPTION_KEYS.")
    else:
        if registered is None:
            yield warning("none is registered yet", "Run `starter.py setup`, or start the first worker.")
        else:
            yield ok(f"{registered.ledger} in {registered.store}, as this store")


async def ledger_and_keys(site: TemporalSite) -> Findings:
    """Whether generations began with this ledger, and their payloads can be decrypted here."""
    store = Store.open(site.settings.store_location)
    # A generation without a stage was never picked up by a worker, and workers create the ledger.
    known = (await site.client.count_workflows(f'WorkflowType = "{WORKFLOW_TYPE}" AND VideoStage IS NOT NULL')).count
    if known and await store.head(LEDGER_IDENTITY) is None:
        yield problem(
            f"Temporal knows {known} generations, and the store {site.settings.store_location} has no ledger",
            "Fix LONGTAKE_STORE_URL, mount or restore the store. Start no worker before: it would create a new ledger.",
        )
        return
    newest = [execution async for execution in site.client.list_workflows(RUNNING, limit=1)]
    if not newest:
        yield ok("no generation is running")
        return
    try:
        ledger = await _ledger_of(site.client, newest[0].id, newest[0].run_id)
    except PayloadUnreadable as error:
        yield problem(str(error), "Give every worker and client the same LONGTAKE_ENCRYPTION_KEYS.")
        return
    yield ok(f"the keys set here decrypt {newest[0].id}")
    if ledger is None:
        return
    try:
        await SubmissionLedger(store, longest_exchange=site.settings.submit_timeout).check_identity(ledger)
    except LedgerError as error:
        yield problem(
            f"{newest[0].id} began with the ledger {ledger}: {error}",
            "Fix LONGTAKE_STORE_URL, mount or restore the store. Do not start it under another key before that.",
        )
    else:
        yield ok(f"{newest[0].id} began with the ledger of this store")


async def lost_videos(site: TemporalSite) -> Findings:
    """How many paid tasks are not delivered and unknown to Temporal, because it was lost or restored."""
    store = Store.open(site.settings.store_location)
    count, cut_short = 0, False
    try:
        async with asyncio.timeout(_WALK_SECONDS):
            async for _ in lost_tasks(store, VideoClient(site.client), days=DAYS):
                count += 1
    except TimeoutError:
        cut_short = True
    except LedgerError as error:
        yield problem(str(error), "Fix the store first.")
        return
    if count:
        yield warning(
            f"{'at least ' if cut_short else ''}{count} paid tasks of the last {DAYS} days are not delivered, and "
            "Temporal does not know their generations",
            f"List them with `starter.py recover`; `--yes` downloads them. {RUNBOOK}#temporal-has-lost-generations",
        )
    elif cut_short:
        yield warning(f"not counted within {_WALK_SECONDS} s", "Run `starter.py recover`, which has no time limit.")
    else:
        yield ok(f"Temporal knows every undelivered paid task of the last {DAYS} days")


# --- What Temporal returns --------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class _Poller:
    identity: str
    version: str
    build: str
    """Its build id if the worker is versioned, else empty."""
    last_access: datetime


async def _describe(client: Client, queue: str, kind: TaskQueueType.ValueType) -> DescribeTaskQueueResponse:
    return await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind),
        timeout=_RPC,
    )


async def _polled(client: Client) -> list[tuple[str, str, list["_Poller"]]]:
    """Each task queue by its description, its current build (empty: unversioned workers), and who polls it now."""
    now = datetime.now(UTC)
    queues = {named: await _describe(client, queue, kind) for named, (queue, kind) in _POLLED.items()}
    return [
        (
            named,
            answer.versioning_info.current_deployment_version.build_id,
            sorted(poller for poller in _pollers(answer) if now - poller.last_access < _POLL_INTERVAL),
        )
        for named, answer in queues.items()
    ]


def _pollers(queue: DescribeTaskQueueResponse) -> list[_Poller]:
    versioned = WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED
    return [
        _Poller(
            identity=poller.identity,
            version=options.build_id,
            build=options.build_id if options.worker_versioning_mode == versioned else "",
            last_access=poller.last_access_time.ToDatetime(UTC),
        )
        for poller in queue.pollers
        for options in (poller.deployment_options,)
    ]


async def _ledger_of(client: Client, workflow_id: str, run_id: str) -> str | None:
    """The ledger that a generation began with; None if it has not submitted anything.

    Raises:
        PayloadUnreadable: Its payloads are encrypted with a key that is not set here.
    """
    codec = client.data_converter.payload_codec
    handle = client.get_workflow_handle(workflow_id, run_id=run_id)
    async for event in handle.fetch_history_events(page_size=50):
        scheduled = event.activity_task_scheduled_event_attributes
        pays = scheduled.activity_type.name in PAYING_ACTIVITIES
        given = scheduled.input if pays else event.workflow_execution_started_event_attributes.input
        for payload in await codec.decode(given.payloads) if codec else given.payloads:
            if ledger := _text(json.loads(payload.data or b"null"), "ledger_id"):
                return ledger
    return None


def _text(document: object, name: str) -> str | None:
    """A string at any depth: a submission's input has it at the top, a run that continued as new deeper."""
    for key, value in document.items() if isinstance(document, dict) else ():
        found = value if key == name else _text(value, name)
        if isinstance(found, str) and found:
            return found
    return None
