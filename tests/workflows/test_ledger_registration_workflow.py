"""The workflow that holds the registration: it shows what it is about, costs nothing, and replays."""

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowExecutionStatus
from temporalio.worker import Replayer

from longtake.models import LedgerRegistration
from longtake.temporal.connection import DATA_CONVERTER
from longtake.temporal.names import LEDGER_WORKFLOW_TYPE, TASK_QUEUE
from tests.workflows.rig import Rig
from worker import workflow_setup

pytestmark = pytest.mark.asyncio(loop_scope="session")

REGISTERED = LedgerRegistration(ledger="0123456789abcdef", store="s3://bucket/prefix")


async def test_it_waits_shows_the_store_and_replays(rig: Rig) -> None:
    handle = await rig.client.start_workflow(
        LEDGER_WORKFLOW_TYPE, REGISTERED, id="longtake-ledger", task_queue=TASK_QUEUE
    )
    try:
        page = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        assert REGISTERED.store in page.current_details
        assert REGISTERED.ledger in page.current_details
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        history = await handle.fetch_history()
        kinds = {EventType.Name(event.event_type).removeprefix("EVENT_TYPE_WORKFLOW_") for event in history.events}
        assert kinds == {"EXECUTION_STARTED", "TASK_SCHEDULED", "TASK_STARTED", "TASK_COMPLETED"}, "no command at all"
        await Replayer(**workflow_setup(), data_converter=DATA_CONVERTER).replay_workflow(history)
    finally:
        await handle.terminate()
