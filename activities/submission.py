"""Before and around the paid POST."""

import asyncio

from pydantic import ValidationError
from temporalio import activity

from activities.failures import Step, application_error
from activities.heartbeats import Heartbeat, heartbeating
from longtake.catalog import check_request, request_digest
from longtake.gateway.client import GatewayClient, SubmissionForm
from longtake.gateway.preflight import Preflight
from longtake.images import prepare_parts
from longtake.ledger import Accepted, Answer, Arm, Evidence, SubmissionLedger
from longtake.models import (
    GenerateVideoInput,
    GenerationPolicy,
    PrepareOrder,
    RecordOrder,
    SubmissionReceipt,
    SubmitOrder,
)
from longtake.storage import Store


class SubmissionActivities:
    """Everything that happens before a task id is known."""

    def __init__(
        self, *, gateway: GatewayClient, store: Store, ledger: SubmissionLedger, policy: GenerationPolicy
    ) -> None:
        self._gateway = gateway
        self._preflight = Preflight(gateway)
        self._store = store
        self._ledger = ledger
        self._policy = policy

    @activity.defn
    async def prepare_generation(self, order: PrepareOrder) -> GenerationPolicy:
        """Check, before anything is paid, what only a worker can: the images, the store and the gateway."""
        try:
            request = check_request(order.request)
            await prepare_parts(self._store, request.images)
            await self._store.probe()
            await self._preflight.check()
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise application_error(error, Step.PREPARE) from None
        return self._policy

    @activity.defn
    async def submit_generation(self, order: SubmitOrder) -> SubmissionReceipt:
        """Make the paid POST, at most once for this key, or return what it brought before.

        A cancellation or a draining worker does not tear an exchange: once bytes may have left, it is finished, so
        that the id is known.
        """
        async with heartbeating() as heartbeat:
            exchange = _Exchange(self._gateway, self._store, self._ledger, order, heartbeat)
            try:
                accepted = await exchange.run_to_its_end()
            except Exception as error:  # noqa: BLE001 - the table knows every kind
                raise application_error(error, Step.SUBMIT) from None
        activity.logger.info(
            "submitted task=%s attached=%s request_id=%s", accepted.task_id, accepted.attached, accepted.request_id
        )
        return SubmissionReceipt(
            task_id=accepted.task_id,
            submitted_at=accepted.sent_at,
            slot=accepted.slot,
            attached=accepted.attached,
            recorded=accepted.recorded,
            request_id=accepted.request_id,
            nonce=accepted.nonce,
        )

    @activity.defn
    async def record_submission(self, order: RecordOrder) -> None:
        """Write the outcome of a paid submission that the store did not take at once."""
        receipt = order.receipt
        accepted = Accepted(
            receipt.task_id, receipt.slot, receipt.submitted_at, request_id=receipt.request_id, nonce=receipt.nonce
        )
        try:
            await self._ledger.record_accepted(order.key, accepted)
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise application_error(error, Step.LOOK) from None


class _Exchange:
    """One activity attempt's way through the ledger."""

    def __init__(
        self, gateway: GatewayClient, store: Store, ledger: SubmissionLedger, order: SubmitOrder, heartbeat: Heartbeat
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._ledger = ledger
        self._order = order
        self._heartbeat = heartbeat
        self._sending = False

    async def run_to_its_end(self) -> Accepted:
        """Run; a cancellation stops it only as long as nothing can have left."""
        task = asyncio.create_task(self._run())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not self._sending:
                task.cancel()
            return await task

    async def _run(self) -> Accepted:
        request = check_request(self._order.request)
        form = await self._form(request)

        async def send(arm: Arm) -> Answer:
            async def before_send() -> None:
                self._sending = True
                await arm()

            answer = await self._gateway.submit(form, before_send=before_send)
            return Answer(answer.task_id, answer.request_id)

        info = activity.info()
        return await self._ledger.submit(
            self._order.key,
            digest=request_digest(request),
            send=send,
            owner=f"{info.workflow_id}/{(info.workflow_run_id or '')[:8]}/attempt {info.attempt}",
            model=request.model,
            evidence=_evidence(info),
            on_evidence=lambda evidence: self._heartbeat.tell(evidence.model_dump()),
        )

    async def _form(self, request: GenerateVideoInput) -> SubmissionForm:
        return SubmissionForm(
            model=request.model,
            prompt=request.prompt,
            prompt_extend=request.prompt_extend,
            size=request.size,
            images=await prepare_parts(self._store, request.images),
        )


def _evidence(info: activity.Info) -> Evidence | None:
    """What an earlier attempt of this activity left in its heartbeat, if it reads as evidence."""
    try:
        return Evidence.model_validate(info.heartbeat_details[0]) if info.heartbeat_details else None
    except ValidationError:
        return None
