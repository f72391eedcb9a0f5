"""What impatient operators do by Temporal's own means: resets, pauses, and another build made current."""

import asyncio
import random
import uuid
from collections import Counter

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, ResetReapplyType
from temporalio.api.workflowservice.v1 import (
    PauseActivityRequest,
    ResetActivityRequest,
    ResetWorkflowExecutionRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    UnpauseActivityRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from longtake.temporal.names import DEPLOYMENT, workflow_id

_GONE = frozenset({RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.FAILED_PRECONDITION})
"""It has ended meanwhile, or the server refuses that point: an operator shrugs."""
_TRIES = 60
_TRY_SECONDS = 0.5
_IDENTITY = "chaos operator"


class Operators:
    """People with Temporal's command line, who know nothing of ours."""

    def __init__(self, temporal: Client, seed: int) -> None:
        self._temporal = temporal
        self._chance = random.Random(seed)  # noqa: S311 (repeatable dice, not secret ones)
        self.did: Counter[str] = Counter()
        """What they did, by kind; a deed that came too late has a name of its own."""

    async def reset(self, key: str) -> bool:
        """Reset the newest run of a generation, ended or not, to one of its workflow tasks; whether that was done.

        Signals and updates that came later are applied again, as Temporal does by default.
        """
        try:
            return await self._reset(key)
        except RPCError as error:
            if error.status not in _GONE:
                raise
            self.did["refused to reset a workflow"] += 1
            return False

    async def _reset(self, key: str) -> bool:
        handle = self._temporal.get_workflow_handle(workflow_id(key))
        description = await handle.describe()
        handle = self._temporal.get_workflow_handle(workflow_id(key), run_id=description.run_id)
        points, decided = [], False
        async for event in handle.fetch_history_events():
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                points.append(event.event_id)
            decided |= event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
        if not points:
            self.did["found nothing to reset to yet"] += 1
            return False
        await self._temporal.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=self._temporal.namespace,
                workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=description.run_id),
                reason="chaos",
                workflow_task_finish_event_id=self._chance.choice(points),
                request_id=uuid.uuid4().hex,
                reset_reapply_type=ResetReapplyType.RESET_REAPPLY_TYPE_ALL_ELIGIBLE,
                identity=_IDENTITY,
            )
        )
        state = "that ended" if description.close_time else "that decided" if decided else "under way"
        self.did[f"reset a workflow {state}"] += 1
        return True

    async def pause_activity(self, keys: list[str], seconds: float) -> None:
        """Pause an activity that is under way or waits for its next attempt, and let it go on after a while."""
        found = await self._pending(keys)
        if found is None:
            return
        execution, activity_id, name = found
        service, namespace = self._temporal.workflow_service, self._temporal.namespace
        try:
            await service.pause_activity(
                PauseActivityRequest(
                    namespace=namespace, execution=execution, id=activity_id, identity=_IDENTITY, reason="chaos"
                )
            )
            self.did[f"paused {name}"] += 1
        except RPCError as error:
            if error.status not in _GONE:
                raise
            self.did["too late to pause an activity"] += 1
            return
        await asyncio.sleep(seconds)
        request = UnpauseActivityRequest(
            namespace=namespace,
            execution=execution,
            id=activity_id,
            identity=_IDENTITY,
            reset_attempts=self._chance.random() < 0.5,
            reset_heartbeat=self._chance.random() < 0.5,
        )
        for _ in range(_TRIES):
            try:
                await service.unpause_activity(request)
            except RPCError as error:
                if error.status in _GONE:
                    return
                await asyncio.sleep(_TRY_SECONDS)
            else:
                return

    async def reset_activity(self, keys: list[str]) -> None:
        """Let an activity begin again at attempt 1, sometimes without what its heartbeats told."""
        found = await self._pending(keys)
        if found is None:
            return
        execution, activity_id, name = found
        try:
            await self._temporal.workflow_service.reset_activity(
                ResetActivityRequest(
                    namespace=self._temporal.namespace,
                    execution=execution,
                    id=activity_id,
                    identity=_IDENTITY,
                    reset_heartbeat=self._chance.random() < 0.7,
                )
            )
            self.did[f"reset {name}"] += 1
        except RPCError as error:
            if error.status not in _GONE:
                raise
            self.did["too late to reset an activity"] += 1

    async def _pending(self, keys: list[str]) -> tuple[WorkflowExecution, str, str] | None:
        """A pending activity of one of these generations; None where none has any."""
        self._chance.shuffle(keys)
        for key in keys:
            try:
                described = await self._temporal.get_workflow_handle(workflow_id(key)).describe()
            except RPCError as error:
                if error.status not in _GONE:
                    raise
                continue
            if pending := list(described.raw_description.pending_activities):
                one = self._chance.choice(pending)
                execution = WorkflowExecution(workflow_id=described.id, run_id=described.run_id)
                return execution, one.activity_id, one.activity_type.name
        self.did["found no activity to disturb"] += 1
        return None

    async def make_current(self, build: str) -> None:
        """`temporal worker deployment set-current-version`; a server that has just started needs some tries."""
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace=self._temporal.namespace,
            deployment_name=DEPLOYMENT,
            build_id=build,
            identity=_IDENTITY,
            ignore_missing_task_queues=True,
            # A worker that is being killed again and again is not always polling.
            allow_no_pollers=True,
        )
        for left in reversed(range(_TRIES)):
            try:
                await self._temporal.workflow_service.set_worker_deployment_current_version(request)
            except RPCError:
                if not left:
                    raise
                await asyncio.sleep(_TRY_SECONDS)
            else:
                self.did[f"made build {build} current"] += 1
                return
