"""Temporal's own command line: what anybody who does not have our code can do."""

import asyncio
import json
from typing import Any

from cli.embedded import temporal_binary
from longtake.temporal.names import TASK_QUEUE, WORKFLOW_TYPE, workflow_id


class TemporalCli:
    """`temporal workflow …` and `temporal activity …` against one server."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def start(self, key: str, request: object) -> None:
        """Start a generation with plain JSON; with None without any input."""
        given = [] if request is None else ["--input", json.dumps(request)]
        await self._workflow("start", "--type", WORKFLOW_TYPE, "--task-queue", TASK_QUEUE, *self._id(key), *given)

    async def query(self, key: str, name: str) -> Any:
        answer = json.loads(await self._workflow("query", "--type", name, *self._id(key), "--output", "json"))
        return answer["queryResult"][0] if isinstance(answer["queryResult"], list) else answer["queryResult"]

    async def update(self, key: str, name: str, argument: object) -> None:
        await self._workflow("update", "execute", "--name", name, *self._id(key), "--input", json.dumps(argument))

    async def history(self, key: str) -> str:
        """The whole history as JSON."""
        return await self._workflow("show", *self._id(key), "--output", "json")

    async def terminate(self, key: str) -> None:
        await self._workflow("terminate", *self._id(key), "--reason", "a test")

    async def reset(self, key: str) -> None:
        """Back to the first workflow task: whatever has been submitted since is forgotten."""
        await self._workflow("reset", *self._id(key), "--type", "FirstWorkflowTask", "--reason", "a test")

    async def activity(self, act: str, key: str, activity_id: str, *flags: str) -> None:
        """`reset`, `pause`, `unpause` or `update-options` of one activity of a generation."""
        await self._run("activity", act, *self._id(key), "--activity-id", activity_id, *flags)

    def _id(self, key: str) -> list[str]:
        return ["--workflow-id", workflow_id(key)]

    async def _workflow(self, *arguments: str) -> str:
        return await self._run("workflow", *arguments)

    async def _run(self, *arguments: str) -> str:
        while True:
            code, out, err = await self._once(*arguments)
            if not code:
                return out
            # What the SDKs try again by themselves.
            assert "Workflow is busy" in err, err

    async def _once(self, *arguments: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            temporal_binary(),
            *arguments,
            "--address",
            self._address,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()
