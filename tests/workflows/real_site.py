"""The real dev server, workflow, activities, ledger and the simulator, in one process: for what lies between them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.delivery import DeliveryActivities
from activities.polling import PollingActivities
from activities.submission import SubmissionActivities
from cli.embedded import temporal_binary
from longtake.delivery.download import Fetcher
from longtake.gateway.account import AccountClient
from longtake.gateway.client import GatewayClient
from longtake.models import GenerateVideoInput, GenerationPolicy, GenerationStatus
from longtake.storage import Store
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import (
    DATA_CONVERTER,
    SEARCH_ATTRIBUTES,
    SUBMISSION_TASK_QUEUE,
    TASK_QUEUE,
    WORKFLOW_TYPE,
    workflow_id,
)
from simulator import Simulator, SimulatorSettings, serve
from worker import workflow_setup

API_KEY = "the-key-that-pays"
EXCHANGE = timedelta(seconds=2)
PATIENCE_SECONDS = 60
POLICY = GenerationPolicy(submit_timeout=EXCHANGE, decision_window=timedelta(days=7))


@dataclass
class Site:
    """A server, a worker and a gateway."""

    client: Client
    sim: Simulator
    ledger: SubmissionLedger

    async def start(self, key: str, tag: str = "ok", **fields: Any) -> str:
        """Start a generation; returns its run id."""
        request = GenerateVideoInput.model_validate(
            {
                "model": "veo_3_1-fast-remix",
                "prompt": f"a storm [sim:{tag},label={key}]",
                "prompt_extend": "the sea grows calm",
                **fields,
            }
        )
        handle = await self.client.start_workflow(WORKFLOW_TYPE, request, id=workflow_id(key), task_queue=TASK_QUEUE)
        return handle.first_execution_run_id or ""

    def posts(self) -> int:
        return len(self.sim.ledger.submissions())

    async def status(self, key: str) -> GenerationStatus:
        handle = self.client.get_workflow_handle(workflow_id(key))
        status: GenerationStatus = await handle.query("status", result_type=GenerationStatus)
        return status

    async def reaches(self, key: str, wanted: Callable[[GenerationStatus], object]) -> GenerationStatus:
        """Wait until the generation is as wanted, and nothing is under way."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                status = await self.status(key)
                described = await self.client.get_workflow_handle(workflow_id(key)).describe()
                if wanted(status) and not described.raw_description.pending_activities:
                    return status
                await asyncio.sleep(0.05)

    async def decide(self, key: str, **decision: Any) -> None:
        await self.client.get_workflow_handle(workflow_id(key)).execute_update("decide", decision)

    async def reset(self, key: str, run_id: str, event_id: int) -> None:
        """As `temporal workflow reset --event-id` does it, decisions handed on again."""
        await self.client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=self.client.namespace,
                workflow_execution=WorkflowExecution(workflow_id=workflow_id(key), run_id=run_id),
                reason="a test",
                workflow_task_finish_event_id=event_id,
                request_id=f"{run_id}-{event_id}",
            )
        )

    async def reset_points(self, key: str, run_id: str) -> list[int]:
        """The end of each workflow task that a run had."""
        handle = self.client.get_workflow_handle(workflow_id(key), run_id=run_id)
        done = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        return [event.event_id async for event in handle.fetch_history_events() if event.event_type == done]


@asynccontextmanager
async def running_site(
    folder: Path,
    *,
    policy: GenerationPolicy = POLICY,
    gateway_url: Callable[[str], str] = str,
    clips: Path | None = None,
) -> AsyncIterator[Site]:
    """Everything, polling.

    Args:
        folder: For store and simulator.
        policy: The worker's.
        gateway_url: Where the worker is to find the gateway, given where it is.
        clips: Where the simulator keeps the clips that it has made, for tests that share them.
    """
    environment = await WorkflowEnvironment.start_local(
        data_converter=DATA_CONVERTER,
        search_attributes=list(SEARCH_ATTRIBUTES),
        dev_server_existing_path=str(temporal_binary()),
        dev_server_log_level="error",
    )
    settings = SimulatorSettings(folder / "simulator", API_KEY, cache_dir=clips or folder / "clips", seconds=1e-6)
    async with environment, serve(settings) as sim:
        store = Store.open(str(folder / "store"))
        ledger = SubmissionLedger(store, longest_exchange=EXCHANGE)
        await ledger.establish()
        url = gateway_url(sim.url)
        async with (
            GatewayClient(base_url=url, api_keys=[SecretStr(API_KEY)], submit_timeout=EXCHANGE) as gateway,
            AccountClient(base_url=url, api_key=SecretStr(API_KEY), console=None) as account_client,
            Fetcher(sim.url, lambda: API_KEY, allow_private_addresses=True) as fetcher,
        ):
            submission = SubmissionActivities(
                gateway=gateway, store=store, ledger=ledger, account_client=account_client, policy=policy
            )
            polling = PollingActivities(gateway=gateway, store=store, account_client=account_client)
            delivery = DeliveryActivities(gateway=gateway, store=store, fetcher=fetcher, ledger=ledger)
            general = Worker(
                environment.client,
                task_queue=TASK_QUEUE,
                activities=[
                    submission.prepare_generation,
                    submission.record_submission,
                    submission.close_submission,
                    submission.reconcile_submission,
                    submission.resolve_submission,
                    polling.query_generation,
                    delivery.deliver_video,
                ],
                **workflow_setup(),
            )
            submitting = Worker(
                environment.client,
                task_queue=SUBMISSION_TASK_QUEUE,
                activities=[submission.submit_generation, submission.await_api_key],
            )
            async with general, submitting:
                yield Site(environment.client, sim, ledger)
