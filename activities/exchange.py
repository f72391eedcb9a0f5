"""One activity attempt's way through the ledger to the paid POST."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import ValidationError
from temporalio import activity

from activities.heartbeats import Heartbeat
from longtake.gateway.client import SubmissionAnswer
from longtake.submission.ledger import Accepted, Answer, CreateIntent, Evidence, SubmissionLedger

BeforeSend = Callable[[], Awaitable[None]]
Post = Callable[[BeforeSend], Awaitable[SubmissionAnswer]]
"""Makes the paid POST, awaiting what it is given directly before the first byte."""


class PaidExchange:
    """Makes a paid POST at most once for a ledger key; never torn once bytes may have left."""

    def __init__(  # noqa: PLR0913 - each a fact of its own, named at the call
        self,
        *,
        ledger: SubmissionLedger,
        ledger_key: str,
        digest: str,
        model: str,
        gateway: str,
        account: str,
        post: Post,
        heartbeat: Heartbeat,
    ) -> None:
        self._ledger = ledger
        self._ledger_key = ledger_key
        self._digest = digest
        self._model = model
        self._gateway = gateway
        self._account = account
        self._post = post
        self._heartbeat = heartbeat
        self._sending = False

    async def run(self) -> Accepted:
        """Run to the end; a cancellation stops it only as long as nothing can have left.

        Raises:
            Whatever `SubmissionLedger.submit` raises.
        """
        task = asyncio.create_task(self._run())
        while True:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise
                if not self._sending:
                    task.cancel()

    async def _run(self) -> Accepted:
        async def send(create_intent: CreateIntent) -> Answer:
            async def before_send() -> None:
                self._sending = True
                await create_intent()

            answer = await self._post(before_send)
            return Answer(answer.task_id, answer.request_id)

        return await self._ledger.submit(
            self._ledger_key,
            digest=self._digest,
            send=send,
            owner=owner(),
            model=self._model,
            evidence=_evidence_of_earlier_attempt(),
            on_evidence=lambda evidence: self._heartbeat.tell(evidence.model_dump()),
            gateway=self._gateway,
            account=self._account,
            # The same for all attempts of this activity: when the ledger is closed after it, none of them sends.
            scheduled_at=activity.info().scheduled_time,
        )


def owner() -> str:
    """Who we are, for people who read the ledger."""
    info = activity.info()
    return f"{info.workflow_id}/{(info.workflow_run_id or '')[:8]}/attempt {info.attempt}"


def _evidence_of_earlier_attempt() -> Evidence | None:
    """What an earlier attempt of this activity left in its heartbeat, if it reads as evidence."""
    details = activity.info().heartbeat_details
    try:
        return Evidence.model_validate(details[0]) if details else None
    except ValidationError:
        return None
