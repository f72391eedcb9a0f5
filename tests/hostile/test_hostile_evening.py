"""Hostile callers and a gateway that answers with attacks, as real processes; beside them a healthy generation."""

import asyncio
import base64
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.service import RPCError

from longtake.client import VideoClient
from longtake.temporal.connection import connect
from longtake.temporal.names import TASK_QUEUE, WORKFLOW_TYPE
from tests.end_to_end.processes import API_KEY, MARK, SimulatorProcess, Site, environment, request, request_json
from tests.hostile.fuzzing.targets import seeds
from tests.hostile.test_hostile_answers import bomb
from tests.hostile.test_hostile_images import BOMBS
from tests.longtake.delivery.test_mp4 import hostile_indexes

PATIENCE_SECONDS = 90
"""A healthy generation takes some 10 s; held up by an attack it took minutes, or never came."""
_HOSTILE_TASK = "task_hostile_"
_VIDEO = b"/video-of-a-hostile-task"


def answer(body: bytes, *headers: str) -> bytes:
    head = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def attacks() -> list[bytes]:
    return [
        answer(bomb(2), "Content-Encoding: gzip, gzip"),
        answer(bomb(), "Content-Encoding: gzip"),
        answer(json.dumps({"://" * 1_300_000: 1}).encode()),
        answer(b"[" * 4_000_000),
        answer(json.dumps({"status": "FAILURE", "fail_reason": "\x1b[2Jdone: full 15.0 s\r\n" * 1000}).encode()),
        answer(b'{"task_id": ' + b"9" * 3_900_000 + b"}"),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        *seeds("query"),
        *seeds("submission"),
    ]


def videos() -> list[bytes]:
    """What the links of hostile generations lead to."""
    return [
        *(answer(content) for content in hostile_indexes().values()),
        *(answer(content) for content in seeds("mp4")),
        *seeds("download"),
    ]


@contextlib.asynccontextmanager
async def gateway_with_attacks(simulator: str, served: list[str]) -> AsyncIterator[str]:
    """Hands everything on to the simulator but what is about hostile generations: the attacks answer that, in turn.

    Every second hostile task that it accepts is completed at once, so that its video is asked for.

    Args:
        simulator: Where the simulator is.
        served: Gets a name of each attack that was served.
    """
    answers, clips = itertools.cycle(attacks()), itertools.cycle(videos())
    numbers = itertools.count()
    there = urlsplit(simulator)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            if b"accepted hostile" in body:
                writer.write(answer(json.dumps({"task_id": f"{_HOSTILE_TASK}{next(numbers)}"}).encode()))
            elif _VIDEO in head.split(b"\r\n")[0]:
                served.append("video")
                writer.write(next(clips))
            elif completed := re.match(rb"GET /v1/videos/(" + _HOSTILE_TASK.encode() + rb"[0-9]*[02468]) ", head):
                writer.write(answer(json.dumps(completed_task(completed[1].decode(), url)).encode()))
            elif b"hostile" in body or _HOSTILE_TASK.encode() in head.split(b"\r\n")[0]:
                served.append("answer")
                writer.write(next(answers))
            else:
                assert there.hostname
                up, down = await asyncio.open_connection(there.hostname, there.port)
                down.write(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n" + body)
                while chunk := await up.read(65_536):
                    writer.write(chunk)
                down.close()
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield url


def completed_task(task_id: str, url: str) -> dict[str, Any]:
    record = {"status": "completed", "video_url": f"{url}{_VIDEO.decode()}/{task_id}"}
    return {"task_id": task_id, "status": "SUCCESS", "progress": "100%", "data": record}


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[SimulatorProcess]:
    process = SimulatorProcess(tmp_path / "simulator", tmp_path / "clips")
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.stop()


def hostile_requests() -> Iterator[dict[str, Any]]:
    for number in range(6):
        yield request_json(f"a hostile answer {number}")
        yield request_json(f"an accepted hostile task {number}")
    yield {**request_json("hostile"), **{f"field {number} {'x' * 300}": number for number in range(5_200)}}
    yield {**request_json("hostile"), "images": [{"uri": ""}] * 60_000}
    for image in BOMBS.values():
        if len(image) < 700_000:
            uri = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
            yield {**request_json("hostile"), "images": [{"uri": uri}]}


async def flood(client: Client, workflow_id: str) -> None:
    """Asks for looks, more than anybody needs."""
    handle = client.get_workflow_handle(workflow_id)
    for _ in range(100):
        with contextlib.suppress(WorkflowUpdateFailedError, RPCError):
            await handle.execute_update("poll_now")


@pytest.mark.system
@pytest.mark.timeout(240)
async def test_a_healthy_generation_among_attacks_is_delivered(simulator: SimulatorProcess, tmp_path: Path) -> None:
    served: list[str] = []
    async with gateway_with_attacks(simulator.url, served) as url:
        site = Site(
            tmp_path / "site",
            environment(
                LONGTAKE_GATEWAY_URL=url,
                LONGTAKE_GATEWAY_API_KEY=API_KEY,
                LONGTAKE_DATA_DIR=str(tmp_path / "not-used"),
                LONGTAKE_SUBMIT_TIMEOUT_SECONDS="4",
            ),
        )
        try:
            videos: VideoClient = await site.start()
            client = await connect(site.server.address)
            for number, hostile in enumerate(hostile_requests()):
                await client.start_workflow(WORKFLOW_TYPE, hostile, id=f"video-hostile-{number}", task_queue=TASK_QUEUE)
            floods = [asyncio.create_task(flood(client, f"video-hostile-{number}")) for number in (1, 3, 5)]
            prompt = f"a {MARK} [sim:ok,label=healthy]"
            await videos.start("healthy", request(prompt))
            async with asyncio.timeout(PATIENCE_SECONDS):
                result = await videos.result("healthy")
            for one in floods:
                one.cancel()
            assert (result.outcome, round(result.video.duration_seconds)) == ("full", 15)
            assert Path(urlsplit(result.video.uri).path).stat().st_size == result.video.bytes
            assert simulator.paid(prompt) == 1
            assert site.worker.ready()
            assert {"answer", "video"} <= set(served)
        finally:
            site.stop()
