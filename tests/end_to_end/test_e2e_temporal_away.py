"""Callers while Temporal is away: they wait for it, and get one typed error where it does not come back."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from longtake.client import KeyInUse, NoWorker, TemporalUnavailable, VideoClient
from longtake.temporal.connection import connect
from longtake.temporal.names import workflow_id
from tests.end_to_end.processes import DevServer, request

AWAY_SECONDS = 2.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DevServer]:
    server = DevServer(tmp_path / "temporal")
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def while_away(server: DevServer, call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call gives that is made while the server is killed, and started again after a while."""
    server.stop(signal.SIGKILL)
    task: asyncio.Future[Any] = asyncio.ensure_future(call())
    await asyncio.sleep(AWAY_SECONDS)
    assert not task.done()
    server.start()
    return await asyncio.wait_for(task, 40)


async def test_calls_wait_for_a_temporal_that_is_restarted(server: DevServer) -> None:
    await asyncio.to_thread(server.wait_until_ready)
    client = VideoClient(await connect(server.address))
    run_id, started = await while_away(server, lambda: client.start("order-1", request("a")))
    assert started
    waiting = asyncio.create_task(client.result("order-1"))
    assert (await while_away(server, lambda: client.start("order-1", request("a")))) == (run_id, False)
    assert [execution.key for execution in await while_away(server, lambda: _listed(client))] == ["order-1"]
    assert not waiting.done(), "who waits for the result waits on"
    waiting.cancel()
    snapshot = await client.snapshot("order-1")
    assert (snapshot.execution.run_id, snapshot.running, snapshot.status) == (run_id, True, None)
    with pytest.raises(NoWorker):
        await client.status("order-1")


async def _listed(client: VideoClient) -> list[Any]:
    return [execution async for execution in client.generations()]


async def test_one_typed_error_where_it_does_not_come_back(server: DevServer) -> None:
    await asyncio.to_thread(server.wait_until_ready)
    client = VideoClient(await connect(server.address), patience=timedelta(seconds=2))
    await client.start("order-1", request("a"))
    server.stop(signal.SIGKILL)
    calls = (
        client.start("order-2", request("a")),
        client.status("order-1"),
        client.snapshot("order-1"),
        client.result("order-1"),
        client.cancel("order-1"),
        client.poll_now("order-1"),
        _listed(client),
    )
    async with asyncio.timeout(90):  # the SDK tries for ten seconds before it says anything
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [TemporalUnavailable] * len(calls)


async def test_another_request_does_not_take_a_key_that_was_perhaps_paid(server: DevServer) -> None:
    await asyncio.to_thread(server.wait_until_ready)
    temporal = await connect(server.address)
    client = VideoClient(temporal)
    await client.start("order-1", request("a"))
    await temporal.get_workflow_handle(workflow_id("order-1")).terminate()
    with pytest.raises(KeyInUse):
        await client.start("order-1", request("another"))
    _, started = await client.start("order-1", request("a"))
    assert started
