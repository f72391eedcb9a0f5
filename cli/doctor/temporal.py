"""The checks of `doctor` that ask Temporal. They read; they start, change and write nothing."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from temporalio.api.enums.v1 import TaskQueueType, WorkerVersioningMode
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeTaskQueueResponse
from temporalio.client import Client

from cli.commands.recover import DAYS, forgotten_tasks
from cli.doctor.findings import Finding, Level, TemporalSite, ok, problem, warning
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

Findings = AsyncIterator[Finding]

RUNBOOK = "docs/operations.md"
UPGRADING = "docs/upgrading.md"
OPEN = f'WorkflowType = "{WORKFLOW_TYPE}" AND ExecutionStatus = "Running"'
_RPC = timedelta(seconds=10)
_POLLS_EVERY = timedelta(seconds=90)
"""A poll waits for work for a minute; Temporal goes on listing who polled in the last five."""
_POLLED = {
    f"{TASK_QUEUE} (workflows)": (TASK_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
    f"{TASK_QUEUE} (activities)": (TASK_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
    SUBMISSION_TASK_QUEUE: (SUBMISSION_TASK_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
}
"""As in `worker.py`, which the command line does not import."""


def filter_for(attention: Attention) -> str:
    """The list filter of open generations that need this attention, for `starter.py list`."""
    return f'ExecutionStatus = "Running" AND VideoAttention = "{attention}"'


_WALK_SECONDS = 15
"""Less than a check may take, so that what was counted until then is said."""


async def connection(site: TemporalSite) -> Findings:
    """Where it goes and how it is protected; no secret is shown."""
    if not site.distributed:
        yield ok("the embedded server runs (no TEMPORAL_ADDRESS is set)")
        return
    where, profile = target(), configured_profile()
    config = profile.to_client_connect_config()
    tls = profile.tls
    protected = [
        "TLS" if config.get("tls") else "no TLS",
        *(["a client certificate"] if tls and tls.client_cert else []),
        *(["a CA of its own"] if tls and tls.server_root_ca_cert else []),
        *([f"server name {tls.server_name}"] if tls and tls.server_name else []),
        *(["an API key"] if profile.api_key else []),
        *([f"profile {name}"] if (name := os.environ.get("TEMPORAL_PROFILE")) else []),
    ]
    what = f"{where.address}, namespace {where.namespace}, {', '.join(protected)}"
    if config.get("tls") or _is_near(where.address):
        yield ok(what)
    else:
        yield warning(
            f"{what}: what passes can be read and changed on its way",
            "Nothing in a closed network; else use TLS (TEMPORAL_TLS…, or a profile).",
        )


async def search_attributes(site: TemporalSite) -> Findings:
    """Whether the namespace has them: without one of them generations hang."""
    if missing := await missing_search_attributes(site.client):
        to_do = f"Run `starter.py setup` once; where the cluster refuses it, {HOW_TO_CREATE_ATTRIBUTES}."
        yield problem(f"the namespace lacks {', '.join(missing)}", to_do)
    else:
        yield ok("the namespace has all of them")


async def workers(site: TemporalSite) -> Findings:
    """Whether every task queue is polled, and by whom."""
    if not site.distributed:
        yield ok("embedded: each command brings its own when it needs one")
        return
    waiting = (await site.client.count_workflows(OPEN)).count
    found = {queue: _judge_pollers(pollers, waiting) for queue, _, pollers in await _polled(site.client)}
    for finding in _together(found):
        yield finding


def _judge_pollers(pollers: Iterable["_Poller"], waiting: int) -> Finding:
    who = [f"{poller.identity} ({'build' if poller.build else 'version'} {poller.version})" for poller in pollers]
    if who:
        since = f"{_POLLS_EVERY.total_seconds():.0f} s"
        return ok(f"{len(who)} polled in the last {since} (one that has stopped since counts too): {', '.join(who)}")
    if waiting:
        to_do = f"Start workers: `python worker.py`. {RUNBOOK}#longtakenoworker"
        return problem(f"nobody polls, and {waiting} generations wait", to_do)
    return warning("nobody polls; no generation waits", "Start a worker: `python worker.py`.")


async def versions(site: TemporalSite) -> Findings:
    """Whether the workers that poll are the ones that Temporal gives work to."""
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
    """What it means that these builds poll; the empty one is a worker that is not versioned."""
    others = ", ".join(sorted(build or "unversioned workers" for build in builds - {current}))
    if builds == {current}:
        return ok(f"the current build {current} polls" if current else "not versioned: LONGTAKE_BUILD_ID is not set")
    if current in builds:
        to_do = f"Nothing while a release is rolled out; then drain the others. {UPGRADING}"
        return warning(f"the current build {current or '(none)'} polls, and so do {others}", to_do)
    if current:
        to_do = f"Start workers of {current}, or make another build current. {UPGRADING}"
        return problem(f"the current build {current} does not poll, only {others}: no work is given out", to_do)
    set_current = f"temporal worker deployment set-current-version --deployment-name {DEPLOYMENT} --build-id"
    return problem(
        f"no build is current: {others} get no work", f"`{set_current} {max(builds)}`, if that is it. {UPGRADING}"
    )


def _together(found: dict[str, Finding]) -> Iterable[Finding]:
    """One finding for all task queues of which the same is true."""
    for finding in dict.fromkeys(found.values()):
        queues = [queue for queue, its in found.items() if its == finding]
        named = "both task queues" if len(queues) == len(_POLLED) else ", ".join(queues)
        yield replace(finding, what=f"{named}: {finding.what}")


async def clock(site: TemporalSite) -> Findings:
    """Whether this machine's clock is behind Temporal's; it says nothing of the machines that workers run on.

    Temporal tells no time. But a moment that it has written down is past, so one in our future shows a difference. That
    this machine is ahead cannot be seen so: only workers, which are given the time with every task, compare both ways.
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
    """What the newest moment that Temporal has written says.

    Args:
        ahead: By how much it lies in this machine's future; negative: in its past; None: there is no such moment.
    """
    workers = f"each worker compares its own clock, warns in its log and shows {WORKER_CLOCK_SKEW.exposed}"
    if ahead is None:
        return ok(f"Temporal has written nothing yet that shows its clock; {workers}")
    found = judge_clock("Temporal", max(ahead, timedelta(0)))
    if found.level is not Level.OK:
        return found
    return ok(f"this machine is not behind Temporal (whether it is ahead cannot be seen from here); {workers}")


async def open_generations(site: TemporalSite) -> Findings:
    """Who needs somebody."""
    total = (await site.client.count_workflows(OPEN)).count
    needy = 0
    for attention in Attention:
        count = (await site.client.count_workflows(f'{OPEN} AND VideoAttention = "{attention}"')).count
        needy += count
        if count:
            yield warning(
                f"{count} of {total} under way: {attention}",
                f"`starter.py list '{filter_for(attention)}'`, then {RUNBOOK}#{attention}",
            )
    if not needy:
        yield ok(f"{total} under way, none needs anybody")


async def namespace_ledger(site: TemporalSite) -> Findings:
    """Whether the namespace belongs to the ledger of this store."""
    ledger = SubmissionLedger(Store.open(site.settings.store_location), longest_exchange=site.settings.submit_timeout)
    to_do = f"Mend LONGTAKE_STORE_URL, mount or restore the store. {RUNBOOK}#a-new-ledger"
    try:
        registered = await check(site.client, ledger)
    except LedgerError as error:
        yield problem(str(error), to_do)
    except PayloadUnreadable as error:
        yield problem(str(error), "Give every worker and client the same LONGTAKE_ENCRYPTION_KEYS.")
    else:
        if registered is None:
            yield warning("none is registered yet", "`starter.py setup`, or start the first worker.")
        else:
            yield ok(f"{registered.ledger} in {registered.store}, as this store")


async def ledger_and_keys(site: TemporalSite) -> Findings:
    """Whether this is the ledger that generations began with, and what they have written can be read here."""
    store = Store.open(site.settings.store_location)
    # Without a stage no worker has taken it up, and workers make the ledger.
    known = (await site.client.count_workflows(f'WorkflowType = "{WORKFLOW_TYPE}" AND VideoStage IS NOT NULL')).count
    if known and await store.head(LEDGER_IDENTITY) is None:
        yield problem(
            f"Temporal knows {known} generations, and the store {site.settings.store_location} has no ledger",
            "Mend LONGTAKE_STORE_URL, mount or restore the store; start no worker before: it would begin a new ledger.",
        )
        return
    newest = [execution async for execution in site.client.list_workflows(OPEN, limit=1)]
    if not newest:
        yield ok("none is under way")
        return
    try:
        ledger = await _ledger_of(site.client, newest[0].id, newest[0].run_id)
    except PayloadUnreadable as error:
        yield problem(str(error), "Give every worker and client the same LONGTAKE_ENCRYPTION_KEYS.")
        return
    yield ok(f"{newest[0].id} can be read with the keys that are set here")
    if ledger is None:
        return
    try:
        await SubmissionLedger(store, longest_exchange=site.settings.submit_timeout).check_identity(ledger)
    except LedgerError as error:
        yield problem(
            f"{newest[0].id} began with the ledger {ledger}: {error}",
            "Mend LONGTAKE_STORE_URL, mount or restore the store. Start nothing under another key before that.",
        )
    else:
        yield ok(f"{newest[0].id} began with the ledger of this store")


async def forgotten(site: TemporalSite) -> Findings:
    """How many tasks were paid for, are not delivered, and are unknown to a Temporal that was lost or restored."""
    store = Store.open(site.settings.store_location)
    count, cut_short = 0, False
    try:
        async with asyncio.timeout(_WALK_SECONDS):
            async for _ in forgotten_tasks(store, VideoClient(site.client), days=DAYS):
                count += 1
    except TimeoutError:
        cut_short = True
    except LedgerError as error:
        yield problem(str(error), "Mend the store first.")
        return
    if count:
        yield warning(
            f"{'at least ' if cut_short else ''}{count} paid tasks of the last {DAYS} days are not delivered, and "
            "Temporal does not know their generations",
            f"`starter.py recover` lists them, `--yes` fetches them unpaid: {RUNBOOK}#temporal-has-lost-generations",
        )
    elif cut_short:
        yield warning(f"not counted within {_WALK_SECONDS} s", "`starter.py recover` takes the time that it needs.")
    else:
        yield ok(f"no paid task of the last {DAYS} days is undelivered and unknown to Temporal")


# --- What Temporal says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class _Poller:
    identity: str
    version: str
    build: str
    """The same for a worker of Worker Deployment Versioning; empty for any other."""
    last_access: datetime


async def _describe(client: Client, queue: str, kind: TaskQueueType.ValueType) -> DescribeTaskQueueResponse:
    return await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind),
        timeout=_RPC,
    )


async def _polled(client: Client) -> list[tuple[str, str, list["_Poller"]]]:
    """Each task queue in words, the build that is current there (empty: the unversioned), and who still polls."""
    now = datetime.now(UTC)
    said = {named: await _describe(client, queue, kind) for named, (queue, kind) in _POLLED.items()}
    return [
        (
            named,
            answer.versioning_info.current_deployment_version.build_id,
            sorted(poller for poller in _pollers(answer) if now - poller.last_access < _POLLS_EVERY),
        )
        for named, answer in said.items()
    ]


def _pollers(said: DescribeTaskQueueResponse) -> list[_Poller]:
    versioned = WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED
    return [
        _Poller(
            identity=poller.identity,
            version=options.build_id,
            build=options.build_id if options.worker_versioning_mode == versioned else "",
            last_access=poller.last_access_time.ToDatetime(UTC),
        )
        for poller in said.pollers
        for options in (poller.deployment_options,)
    ]


async def _ledger_of(client: Client, workflow_id: str, run_id: str) -> str | None:
    """Which ledger a generation began with; None where it has not come that far.

    Raises:
        PayloadUnreadable: What it has written is encrypted with a key that is not here.
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
    """A text, wherever it stands: a submission's order has it at the top, a run that continued as new deeper."""
    for key, value in document.items() if isinstance(document, dict) else ():
        found = value if key == name else _text(value, name)
        if isinstance(found, str) and found:
            return found
    return None


def _is_near(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
