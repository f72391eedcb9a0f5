"""Before and around the paid POSTs."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.exchange import BeforeSend, PaidExchange, Post, owner
from activities.failures import Step, application_error, code_or_none, details_of
from activities.heartbeats import Heartbeat, heartbeating
from activities.hiding import hiding_error, in_the_store, without_gateways_words
from longtake.delivery.download import Fetcher
from longtake.delivery.task_records import load_record, save_request
from longtake.gateway.account import AccountClient
from longtake.gateway.breaker import KeyBreaker
from longtake.gateway.client import GatewayClient, SubmissionAnswer, SubmissionForm
from longtake.gateway.errors import (
    GatewayError,
    GatewayUnreachable,
    KeyRefused,
    MediaRefused,
    QuotaExhausted,
    TaskNotFound,
)
from longtake.gateway.extension import ExtensionClient
from longtake.gateway.preflight import Preflight
from longtake.models import (
    AwaitKeyInput,
    ClosedSubmission,
    CloseInput,
    ExtensionInput,
    GenerateVideoInput,
    GenerationPolicy,
    KeyProblem,
    KeyTrial,
    OnKeyRefused,
    Paid,
    PrepareInput,
    Problem,
    ReconcileInput,
    Reconciliation,
    RecordInput,
    Resolution,
    ResolveInput,
    SubmissionReceipt,
    SubmitInput,
)
from longtake.observability.logs import note
from longtake.request.images import can_be_files, prepare_parts
from longtake.request.prompts import read_prompt, read_prompts
from longtake.request.rules import InvalidRequest, check_request, extension_digest, prompt_paths, request_digest
from longtake.storage import Store
from longtake.submission.ledger import Accepted, OutcomeUnknown, SubmissionLedger
from longtake.submission.reconciliation import Resubmit, reconcile

_NO_SUCH_TASK = "the gateway has no such task (one of another account, or mistyped?)"


class SubmissionActivities:
    """Everything that happens before a task id is known."""

    def __init__(  # noqa: PLR0913 - one client each
        self,
        *,
        gateway: GatewayClient,
        store: Store,
        ledger: SubmissionLedger,
        account_client: AccountClient,
        policy: GenerationPolicy,
        extension: ExtensionClient | None = None,
        fetcher: Fetcher | None = None,
        image_transfer: str = "auto",
        resubmit_not_charged: bool = False,
    ) -> None:
        self._gateway = gateway
        self._preflight = Preflight(gateway)
        self._breaker = KeyBreaker()
        self._image_transfer = image_transfer
        self._files_are_taken = image_transfer != "data_uri"
        self._store = store
        self._ledger = ledger
        self._account_client = account_client
        self._policy = policy
        self._extension = extension
        self._fetcher = fetcher
        self._resubmit_not_charged = resubmit_not_charged

    @activity.defn
    async def prepare_generation(self, input: PrepareInput) -> GenerationPolicy:
        """Check, before anything is paid, what only a worker can: the images, the store and the gateway."""
        async with heartbeating():
            return await self._prepare(input)

    async def _prepare(self, input: PrepareInput) -> GenerationPolicy:
        try:
            ledger_id = await self._ledger.identity()
            # What was paid for is collected whatever has become of its model, its images, the store and the API key.
            extensions_sent = 0
            if await self._ledger.is_untouched(input.key):
                request = check_request(input.request)
                await self._store.probe()
                await read_prompts(self._store, request)
                await prepare_parts(self._store, request.images, files=self._files_are_taken)
                await self._check_key(input)
                if self._fetcher:  # what is paid for must be possible to bring home
                    await self._fetcher.preflight()
                if request.task_id:
                    await self._check_task(request.task_id)
                # For `starter.py recover`: the ledger keeps a digest only, and Temporal may lose the rest.
                await save_request(self._store, input.key, request)
            else:
                extensions_sent = await self._extensions_sent(input)
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise await self._error(error, Step.PREPARE, input.key, input.request) from None
        return self._policy.model_copy(update={"ledger_id": ledger_id, "extensions_sent": extensions_sent})

    async def _check_key(self, input: PrepareInput) -> None:
        """Ask the gateway whether it takes the key; for a generation that waits, unless it has just been asked.

        Raises:
            GatewayError: See `Preflight.check`.
        """
        if input.request.on_key_refused is OnKeyRefused.WAIT and not input.trial:
            self._breaker.check(preflight=True)
        try:
            if await self._preflight.check():
                self._breaker.accepted(preflight=True)
        except KeyRefused as refusal:
            self._breaker.refused(refusal, preflight=True)
            raise

    @activity.defn
    async def await_api_key(self, input: AwaitKeyInput) -> KeyTrial:
        """End once a submission is worth a try, the gateway having refused the key; fail, to be retried, until then.

        Between two attempts nothing is held but Temporal's timer. Of all generations of this worker one tries the key.
        """
        refusal = _refusal(input)
        try:
            if not self._breaker.reserve_trial(refusal):
                return KeyTrial(trial=False)
            self._preflight.forget()
            try:
                good = await self._preflight.check()
            except KeyRefused as error:
                self._breaker.refused(error, preflight=True)
                raise
            if good:
                self._breaker.accepted(preflight=True)
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise await hiding_error(
                error, Step.AWAIT_KEY, store=self._store, key=input.key, hidden=input.hide_words
            ) from None
        return KeyTrial(trial=True)

    async def _extensions_sent(self, input: PrepareInput) -> int:
        """How many retries of the extension earlier runs of this key have submitted, or perhaps have."""
        for number in itertools.count(1):
            payment = SubmitInput(
                key=input.key, request=input.request, extension=ExtensionInput(remix_id="", number=number)
            )
            if await self._ledger.is_untouched(payment.ledger_key):
                break
        return number - 1

    async def _check_task(self, task_id: str) -> None:
        """See that a task to take over is there: looks would go on for hours, and a mistyped id would take the key.

        Raises:
            InvalidRequest: The gateway says that it is not.
        """
        try:
            await _see(self._gateway, task_id)
        except TaskNotFound as error:
            raise InvalidRequest((Problem(field="task_id", rule=_NO_SUCH_TASK),)) from error

    @activity.defn
    async def submit_generation(self, input: SubmitInput) -> SubmissionReceipt:
        """Make the paid POST, at most once for this key, or return what it brought before.

        A cancellation or a draining worker does not tear an exchange: once bytes may have left, it is finished, so
        that the id is known.
        """
        request = input.request
        if request.task_id:
            return await self._adopt(input, request.task_id)

        async def send(heartbeat: Heartbeat) -> Accepted:
            files = self._files_are_taken and can_be_files(request.images)
            digest = request_digest(request)
            try:
                return await self._exchange(
                    input, digest, self._first_post(input, files=files), self._gateway, heartbeat
                )
            except MediaRefused:
                # Nothing was made, and the ledger says so: the same as data URIs is a submission of its own.
                if not files or self._image_transfer != "auto":
                    raise
                if activity.is_cancelled():
                    raise asyncio.CancelledError from None
            activity.logger.warning("the gateway takes no images as files: they are sent as data URIs from now on")
            self._files_are_taken = False
            return await self._exchange(input, digest, self._first_post(input, files=False), self._gateway, heartbeat)

        return await self._pay(input, send)

    @activity.defn
    async def submit_extension(self, input: SubmitInput) -> SubmissionReceipt:
        """Pay for the extension again, at most once for this retry, or return what it brought before."""
        extension, client = input.extension, self._extension
        if extension is None or client is None:
            error = RuntimeError("no gateway that retries extensions is configured on this worker")
            raise application_error(error, Step.PREPARE) from None
        prompt = input.request.prompt_extend

        async def post(before_send: BeforeSend) -> SubmissionAnswer:
            await self._check_remix(input.key, extension.remix_id)
            text = await read_prompt(self._store, "prompt_extend", prompt)
            return await client.submit(extension.remix_id, text, before_send=before_send)

        async def send(heartbeat: Heartbeat) -> Accepted:
            return await self._exchange(input, extension_digest(extension.remix_id, prompt), post, client, heartbeat)

        return await self._pay(input, send)

    async def _check_remix(self, key: str, remix_id: str) -> None:
        """See that what is to be extended is this generation's own first segment: the retry shows it.

        Raises:
            InvalidRequest: It is not.
            GatewayUnreachable: Nobody can tell now.
        """
        accepted = await self._ledger.accepted(key)
        record = None
        if accepted is not None:
            with contextlib.suppress(ValueError):  # what is kept there is no record
                record = await load_record(self._store, key, accepted.task_id)
            if record is None or record.remix_id is None:
                try:
                    record = await self._gateway.query(accepted.task_id)
                except GatewayError as error:
                    raise GatewayUnreachable(f"nothing was sent, the task to extend is not shown: {error}") from None
        if record is None or record.remix_id != remix_id:
            raise InvalidRequest((Problem(field="remix_id", rule="is not of the task that this generation paid for"),))

    @activity.defn
    async def record_submission(self, input: RecordInput) -> None:
        """Write the outcome of a paid submission that the store did not take at once."""
        receipt = input.receipt
        accepted = Accepted(
            receipt.task_id,
            receipt.slot,
            receipt.submitted_at,
            request_id=receipt.request_id,
            nonce=receipt.nonce,
            gateway=receipt.gateway,
            account=receipt.account,
        )
        try:
            await self._ledger.check_identity(input.ledger_id)
            await self._ledger.record_accepted(input.key, accepted, only=True)
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise application_error(error, Step.SETTLE) from None

    @activity.defn
    async def close_submission(self, input: CloseInput) -> ClosedSubmission:
        """Tell what the ledger knows of a key, and let nothing be sent any more that was scheduled before this."""
        # The first attempt's time, by Temporal's clock: the submissions that this is about ended before it was
        # scheduled, and one that is scheduled later, by a reset or a new run, may send.
        fence = activity.info().scheduled_time
        try:
            await self._ledger.check_identity(input.ledger_id)
            accepted = await self._ledger.close_unsent(input.key, fence=fence, owner=owner(), digest=input.digest)
        except OutcomeUnknown as doubt:
            return ClosedSubmission(in_doubt=details_of(doubt, Step.SUBMIT))
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise application_error(error, Step.SETTLE) from None
        return ClosedSubmission(receipt=_receipt(accepted) if accepted else None)

    @activity.defn
    async def reconcile_submission(self, input: ReconcileInput) -> Reconciliation:
        """Hear the witnesses about a submission whose outcome is unknown; adopt its task where there is no doubt."""
        async with heartbeating():
            return await self._reconcile(input)

    async def _reconcile(self, input: ReconcileInput) -> Reconciliation:
        resubmit = Resubmit.NEVER
        if self._resubmit_not_charged:
            resubmit = Resubmit.NOW if input.confirms_not_charged else Resubmit.IF_CONFIRMED
        try:
            await self._ledger.check_identity(input.ledger_id)
            finding = await reconcile(
                self._ledger,
                None if input.extension else self._account_client,
                key=input.key,
                slot=input.slot,
                model=input.model,
                owner=owner(),
                digest=input.digest,
                resubmit=resubmit,
            )
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise application_error(error, Step.SETTLE) from None
        accepted = finding.accepted
        evidence = finding.evidence
        if input.hide_words and evidence:
            evidence = (await in_the_store("\n".join(evidence), store=self._store, key=input.key),)
        if finding.clear and finding.charged is Paid.NO:
            activity.logger.warning("closed as not charged", extra={"resubmissions": finding.resubmissions})
        return Reconciliation(
            receipt=_receipt(accepted) if accepted else None,
            clear=finding.clear,
            candidates=finding.candidates,
            evidence=evidence,
            slot=input.slot,
            retry_after=finding.retry_after,
            elsewhere=finding.elsewhere or None,
            charged=finding.charged,
            resubmittable=finding.resubmittable,
            resubmissions=finding.resubmissions,
        )

    @activity.defn
    async def resolve_submission(self, input: ResolveInput) -> Resolution:
        """Write down what a person decided about a submission whose outcome is unknown."""
        async with heartbeating():
            return await self._resolve(input)

    async def _resolve(self, input: ResolveInput) -> Resolution:
        try:
            await self._ledger.check_identity(input.ledger_id)
            if input.task_id is not None:
                # What is written down stays: a mistyped id would be watched for hours, and the true one be refused.
                task_id = await _see(self._extension if input.extension else self._gateway, input.task_id)
                input = input.model_copy(update={"task_id": task_id})
            accepted = await self._write_down(input)
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise application_error(error, Step.SETTLE) from None
        return Resolution(receipt=_receipt(accepted) if accepted else None)

    async def _write_down(self, input: ResolveInput) -> Accepted | None:
        """Settle the submission that the person was asked about; where it is settled already, that stands.

        Another one in doubt is left alone: nobody was asked about it, so the next attempt meets it and asks again.
        """
        ledger, key, task_id = self._ledger, input.key, input.task_id
        if input.slot is not None:
            accepted = await ledger.resolve(key, input.slot, task_id=task_id, reason="decided", owner=owner())
            if accepted is not None or task_id is None:
                return accepted
        if task_id is None or await ledger.open_slot(key) is not None:
            return None
        # The slot says that nothing was made, and the person knows of a task: it is taken over, in a slot of its own.
        return await ledger.adopt(key, digest=input.digest, task_id=task_id, owner=owner(), model=input.model)

    async def _exchange(
        self,
        input: SubmitInput,
        digest: str,
        post: Post,
        gateway: GatewayClient | ExtensionClient,
        heartbeat: Heartbeat,
    ) -> Accepted:
        exchange = PaidExchange(
            ledger=self._ledger,
            ledger_key=input.ledger_key,
            digest=digest,
            model=input.request.model,
            gateway=gateway.origin,
            account=gateway.account,
            post=post,
            heartbeat=heartbeat,
        )
        return await exchange.run()

    async def _pay(self, input: SubmitInput, send: Callable[[Heartbeat], Awaitable[Accepted]]) -> SubmissionReceipt:
        async with heartbeating() as heartbeat:
            try:
                await self._ledger.check_identity(input.ledger_id)
                accepted = await send(heartbeat)
            except Exception as error:  # noqa: BLE001 - the table knows every kind
                raise await self._error(error, Step.SUBMIT, input.key, input.request) from None
        note(task_id=accepted.task_id, request_id=accepted.request_id)
        activity.logger.info("submitted", extra={"attached": accepted.attached})
        return _receipt(accepted)

    async def _adopt(self, input: SubmitInput, task_id: str) -> SubmissionReceipt:
        request = input.request
        digest = request_digest(request)
        try:
            await self._ledger.check_identity(input.ledger_id)
            accepted = await self._ledger.accepted(input.ledger_key, digest)
            if accepted is None:
                accepted = await self._ledger.adopt(
                    input.ledger_key,
                    digest=digest,
                    task_id=await _see(self._gateway, task_id),
                    owner=owner(),
                    model=request.model,
                )
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            raise application_error(error, Step.SETTLE) from None
        activity.logger.info("adopted", extra={"task_id": accepted.task_id})
        return _receipt(accepted)

    async def _error(self, error: Exception, step: Step, key: str, request: GenerateVideoInput) -> ApplicationError:
        return await hiding_error(error, step, store=self._store, key=key, hidden=bool(prompt_paths(request)))

    def _first_post(self, input: SubmitInput, *, files: bool) -> Post:
        request = input.request

        async def post(before_send: BeforeSend) -> SubmissionAnswer:
            check_request(request)  # a key that was in doubt while it was prepared is not judged before
            if request.on_key_refused is OnKeyRefused.WAIT and not input.trial:
                self._breaker.check()
            texts = await read_prompts(self._store, request)
            form = SubmissionForm(
                model=request.model,
                prompt=texts.prompt,
                prompt_extend=texts.prompt_extend,
                size=request.size,
                images=await prepare_parts(self._store, request.images, files=files),
            )
            try:
                answer = await self._gateway.submit(form, before_send=before_send)
            except KeyRefused as refusal:
                # It is told every generation that waits for the key.
                self._breaker.refused(without_gateways_words(refusal) if prompt_paths(request) else refusal)
                self._preflight.forget()
                raise
            self._breaker.accepted()
            return answer

        return post


async def _see(gateway: GatewayClient | ExtensionClient | None, task_id: str) -> str:
    """See that a task is there before it is believed.

    Returns:
        Its id as the gateway writes it: whose a task is hangs on that one, and a gateway may take others for it.

    Raises:
        TaskNotFound: The gateway says that it is not there.
    """
    if gateway is None:
        return task_id
    try:
        return (await gateway.query(task_id)).own_task_id
    except TaskNotFound as error:
        code = code_or_none(error.code)
        raise TaskNotFound(f"{task_id[:80]}: {_NO_SUCH_TASK}", status=error.status, code=code) from error
    except GatewayError:
        return task_id  # it cannot be asked now: the looks will tell


def _refusal(input: AwaitKeyInput) -> KeyRefused:
    """How the gateway refused, as the workflow remembers it."""
    kind = QuotaExhausted if input.details.key_problem is KeyProblem.OUT_OF_QUOTA else KeyRefused
    return kind(input.message, status=input.details.http_status, code=input.details.gateway_code)


def _receipt(accepted: Accepted) -> SubmissionReceipt:
    return SubmissionReceipt(
        task_id=accepted.task_id,
        submitted_at=accepted.sent_at,
        slot=accepted.slot,
        attached=accepted.attached,
        recorded=accepted.recorded,
        request_id=accepted.request_id,
        nonce=accepted.nonce,
        gateway=accepted.gateway,
        account=accepted.account,
    )
