"""Polls a task."""

from temporalio import activity

from activities.failures import Step, translated_errors
from activities.heartbeats import heartbeating
from activities.hiding import HiddenWords
from longtake.delivery.task_records import save_record
from longtake.gateway.account import AccountClient
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError
from longtake.gateway.extension import ExtensionClient
from longtake.gateway.tasks import check_gateway, query_task, url_setting
from longtake.gateway.wire import GatewayRecord
from longtake.models import PollInput, TaskRecord, TaskState
from longtake.storage import Store, StoreProblem

_FAILED = frozenset({TaskState.GENERATE_FAILED, TaskState.EXTEND_FAILED})


class PollingActivities:
    """Everything that queries the state of a task."""

    def __init__(
        self,
        *,
        gateway: GatewayClient,
        store: Store,
        account_client: AccountClient,
        extension: ExtensionClient | None = None,
    ) -> None:
        self._gateway = gateway
        self._account_client = account_client
        self._extension = extension
        self._store = store

    @activity.defn
    async def query_generation(self, input: PollInput) -> TaskRecord:
        """Query once; where the task has ended, on the gateway's other route too.

        The other route may know better what became of it, and may alone name the video's link and its cost. Only
        the usage log may show the refund of a failed task.
        """
        hidden = HiddenWords(self._store, input.key) if input.hide_words else None
        async with heartbeating(), translated_errors(Step.POLL, keep_words=hidden.keep if hidden else None):
            client = (self._extension if input.extension else None) or self._gateway
            check_gateway(client, input.gateway, setting=url_setting(extension=input.extension))
            record = await query_task(client, input.task_id, account=input.account)
            if record.state is not TaskState.RUNNING:
                record = await self._ask_other_route(client, input.task_id, record)
            if record.state in _FAILED and not record.refunded:
                record = await self._find_refund(input, record)
        # A failure is kept too: `starter.py recover` then knows that there is nothing to download.
        failed = record.state in _FAILED
        if (record.video_url or record.first_video_url or failed) and not input.clip_is_stored:
            await self._keep(input, record)
        shown = record.without_links()
        return await hidden.hide(shown) if hidden else shown

    async def _ask_other_route(self, client: GatewayClient, task_id: str, record: GatewayRecord) -> GatewayRecord:
        try:
            other = await client.query(task_id, second_path=True)
        except GatewayError as error:
            activity.logger.info("the second route did not answer", exc_info=error)
            return record
        if record.state is TaskState.LOST and other.state is not TaskState.LOST:
            return other.completed_by(record)
        return record.completed_by(other)

    async def _find_refund(self, input: PollInput, record: GatewayRecord) -> GatewayRecord:
        """Read the usage log, where it is that of the key that paid."""
        if input.extension or input.account not in {"", self._account_client.account}:
            return record
        refund = await self._account_client.refund_of(input.task_id)
        if refund is None:
            return record
        amount = "" if refund.quota is None else f" of {refund.quota}"
        when = f" at {refund.at:%Y-%m-%d %H:%M:%S} UTC" if refund.at else ""
        return record.refunded_by(f"the usage log shows a refund{amount}{when}")

    async def _keep(self, input: PollInput, record: GatewayRecord) -> None:
        """Keep the links outside Temporal's history; where the store fails, the delivery queries again."""
        try:
            await save_record(self._store, input.key, record)
        except StoreProblem as error:
            activity.logger.warning("links not kept", exc_info=error)
