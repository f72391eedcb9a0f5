"""Downloads a clip into the store."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities import measuring
from activities.failures import Step, translated_errors
from activities.heartbeats import heartbeating
from activities.hiding import HiddenWords
from longtake.delivery.download import DownloadFailed, Fetcher, Source, deliver
from longtake.delivery.task_records import forget_links, load_record, save_record, video_directory
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError, TaskNotFound, TaskNotVisible
from longtake.gateway.extension import ExtensionClient
from longtake.gateway.tasks import check_gateway, query_task, url_setting
from longtake.gateway.wire import GatewayRecord
from longtake.models import DeliverInput, DeliveryKind, DeliveryReceipt, TaskState
from longtake.storage import Store, StoreProblem
from longtake.submission.ledger import SubmissionLedger

GONE_AFTER = timedelta(hours=1)
"""When every source says "gone" this long after the first attempt, and both routes answered, the clip is lost."""
_GONE_ATTEMPTS = 6
_ROUTES = 2


class DeliveryActivities:
    """Everything that downloads and stores."""

    def __init__(  # noqa: PLR0913 - one client each
        self,
        *,
        gateway: GatewayClient,
        store: Store,
        fetcher: Fetcher,
        ledger: SubmissionLedger,
        extension: ExtensionClient | None = None,
        extension_fetcher: Fetcher | None = None,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._fetcher = fetcher
        self._ledger = ledger
        self._extension = extension
        self._extension_fetcher = extension_fetcher

    @activity.defn
    async def deliver_video(self, input: DeliverInput) -> DeliveryReceipt:
        """Download, verify and store one clip; for a clip that is already stored, return its receipt."""
        answered: list[GatewayRecord | None] = []
        fetcher = (self._extension_fetcher if input.extension else None) or self._fetcher
        async with heartbeating() as heartbeat:
            async with translated_errors(
                Step.DELIVER,
                keep_words=HiddenWords(self._store, input.key).keep if input.hide_words else None,
                gone_for_good=lambda error: len(answered) == _ROUTES and _gone_for_good(error),
            ):
                # Whatever a workflow asks for, what another generation paid for is not delivered to this one.
                await self._ledger.check_owner(input.ledger_key, input.task_id)
                receipt = await deliver(
                    store=self._store,
                    fetcher=fetcher,
                    sources=lambda: self._sources(input, answered),
                    directory=video_directory(input.key),
                    kind=input.kind,
                    task_id=input.task_id,
                    expected_size=(input.width, input.height) if input.width and input.height else None,
                    on_progress=lambda done, total: heartbeat.send({"bytes": done, "of": total}),
                )
            await self._forget_links(input)
        priced = next((record for record in answered if record and record.quota is not None), None)
        if priced:
            shown = priced.without_links()
            cost = {name: getattr(shown, name) for name in ("quota", "refunded", "refund_evidence")}
            receipt = receipt.model_copy(update=cost)
        measuring.delivered(receipt, input.kind)
        activity.logger.info("delivered", extra={"kind": input.kind, "bytes": receipt.video.bytes})
        return receipt

    async def _forget_links(self, input: DeliverInput) -> None:
        """Remove the links of a stored clip from the kept record: a link is all that a download needs."""
        try:
            await forget_links(self._store, input.key, input.task_id, kind=input.kind, keep_first=input.keep_first_link)
        except StoreProblem as error:
            activity.logger.warning("links not deleted", exc_info=error)

    async def _sources(self, input: DeliverInput, answered: list[GatewayRecord | None]) -> AsyncIterator[Source]:
        """The links in turn, the gateway's own content route last; each route is queried once all before have failed.

        Args:
            input: What to deliver.
            answered: Gets what each route answers: a record, or None for "no such task".
        """
        try:
            kept = await load_record(self._store, input.key, input.task_id)
        except (StoreProblem, ValueError) as error:  # the store is away, or the record is not one
            activity.logger.warning("kept links not read", exc_info=error)
            kept = None
        for link in _links(kept, input.kind):
            yield Source("the link", link)
        # The kept link needs no gateway. Everything else must come from the one that was paid: "gone" from another
        # gateway would end the delivery of a video that is there.
        check_gateway(self._source_gateway(input), input.gateway, setting=url_setting(extension=input.extension))
        for second_path in (False, True):
            records = await self._ask(input, second_path=second_path)
            answered += records
            for link in (link for record in records for link in _links(record, input.kind)):
                yield Source("a fresh link", link)
        known = [record for record in (*answered, kept) if record]
        if input.kind is DeliveryKind.FULL or any(_names_content_route(record) for record in known):
            content = self._source_gateway(input).content_url(input.task_id)
            yield Source("the gateway's content route", content, with_key=True)
        if input.kind is DeliveryKind.FULL:
            for result_url in (record.result_url for record in known if record.result_url):
                yield Source("the result link", result_url, with_key=True)

    def _source_gateway(self, input: DeliverInput) -> GatewayClient:
        return (self._extension if input.extension else None) or self._gateway

    async def _ask(self, input: DeliverInput, *, second_path: bool) -> list[GatewayRecord | None]:
        """Ask one of the gateway's routes for fresh links; nothing where it does not answer."""
        client = self._source_gateway(input)
        try:
            if second_path:
                record = await client.query(input.task_id, second_path=True)
            else:
                record = await query_task(client, input.task_id, account=input.account)
        except TaskNotVisible:
            raise
        except GatewayError as error:
            activity.logger.info("no fresh link", exc_info=error)
            # Of the first route "no such task" may be the lost row of a task that was made.
            return [None] if second_path and isinstance(error, TaskNotFound) else []
        if record.video_url or record.first_video_url:
            try:
                await save_record(self._store, input.key, record)
            except StoreProblem as error:
                activity.logger.warning("links not kept", exc_info=error)
        return [record]


def _links(record: GatewayRecord | None, kind: DeliveryKind) -> list[str]:
    """The links to this clip: after `extend_failed` the first segment is at `video_url`."""
    if record is None:
        return []
    state = TaskState.COMPLETED if kind is DeliveryKind.FULL else TaskState.EXTEND_FAILED
    found = [record.video_url if record.state is state else None]
    found += [record.first_video_url] if kind is DeliveryKind.FIRST else []
    return [link for link in found if link]


def _names_content_route(record: GatewayRecord) -> bool:
    """Whether the gateway names its own route for the clip of a failed extension; stock refuses that."""
    return record.content_route and record.state is TaskState.EXTEND_FAILED


def _gone_for_good(error: Exception) -> bool:
    """Whether every source has said "gone" for an hour of attempts."""
    if not (isinstance(error, DownloadFailed) and error.gone):
        return False
    info = activity.info()
    return info.attempt >= _GONE_ATTEMPTS and datetime.now(UTC) - info.scheduled_time > GONE_AFTER
