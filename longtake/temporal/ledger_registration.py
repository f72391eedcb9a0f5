"""A Temporal namespace remembers which submission ledger it belongs to, in the memo of the workflow `longtake-ledger`.

A store without a ledger looks exactly like one in which nothing was sent yet. So a worker asks the namespace before it
begins a ledger or polls, and a client before its first start. `docs/adr/0015-the-namespace-knows-its-ledger.md` says
why it is kept there.
"""

from typing import Final

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from longtake.models import LedgerRegistration
from longtake.submission.ledger import SubmissionLedger, WrongLedger, WrongSide
from longtake.temporal.connection import TemporalProblem
from longtake.temporal.key_ring import PayloadUnreadable
from longtake.temporal.names import LEDGER_WORKFLOW_ID, LEDGER_WORKFLOW_TYPE, TASK_QUEUE, WORKFLOW_TYPE
from longtake.temporal.search_attributes import VIDEO_STAGE

_MEMO: Final = "registration"
_NEW_LEDGER: Final = (
    "where the old ledger is lost or given up on purpose, stop all workers and run `starter.py setup --new-ledger` "
    "(its keys may then be paid again)"
)


async def registration(client: Client) -> LedgerRegistration | None:
    """Which ledger the namespace belongs to; None where nobody has said so yet.

    Raises:
        PayloadUnreadable: It is encrypted with a key that is not here.
        TemporalProblem: The server does not say.
    """
    described = await _described(client)
    if described is None:
        return None
    return await described.memo_value(_MEMO, None, type_hint=LedgerRegistration)


async def claim(client: Client, ledger: SubmissionLedger) -> str:
    """For the start of a worker, and for `setup`: see that the namespace belongs to this ledger, or make it so.

    A ledger is begun, and registered, only where the namespace belongs to none and no worker has taken up a generation
    there. Two that do so at the same moment with two stores: Temporal keeps one registration, the other is refused.

    Returns:
        The ledger's identity, which `ledger` accepts alone from now on.

    Raises:
        WrongLedger: The namespace belongs to another ledger, or may; nothing was begun.
        LedgerUnavailable: The store cannot be read or written.
        PayloadUnreadable, TemporalProblem: See `registration`.
    """
    registered = await registration(client)
    if registered is None:
        if await _knows_generations(client):
            raise WrongLedger(
                f"the namespace {client.namespace!r} knows generations and no longer says which ledger they began "
                f"with, so the store {ledger.store_url} is not used: give it the right store and say so by `starter.py "
                "setup --new-ledger`, which keeps a ledger that the store has",
                side=WrongSide.UNKNOWN,
            )
        ours = LedgerRegistration(ledger=await ledger.establish(), store=ledger.store_url)
        # The ledger first: a crash between the two leaves a store that is registered at the next start.
        await _register(client, ours, WorkflowIDConflictPolicy.USE_EXISTING)
        registered = await registration(client)
        if registered is None:
            raise TemporalProblem(
                f"the workflow {LEDGER_WORKFLOW_ID} of the namespace {client.namespace!r} names no ledger, so longtake did "
                "not start it: terminate it"
            )
    await _compare(client, ledger, registered)
    if await _wants_renewal(client):
        await _register(client, registered, WorkflowIDConflictPolicy.TERMINATE_EXISTING)
    ledger.hold_to(registered.ledger)
    return registered.ledger


async def check(client: Client, ledger: SubmissionLedger) -> LedgerRegistration | None:
    """For a client, before its first start: see that the namespace does not belong to another ledger.

    Returns:
        The registration; None where there is none yet: the first worker makes it.

    Raises:
        WrongLedger: It belongs to another.
        LedgerUnavailable: The store cannot be read.
        PayloadUnreadable, TemporalProblem: See `registration`.
    """
    registered = await registration(client)
    if registered is not None:
        await _compare(client, ledger, registered)
    return registered


async def begin_anew(client: Client, ledger: SubmissionLedger) -> tuple[LedgerRegistration | None, LedgerRegistration]:
    """Because an operator says so: from now on the namespace belongs to this ledger, begun where there is none.

    Keys that were paid for in another ledger are paid for again when they are started again.

    Returns:
        The registration before (None where there was none, or none that can be read here), and the one that holds now.

    Raises:
        LedgerUnavailable: The store cannot be read or written.
        TemporalProblem: The server refuses it.
    """
    try:
        before = await registration(client)
    except PayloadUnreadable:  # its key is lost for good: this is the way out
        before = None
    now = LedgerRegistration(ledger=await ledger.establish(), store=ledger.store_url)
    if before != now:  # also where the same ledger was moved to another place
        await _register(client, now, WorkflowIDConflictPolicy.TERMINATE_EXISTING)
    return before, now


async def _compare(client: Client, ledger: SubmissionLedger, registered: LedgerRegistration) -> None:
    found = await ledger.known_identity()
    if found == registered.ledger:
        return
    what = f"holds another ledger ({found})" if found else "holds no ledger"
    raise WrongLedger(
        f"the store {ledger.store_url} {what}, and the namespace {client.namespace!r} belongs to the ledger "
        f"{registered.ledger}, registered at {registered.store}: set LONGTAKE_STORE_URL to that store, mount or "
        f"restore it; {_NEW_LEDGER}",
        side=WrongSide.WORKER,
    )


async def _described(client: Client) -> WorkflowExecutionDescription | None:
    try:
        return await client.get_workflow_handle(LEDGER_WORKFLOW_ID).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise _silent(client, error) from None


async def _wants_renewal(client: Client) -> bool:
    """Whether it has ended (retention would delete it), or is sealed with another key than new payloads are.

    A key that only decrypts is left out some day, and this workflow outlives every generation.
    """
    described = await _described(client)
    if described is None:
        return False
    sealed = described.raw_description.workflow_execution_info.memo.fields[_MEMO].metadata
    fresh = (await client.data_converter.encode([""]))[0].metadata
    key = "encryption-key-id"
    return described.status is not WorkflowExecutionStatus.RUNNING or sealed.get(key) != fresh.get(key)


async def _register(client: Client, registered: LedgerRegistration, conflict: WorkflowIDConflictPolicy) -> None:
    try:
        await client.start_workflow(
            LEDGER_WORKFLOW_TYPE,
            registered,
            id=LEDGER_WORKFLOW_ID,
            task_queue=TASK_QUEUE,
            memo={_MEMO: registered},
            id_conflict_policy=conflict,
            static_summary="which submission ledger this namespace belongs to; never terminate it",
        )
    except RPCError as error:
        raise _silent(client, error) from None


async def _knows_generations(client: Client) -> bool:
    """Whether a worker has ever taken up a generation here, as far as Temporal remembers.

    One without a stage waits for its first worker: nothing was sent for it. A namespace without the search attribute
    has had no worker.
    """
    query = f'WorkflowType = "{WORKFLOW_TYPE}" AND {VIDEO_STAGE.name} IS NOT NULL'
    try:
        return bool((await client.count_workflows(query)).count)
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT and VIDEO_STAGE.name in error.message:
            return False
        raise _silent(client, error) from None


def _silent(client: Client, error: RPCError) -> TemporalProblem:
    return TemporalProblem(
        f"the namespace {client.namespace!r} does not say which ledger it belongs to: {error.message}"
    )
