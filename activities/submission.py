"""Before and around the paid POSTs."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable

from temporalio import activity

from activities.exchange import BeforeSend, Post, pay_once, writer
from activities.failures import Step, application_error, code_or_none, details_of, translated_errors
from activities.heartbeats import Heartbeat, heartbeating
from activities.hiding import HiddenWords, without_gateways_words
from longtake.delivery.download import Fetcher
from longtake.delivery.task_records import load_record, save_request
from longtake.gateway.account import AccountClient
from longtake.gateway.breaker import KeyBreaker
from longtake.gateway.client import GatewayClient, SubmissionForm, SubmittedTask
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
from longtake.submission.errors import OutcomeUnknown
from longtake.submission.ledger import Submission, SubmissionLedger
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
        async with heartbeating(), translated_errors(Step.PREPARE, keep_words=self._keep(input.key, input.request)):
            ledger_id = await self._ledger.identity()
            # What was paid for is delivered, whatever has become of its model, its images, the store and the API key.
            extensions_sent = 0
            if await self._ledger.is_untouched(input.key):
                await self._check_unpaid(input, check_request(input.request))
            else:
                extensions_sent = await self._extensions_sent(input)
        return self._policy.model_copy(update={"ledger_id": ledger_id, "extensions_sent": extensions_sent})

    async def _check_unpaid(self, input: PrepareInput, request: GenerateVideoInput) -> None:
        """Check everything that could fail after paying."""
        await self._store.probe()
        await read_prompts(self._store, request)
        await prepare_parts(self._store, request.images, files=self._files_are_taken)
        await self._check_key(input)
        if self._fetcher:  # what is paid for must be possible to download
            await self._fetcher.preflight()
        if request.task_id:
            # Polls of a task that is not there would go on for hours, and a typo would bind this key for good.
            try:
                await _canonical_id(self._gateway, request.task_id)
            except TaskNotFound as error:
                raise InvalidRequest((Problem(field="task_id", rule=_NO_SUCH_TASK),)) from error
        # For `starter.py recover`: the ledger keeps a digest only, and Temporal may lose the rest.
        await save_request(self._store, input.key, request)

    async def _check_key(self, input: PrepareInput) -> None:
        """Ask the gateway whether it takes the key; for a generation that waits, unless it has just been asked.

        Raises:
            GatewayError: See `Preflight.check`.
        """
        if input.request.on_key_refused is OnKeyRefused.WAIT and not input.trial:
            self._breaker.check(preflight=True)
        await self._try_key()

    async def _try_key(self) -> None:
        try:
            if await self._preflight.check():
                self._breaker.accepted(preflight=True)
        except KeyRefused as refusal:
            self._breaker.refused(refusal, preflight=True)
            raise

    @activity.defn
    async def await_api_key(self, input: AwaitKeyInput) -> KeyTrial:
        """End once a submission is worth a try, the gateway having refused the key; fail, to be retried, until then.

        Between two attempts only Temporal's timer waits. Of all generations of this worker one tries the key.
        """
        keep_words = HiddenWords(self._store, input.key).keep if input.hide_words else None
        async with translated_errors(Step.AWAIT_KEY, keep_words=keep_words):
            if not self._breaker.reserve_trial(_refusal(input)):
                return KeyTrial(trial=False)
            self._preflight.forget()
            await self._try_key()
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

    @activity.defn
    async def submit_generation(self, input: SubmitInput) -> SubmissionReceipt:
        """Make the paid POST, at most once for this key, or return what it brought before.

        A cancellation or a draining worker does not interrupt an exchange: once bytes may have left, it is finished,
        so that the id is known.
        """
        request = input.request
        if request.task_id:
            return await self._adopt(input, request.task_id)
        submission = self._submission(request_digest(request), request.model, self._gateway)

        async def send(heartbeat: Heartbeat) -> SubmissionReceipt:
            files = self._files_are_taken and can_be_files(request.images)
            try:
                return await pay_once(
                    self._ledger, input.ledger_key, submission, self._first_post(input, files=files), heartbeat
                )
            except MediaRefused:
                # Nothing was made, and the ledger says so: the same as data URIs is a submission of its own.
                if not files or self._image_transfer != "auto":
                    raise
                if activity.is_cancelled():
                    raise asyncio.CancelledError from None
            activity.logger.warning("the gateway takes no images as files: they are sent as data URIs from now on")
            self._files_are_taken = False
            return await pay_once(
                self._ledger, input.ledger_key, submission, self._first_post(input, files=False), heartbeat
            )

        return await self._submit(input, send)

    @activity.defn
    async def submit_extension(self, input: SubmitInput) -> SubmissionReceipt:
        """Pay for the extension again, at most once for this retry, or return what it brought before."""
        extension, client = input.extension, self._extension
        if extension is None or client is None:
            error = RuntimeError("no gateway that retries extensions is configured on this worker")
            raise application_error(error, Step.PREPARE) from None
        prompt = input.request.prompt_extend
        submission = self._submission(extension_digest(extension.remix_id, prompt), input.request.model, client)

        async def post(before_send: BeforeSend) -> SubmittedTask:
            await self._check_remix(input.key, extension.remix_id)
            text = await read_prompt(self._store, "prompt_extend", prompt)
            return await client.submit_extension(extension.remix_id, text, before_send=before_send)

        return await self._submit(
            input, lambda heartbeat: pay_once(self._ledger, input.ledger_key, submission, post, heartbeat)
        )

    async def _check_remix(self, key: str, remix_id: str) -> None:
        """Check that the retry extends this generation's own first segment, which its video shows.

        Raises:
            InvalidRequest: It does not.
            GatewayUnreachable: Neither the store nor the gateway shows that segment now.
        """
        receipt = await self._ledger.accepted(key)
        record = None
        if receipt is not None:
            with contextlib.suppress(ValueError):  # the kept file is no record
                record = await load_record(self._store, key, receipt.task_id)
            if record is None or record.remix_id is None:
                try:
                    record = await self._gateway.query(receipt.task_id)
                except GatewayError as error:
                    raise GatewayUnreachable(f"nothing was sent, the task to extend is not shown: {error}") from None
        if record is None or record.remix_id != remix_id:
            raise InvalidRequest((Problem(field="remix_id", rule="is not of the task that this generation paid for"),))

    @activity.defn
    async def record_submission(self, input: RecordInput) -> None:
        """Write the outcome of a paid submission that the store did not take at once."""
        async with translated_errors(Step.RESOLVE):
            await self._ledger.check_identity(input.ledger_id)
            await self._ledger.record_accepted(input.key, input.receipt, only=True)

    @activity.defn
    async def close_submission(self, input: CloseInput) -> ClosedSubmission:
        """Return what the ledger knows of a key, and let nothing be sent any more that was scheduled before this."""
        # The first attempt's time, by Temporal's clock: the submissions that this is about ended before it was
        # scheduled, and one that is scheduled later, by a reset or a new run, may send.
        fence = activity.info().scheduled_time
        async with translated_errors(Step.RESOLVE):
            await self._ledger.check_identity(input.ledger_id)
            try:
                receipt = await self._ledger.close_unsent(input.key, fence=fence, writer=writer(), digest=input.digest)
            except OutcomeUnknown as doubt:
                return ClosedSubmission(in_doubt=details_of(doubt, Step.SUBMIT))
        return ClosedSubmission(receipt=receipt)

    @activity.defn
    async def reconcile_submission(self, input: ReconcileInput) -> Reconciliation:
        """Check the account's records about a submission in doubt; adopt its task where there is no doubt left."""
        resubmit = Resubmit.NEVER
        if self._resubmit_not_charged:
            resubmit = Resubmit.NOW if input.confirms_not_charged else Resubmit.IF_CONFIRMED
        account_client = None if input.extension else self._account_client
        async with heartbeating(), translated_errors(Step.RESOLVE):
            await self._ledger.check_identity(input.ledger_id)
            found = await reconcile(self._ledger, account_client, input, writer=writer(), resubmit=resubmit)
        if found.clear and found.charged is Paid.NO:
            activity.logger.warning("closed as not charged", extra={"resubmissions": found.resubmissions})
        if not (input.hide_words and found.evidence):
            return found
        where = await HiddenWords(self._store, input.key).keep("\n".join(found.evidence))
        return found.model_copy(update={"evidence": (where,)})

    @activity.defn
    async def resolve_submission(self, input: ResolveInput) -> Resolution:
        """Write down what a person decided about a submission in doubt."""
        async with heartbeating(), translated_errors(Step.RESOLVE):
            await self._ledger.check_identity(input.ledger_id)
            task_id = input.task_id
            if task_id is not None:
                # What is written down stays: a typo would be polled for hours, and the true id be refused.
                task_id = await _canonical_id(self._extension if input.extension else self._gateway, task_id)
            return Resolution(receipt=await self._resolve(input, task_id))

    async def _resolve(self, input: ResolveInput, task_id: str | None) -> SubmissionReceipt | None:
        """Resolve the submission that the person was asked about; an outcome that is there already stands.

        Another one in doubt is left alone: nobody was asked about it, so the next attempt finds it and asks again.
        """
        ledger, key = self._ledger, input.key
        if input.slot is not None:
            reason = f"decided ({writer()})"
            receipt = await ledger.resolve(key, input.slot, task_id=task_id, reason=reason)
            if receipt is not None or task_id is None:
                return receipt
        if task_id is None or await ledger.open_slot(key) is not None:
            return None
        # The slot says that nothing was made, and the person knows of a task: it is adopted in a slot of its own.
        return await ledger.adopt(key, Submission(input.digest, writer(), input.model), task_id)

    @staticmethod
    def _submission(digest: str, model: str, gateway: GatewayClient) -> Submission:
        return Submission(digest, writer(), model, gateway.origin, gateway.account)

    async def _submit(
        self, input: SubmitInput, send: Callable[[Heartbeat], Awaitable[SubmissionReceipt]]
    ) -> SubmissionReceipt:
        keep_words = self._keep(input.key, input.request)
        async with heartbeating() as heartbeat, translated_errors(Step.SUBMIT, keep_words=keep_words):
            await self._ledger.check_identity(input.ledger_id)
            receipt = await send(heartbeat)
        note(task_id=receipt.task_id, request_id=receipt.request_id)
        activity.logger.info("submitted", extra={"attached": receipt.attached})
        return receipt

    async def _adopt(self, input: SubmitInput, task_id: str) -> SubmissionReceipt:
        submission = Submission(request_digest(input.request), writer(), input.request.model)
        async with translated_errors(Step.RESOLVE):
            await self._ledger.check_identity(input.ledger_id)
            receipt = await self._ledger.accepted(input.ledger_key, submission.digest)
            if receipt is None:
                task_id = await _canonical_id(self._gateway, task_id)
                receipt = await self._ledger.adopt(input.ledger_key, submission, task_id)
        activity.logger.info("adopted", extra={"task_id": receipt.task_id})
        return receipt

    def _keep(self, key: str, request: GenerateVideoInput) -> Callable[[str], Awaitable[str]] | None:
        """Where the gateway's words go, if this request's prompts are hidden."""
        return HiddenWords(self._store, key).keep if prompt_paths(request) else None

    def _first_post(self, input: SubmitInput, *, files: bool) -> Post:
        request = input.request

        async def post(before_send: BeforeSend) -> SubmittedTask:
            check_request(request)  # `prepare_generation` skips this for a key that is in doubt
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
                # Every generation that waits for the key is shown it.
                self._breaker.refused(without_gateways_words(refusal) if prompt_paths(request) else refusal)
                self._preflight.forget()
                raise
            self._breaker.accepted()
            return answer

        return post


async def _canonical_id(gateway: GatewayClient | None, task_id: str) -> str:
    """Check that a task is there before its id is written down.

    Returns:
        Its id as the gateway writes it: the ledger's owners go by that one, and a gateway may accept other spellings.

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
        return task_id  # it cannot be asked now: the polls will show


def _refusal(input: AwaitKeyInput) -> KeyRefused:
    """How the gateway refused, as the workflow remembers it."""
    kind = QuotaExhausted if input.details.key_problem is KeyProblem.OUT_OF_QUOTA else KeyRefused
    return kind(input.message, status=input.details.http_status, code=input.details.gateway_code)
