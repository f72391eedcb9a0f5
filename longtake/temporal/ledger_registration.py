"""Registers a namespace's submission ledger in the memo of the workflow `longtake-ledger`.

A lost ledger looks exactly like a new one. So a worker asks the namespace before it creates a ledger or polls, and a
client before its first start. `docs/adr/0015-the-namespace-knows-its-ledger.md` says why it is kept there.
"""

from typing import Final

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from longtake.models import LedgerRegistration
from longtake.submission.errors import WrongLedger, WrongSide
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import TemporalProblem
from longtake.temporal.key_ring import PayloadUnreadable
from longtake.temporal.names import LEDGER_WORKFLOW_ID, LEDGER_WORKFLOW_TYPE, TASK_QUEUE, WORKFLOW_TYPE
from longtake.temporal.search_attributes import VIDEO_STAGE

_MEMO: Final = "registration"
_NEW_LEDGER: Final = (
    "if you gave the old ledger up, stop all workers and run `starter.py setup --new-ledger` "
    "(its keys may then be paid again)"
)


async def registration(client: Client) -> LedgerRegistration | None:
    """The ledger that is registered in the namespace; None if there is none yet.

    Raises:
        PayloadUnreadable: It is encrypted with a key that is missing here.
        TemporalProblem: The server does not answer the request.
    """
    described = await _described(client)
    if described is None:
        return None
    return await described.memo_value(_MEMO, None, type_hint=LedgerRegistration)


async def claim(client: Client, ledger: SubmissionLedger) -> str:
    """Check that the namespace belongs to this ledger, or register it. Workers and `setup` call it at their start.

    It creates and registers a ledger only if the namespace has none and no worker has started a generation there. If
    two workers do so at once with two stores, Temporal keeps one registration and refuses the other worker.

    Returns:
        The ledger's identity; from now on `ledger` accepts no other.

    Raises:
        WrongLedger: The namespace belongs, or may belong, to another ledger; nothing was created.
        LedgerUnavailable: The store cannot be read or written.
        PayloadUnreadable, TemporalProblem: See `registration`.
    """
    registered = await registration(client)
    if registered is None:
        if await _knows_generations(client):
            raise WrongLedger(
                f"the namespace {client.namespace!r} has generations and no registered ledger, so longtake does not "
                f"use the store {ledger.store_url}: configure the store of these generations, then run `starter.py "
                "setup --new-ledger`, which keeps that store's ledger",
                side=WrongSide.UNKNOWN,
            )
        ours = LedgerRegistration(ledger=await ledger.establish(), store=ledger.store_url)
        # The ledger first: after a crash in between the next start registers it.
        await _register(client, ours, WorkflowIDConflictPolicy.USE_EXISTING)
        registered = await registration(client)
        if registered is None:
            raise TemporalProblem(
                f"the workflow {LEDGER_WORKFLOW_ID} of the namespace {client.namespace!r} has no memo, so longtake did "
                "not start it: terminate it"
            )
    await _compare(client, ledger, registered)
    if await _wants_renewal(client):
        await _register(client, registered, WorkflowIDConflictPolicy.TERMINATE_EXISTING)
    ledger.hold_to(registered.ledger)
    return registered.ledger


async def check(client: Client, ledger: SubmissionLedger) -> LedgerRegistration | None:
    """Check that the namespace does not belong to another ledger. Clients call it before their first start.

    Returns:
        The registration; None if no worker has registered a ledger yet.

    Raises:
        WrongLedger: The namespace belongs to another ledger.
        LedgerUnavailable: The store cannot be read.
        PayloadUnreadable, TemporalProblem: See `registration`.
    """
    registered = await registration(client)
    if registered is not None:
        await _compare(client, ledger, registered)
    return registered


async def begin_anew(client: Client, ledger: SubmissionLedger) -> tuple[LedgerRegistration | None, LedgerRegistration]:
    """Register this ledger in place of the old one, because an operator says so; create it if necessary.

    Keys that were paid in the old ledger are paid again if they are started again.

    Returns:
        The old registration (None if there was none, or it cannot be decrypted here), and the new one.

    Raises:
        LedgerUnavailable: The store cannot be read or written.
        TemporalProblem: The server refuses it.
    """
    try:
        before = await registration(client)
    except PayloadUnreadable:  # its key is lost: this is the way out
        before = None
    now = LedgerRegistration(ledger=await ledger.establish(), store=ledger.store_url)
    if before != now:  # also if the same ledger moved to another URL
        await _register(client, now, WorkflowIDConflictPolicy.TERMINATE_EXISTING)
    return before, now


async def _compare(client: Client, ledger: SubmissionLedger, registered: LedgerRegistration) -> None:
    found = await ledger.known_identity()
    if found == registered.ledger:
        return
    what = f"holds another ledger ({found})" if found else "holds no ledger"
    raise WrongLedger(
        f"the store {ledger.store_url} {what}, and the namespace {client.namespace!r} belongs to the ledger "
        f"{registered.ledger}, registered at {registered.store}: set LONGTAKE_STORE_URL to that store, or mount "
        f"or restore it; {_NEW_LEDGER}",
        side=WrongSide.WORKER,
    )


async def _described(client: Client) -> WorkflowExecutionDescription | None:
    try:
        return await client.get_workflow_handle(LEDGER_WORKFLOW_ID).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise _unanswered(client, error) from None


async def _wants_renewal(client: Client) -> bool:
    """Whether the workflow has ended (retention will delete it), or its memo is encrypted with an old key.

    Operators remove old keys some day, and this workflow outlives every generation.
    """
    described = await _described(client)
    if described is None:
        return False
    stored = described.raw_description.workflow_execution_info.memo.fields[_MEMO].metadata
    fresh = (await client.data_converter.encode([""]))[0].metadata
    key = "encryption-key-id"
    return described.status is not WorkflowExecutionStatus.RUNNING or stored.get(key) != fresh.get(key)


async def _register(client: Client, registered: LedgerRegistration, conflict: WorkflowIDConflictPolicy) -> None:
    try:
        await client.start_workflow(
            LEDGER_WORKFLOW_TYPE,
            registered,
            id=LEDGER_WORKFLOW_ID,
            task_queue=TASK_QUEUE,
            memo={_MEMO: registered},
            id_conflict_policy=conflict,
            static_summary="names the submission ledger of this namespace; never terminate it",
        )
    except RPCError as error:
        raise _unanswered(client, error) from None


async def _knows_generations(client: Client) -> bool:
    """Whether Temporal has a generation that a worker started.

    A generation without a stage still waits for its first worker. A namespace without the search attribute never had a
    worker.
    """
    query = f'WorkflowType = "{WORKFLOW_TYPE}" AND {VIDEO_STAGE.name} IS NOT NULL'
    try:
        return bool((await client.count_workflows(query)).count)
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT and VIDEO_STAGE.name in error.message:
            return False
        raise _unanswered(client, error) from None


def _unanswered(client: Client, error: RPCError) -> TemporalProblem:
    return TemporalProblem(f"the namespace {client.namespace!r} does not return its ledger: {error.message}")
