"""Temporal's own command line: what anybody who does not have our code can do."""

import asyncio
import json
from typing import Any

from cli.embedded import temporal_binary
from longtake.temporal import TASK_QUEUE, WORKFLOW_TYPE, workflow_id


class TemporalCli:
    """`temporal workflow …` against one server."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def start(self, key: str, request: object) -> None:
        """Start a generation with plain JSON; with None without any input."""
        given = [] if request is None else ["--input", json.dumps(request)]
        await self._run("start", "--type", WORKFLOW_TYPE, "--task-queue", TASK_QUEUE, *self._id(key), *given)

    async def query(self, key: str, name: str) -> Any:
        answer = json.loads(await self._run("query", "--type", name, *self._id(key), "--output", "json"))
        return answer["queryResult"][0] if isinstance(answer["queryResult"], list) else answer["queryResult"]

    async def update(self, key: str, name: str, argument: object) -> None:
        await self._run("update", "execute", "--name", name, *self._id(key), "--input", json.dumps(argument))

    async def history(self, key: str) -> str:
        """The whole history as JSON."""
        return await self._run("show", *self._id(key), "--output", "json")

    def _id(self, key: str) -> list[str]:
        return ["--workflow-id", workflow_id(key)]

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
            "workflow",
            *arguments,
            "--address",
            self._address,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()
