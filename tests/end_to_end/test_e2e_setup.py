"""A namespace without the search attributes: a worker says so and takes nothing; `starter.py setup` mends it."""

import asyncio
import json
from pathlib import Path

import pytest

from longtake.temporal.search_attributes import SEARCH_ATTRIBUTE_KEYS
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    DevServer,
    SimulatorProcess,
    Site,
    Starter,
    WorkerProcess,
    environment,
    eventually,
    flags,
    request,
)

pytestmark = pytest.mark.system


async def test_two_workers_that_share_the_work(tmp_path: Path, simulator: SimulatorProcess) -> None:
    site = Site(tmp_path, environment(LONGTAKE_GATEWAY_URL=simulator.url, LONGTAKE_GATEWAY_API_KEY=API_KEY))
    general = WorkerProcess(tmp_path / "general", site.env, "--only", "general")
    submission = WorkerProcess(tmp_path / "submission", site.env, "--only", "submission")
    prompt = f"shared {MARK} [sim:ok,label=shared]"
    try:
        await site.start_server()
        client = await site.client()
        await general.restart()
        await client.start("shared", request(prompt))
        while (await client.snapshot("shared")).execution.stage != "submitting":  # noqa: ASYNC110 - a server is asked
            await asyncio.sleep(0.2)
        assert simulator.posts(prompt) == []
        await submission.restart()
        assert (await client.result("shared")).outcome == "full"
        assert simulator.paid(prompt) == 1
    finally:
        for worker in (general, submission):
            worker.stop()
        site.stop()


async def test_a_namespace_is_set_up_once_and_for_all(tmp_path: Path, simulator: SimulatorProcess) -> None:
    server = DevServer(tmp_path / "temporal", attributes=False)
    server.start()
    env = environment(
        TEMPORAL_ADDRESS=server.address,
        LONGTAKE_GATEWAY_URL=simulator.url,
        LONGTAKE_GATEWAY_API_KEY=API_KEY,
        LONGTAKE_STORE_URL=(tmp_path / "store").as_uri(),
    )
    starter, worker = Starter(env), WorkerProcess(tmp_path / "worker", env)
    try:
        server.wait_until_ready()
        worker.start()
        assert await worker.ended() == 2
        for mention in ("lacks the search attributes", "VideoStage", "VideoPaid", "starter.py setup"):
            assert mention in worker.log()

        first, second = await starter("setup"), await starter("setup")
        assert (first.code, second.code) == (0, 0)
        assert all(key.name in first.out for key in SEARCH_ATTRIBUTE_KEYS)
        (ledger,) = [json.loads(path.read_text())["identity"] for path in (tmp_path / "store").glob("submit/identity")]
        assert (ledger in first.out, ledger in second.out) == (True, True)
        assert not any(key.name in second.out for key in SEARCH_ATTRIBUTE_KEYS)

        await worker.restart()
        await eventually(worker.ready, "the worker polls")
        made = await starter("generate", *flags("set up [sim:seconds=30]"), "--key", "set-up", "--json")
        assert made.json()["outcome"] == "full"
    finally:
        starter.close()
        worker.stop()
        server.stop()


async def test_an_embedded_server_of_an_older_version_gets_what_it_lacks(
    tmp_path: Path, simulator: SimulatorProcess
) -> None:
    data = tmp_path / "data"
    older = DevServer(data, attributes=False)
    older.start()
    older.wait_until_ready()
    older.stop()
    gateway = {"LONGTAKE_GATEWAY_URL": simulator.url, "LONGTAKE_GATEWAY_API_KEY": API_KEY}
    starter = Starter(environment(LONGTAKE_DATA_DIR=str(data), **gateway))
    try:
        made = await starter("generate", *flags("older [sim:seconds=30]"), "--key", "older", "--json")
        assert made.json()["outcome"] == "full"
    finally:
        starter.close()
