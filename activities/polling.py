"""One look at a task."""

from temporalio import activity

from activities.failures import Step
from activities.heartbeats import heartbeating
from activities.hiding import hiding_error, without_words
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError
from longtake.gateway.extension import ExtensionClient
from longtake.gateway.tasks import check_gateway, query_task, url_setting
from longtake.gateway.wire import GatewayRecord
from longtake.models import LookOrder, TaskRecord, TaskState
from longtake.records import save_record
from longtake.storage import Store, StoreProblem


class PollingActivities:
    """Everything that asks the gateway how a task is doing."""

    def __init__(self, *, gateway: GatewayClient, store: Store, extension: ExtensionClient | None = None) -> None:
        self._gateway = gateway
        self._extension = extension
        self._store = store

    @activity.defn
    async def query_generation(self, order: LookOrder) -> TaskRecord:
        """Ask once; a task that the gateway gave up without a verdict is looked for on the second path too."""
        async with heartbeating():
            record = await self._look(order)
        if record.video_url or record.first_video_url:
            await self._keep(order, record)
        shown = record.without_links()
        return await without_words(shown, store=self._store, key=order.key) if order.hidden_prompts else shown

    async def _look(self, order: LookOrder) -> GatewayRecord:
        try:
            client = (self._extension if order.extension else None) or self._gateway
            check_gateway(client, order.gateway, setting=url_setting(extension=order.extension))
            record = await query_task(client, order.task_id, account=order.account)
            if record.state is TaskState.LOST and not order.extension:
                record = await self._second_witness(order.task_id, record)
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            hidden = bool(order.hidden_prompts)
            raise await hiding_error(error, Step.LOOK, store=self._store, key=order.key, hidden=hidden) from None
        return record

    async def _second_witness(self, task_id: str, lost: GatewayRecord) -> GatewayRecord:
        try:
            other = await self._gateway.query(task_id, second_path=True)
        except GatewayError as error:
            activity.logger.info("the second path told nothing", exc_info=error)
            return lost
        return lost if other.state is TaskState.LOST else other

    async def _keep(self, order: LookOrder, record: GatewayRecord) -> None:
        """Keep the links outside Temporal's history; a store that is away only costs the delivery a query."""
        try:
            await save_record(self._store, order.key, record)
        except StoreProblem as error:
            activity.logger.warning("links not kept", exc_info=error)
