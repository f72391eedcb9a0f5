"""Bringing a clip home."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities import measuring
from activities.failures import Step
from activities.heartbeats import heartbeating
from activities.hiding import hiding_error
from longtake.delivery import DownloadFailed, Fetcher, Source, deliver
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError, TaskNotVisible
from longtake.gateway.extension import ExtensionClient
from longtake.gateway.tasks import check_gateway, query_task, url_setting
from longtake.gateway.wire import GatewayRecord
from longtake.models import DeliverOrder, DeliveryKind, DeliveryReceipt, TaskState
from longtake.records import forget_links, load_record, save_record, video_directory
from longtake.storage import Store, StoreProblem

GONE_AFTER = timedelta(hours=1)
"""When every source says "gone" this long after the first attempt, the gateway's fresh answer too, it is believed."""
_GONE_ATTEMPTS = 6


class DeliveryActivities:
    """Everything that downloads and stores."""

    def __init__(
        self,
        *,
        gateway: GatewayClient,
        store: Store,
        fetcher: Fetcher,
        extension: ExtensionClient | None = None,
        extension_fetcher: Fetcher | None = None,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._fetcher = fetcher
        self._extension = extension
        self._extension_fetcher = extension_fetcher

    @activity.defn
    async def deliver_video(self, order: DeliverOrder) -> DeliveryReceipt:
        """Download, verify and store one clip; a clip that is already stored is only looked up."""
        answered: list[GatewayRecord] = []
        async with heartbeating() as heartbeat:
            try:
                receipt = await deliver(
                    store=self._store,
                    fetcher=(self._extension_fetcher if order.extension else None) or self._fetcher,
                    sources=lambda: self._sources(order, answered),
                    directory=video_directory(order.key),
                    kind=order.kind,
                    task_id=order.task_id,
                    expected_size=(order.width, order.height) if order.width and order.height else None,
                    on_progress=lambda done, total: heartbeat.tell({"bytes": done, "of": total}),
                )
            except Exception as error:  # noqa: BLE001 - the table knows every kind
                gone = bool(answered) and _gone_for_good(error)
                raise await hiding_error(
                    error,
                    Step.DELIVER,
                    store=self._store,
                    key=order.key,
                    hidden=order.hide_words,
                    gone_for_good=gone,
                ) from None
            await self._forget_links(order)
        measuring.delivered(receipt, order.kind)
        activity.logger.info("delivered", extra={"kind": order.kind, "bytes": receipt.video.bytes})
        return receipt

    async def _forget_links(self, order: DeliverOrder) -> None:
        """Take the links of a clip that is stored out of the kept record: whoever had them had the video."""
        try:
            await forget_links(self._store, order.key, order.task_id, kind=order.kind, keep_first=order.keep_first_link)
        except StoreProblem as error:
            activity.logger.warning("links not deleted", exc_info=error)

    async def _sources(self, order: DeliverOrder, answered: list[GatewayRecord]) -> AsyncIterator[Source]:
        """The links in turn; a fresh one is asked for only once the kept one has failed.

        Args:
            order: What to bring home.
            answered: Gets the gateway's fresh record, where it gives one.
        """
        try:
            kept = await load_record(self._store, order.key, order.task_id)
        except (StoreProblem, ValueError) as error:  # the store is away, or the record is not one
            activity.logger.warning("kept links not read", exc_info=error)
            kept = None
        link = kept and _link(kept, order.kind)
        if link:
            yield Source("the link", link)
        # The kept link needs no gateway; everything else must be asked of the one that was paid: "gone" from another
        # gateway would end the delivery of a video that is there.
        check_gateway(self._source_gateway(order), order.gateway, setting=url_setting(extension=order.extension))
        fresh = await self._fresh_record(order)
        answered += [fresh] if fresh else []
        fresh_link = fresh and _link(fresh, order.kind)
        if fresh_link and fresh_link != link:
            yield Source("a fresh link", fresh_link)
        if order.kind is DeliveryKind.FULL:
            content = self._source_gateway(order).content_url(order.task_id)
            yield Source("the gateway's content route", content, with_key=True)
            record = fresh or kept
            if record and record.result_url and record.result_url not in (content, link, fresh_link):
                yield Source("the result link", record.result_url, with_key=True)

    def _source_gateway(self, order: DeliverOrder) -> GatewayClient | ExtensionClient:
        return (self._extension if order.extension else None) or self._gateway

    async def _fresh_record(self, order: DeliverOrder) -> GatewayRecord | None:
        """Ask for fresh links; None where the gateway does not answer."""
        try:
            record = await query_task(self._source_gateway(order), order.task_id, account=order.account)
        except TaskNotVisible:
            raise
        except GatewayError as error:
            activity.logger.info("no fresh link", exc_info=error)
            return None
        if record.video_url or record.first_video_url:
            try:
                await save_record(self._store, order.key, record)
            except StoreProblem as error:
                activity.logger.warning("links not kept", exc_info=error)
        return record


def _link(record: GatewayRecord, kind: DeliveryKind) -> str | None:
    """Where this clip lies: after `extend_failed` the first segment is at `video_url`."""
    if record.state is TaskState.COMPLETED:
        return record.video_url if kind is DeliveryKind.FULL else record.first_video_url
    return record.video_url if kind is DeliveryKind.FIRST and record.state is TaskState.EXTEND_FAILED else None


def _gone_for_good(error: Exception) -> bool:
    """Whether every source has said "gone" for an hour of attempts."""
    if not (isinstance(error, DownloadFailed) and error.gone):
        return False
    info = activity.info()
    return info.attempt >= _GONE_ATTEMPTS and datetime.now(UTC) - info.scheduled_time > GONE_AFTER
