"""One look at a task."""

from temporalio import activity

from activities.failures import Step
from activities.heartbeats import heartbeating
from activities.hiding import hiding_error, without_words
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError
from longtake.gateway.extension import ExtensionClient
from longtake.gateway.tasks import TaskGateway, check_gateway, query_task, url_setting
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
        """Ask once; where the task has ended, on the gateway's other route too.

        The other one may know better what became of it, and alone may tell where the video lies and what it cost.
        """
        async with heartbeating():
            record = await self._look(order)
        if (record.video_url or record.first_video_url) and not order.clip_is_stored:
            await self._keep(order, record)
        shown = record.without_links()
        return await without_words(shown, store=self._store, key=order.key) if order.hidden_prompts else shown

    async def _look(self, order: LookOrder) -> GatewayRecord:
        try:
            client = (self._extension if order.extension else None) or self._gateway
            check_gateway(client, order.gateway, setting=url_setting(extension=order.extension))
            record = await query_task(client, order.task_id, account=order.account)
            if record.state is not TaskState.RUNNING:
                record = await self._ask_other_route(client, order.task_id, record)
        except Exception as error:  # noqa: BLE001 - the table knows every kind
            hidden = bool(order.hidden_prompts)
            raise await hiding_error(error, Step.LOOK, store=self._store, key=order.key, hidden=hidden) from None
        return record

    async def _ask_other_route(self, client: TaskGateway, task_id: str, record: GatewayRecord) -> GatewayRecord:
        try:
            other = await client.query(task_id, second_path=True)
        except GatewayError as error:
            activity.logger.info("the second path told nothing", exc_info=error)
            return record
        if record.state is TaskState.LOST and other.state is not TaskState.LOST:
            return other.completed_by(record)
        return record.completed_by(other)

    async def _keep(self, order: LookOrder, record: GatewayRecord) -> None:
        """Keep the links outside Temporal's history; a store that is away only costs the delivery a query."""
        try:
            await save_record(self._store, order.key, record)
        except StoreProblem as error:
            activity.logger.warning("links not kept", exc_info=error)
