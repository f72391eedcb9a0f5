"""A gateway whose answers are made to stop the worker."""

import asyncio
import json
import re
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import pytest
from pydantic import SecretStr

from longtake.gateway import wire
from longtake.gateway.client import GatewayClient, SubmissionForm
from longtake.gateway.errors import InvalidResponse, ResponseLost

FORM = SubmissionForm(model="veo_3_1-fast-remix", prompt="a cat", prompt_extend="it jumps")
RUNNING = {"task_id": "task_1", "status": "IN_PROGRESS", "progress": "30%", "data": {"status": "processing"}}


def gzip(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(content) + packer.flush()


@cache
def bomb(times: int = 1) -> bytes:
    """200 MB of nothing, compressed so many times."""
    return gzip(bomb(times - 1) if times > 1 else bytes(200 * 2**20))


@asynccontextmanager
async def gateway(body: bytes, coding: str = "identity", status: str = "200 OK") -> AsyncIterator[GatewayClient]:
    """A client of a server that answers everything with this; the status line may bring more headers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        if sent := re.search(rb"content-length: (\d+)", head, re.IGNORECASE):
            await reader.readexactly(int(sent[1]))
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nContent-Encoding: {coding}\r\n\r\n".encode()
        writer.write(head + body)
        await writer.drain()
        writer.close()

    asked: list[bytes] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, GatewayClient(base_url=url, api_keys=[SecretStr("sk-1234567890")]) as client:
        yield client
        assert all(b"accept-encoding: identity" in head.lower() for head in asked)


async def longest_stall(stop: asyncio.Event) -> float:
    """For how long the event loop stood still at most, in seconds."""
    longest = 0.0
    while not stop.is_set():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - before)
    return longest


@pytest.mark.parametrize(
    ("coding", "times"), [("gzip", 1), ("gzip, gzip", 2), ("gzip, gzip, gzip", 3), ("br", 1), ("deflate", 1)]
)
@pytest.mark.parametrize("paid", [False, True])
async def test_a_compressed_answer_takes_bounded_memory(coding: str, times: int, paid: bool) -> None:
    body = bomb(times)
    stop = asyncio.Event()
    watching = asyncio.create_task(longest_stall(stop))

    async def before_send() -> None:
        pass

    async with gateway(body, coding) as client:
        with pytest.raises(InvalidResponse):
            await (client.submit(FORM, before_send=before_send) if paid else client.query("task_1"))
    stop.set()
    assert await watching < 2


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate"])
async def test_a_gateway_that_compresses_unasked_is_understood(coding: str) -> None:
    body = json.dumps(RUNNING).encode()
    async with gateway(zlib.compress(body) if coding == "deflate" else gzip(body), coding) as client:
        assert (await client.query("task_1")).task_id == "task_1"


@pytest.mark.parametrize(("coding", "shown"), [(FORM.prompt, "unknown"), ("sk-1234567890", "unknown"), ("br", "'br'")])
async def test_of_a_coding_only_its_name_is_repeated(coding: str, shown: str) -> None:
    async def before_send() -> None:
        pass

    async with gateway(b"", coding) as client:
        for ask in (client.query("task_1"), client.submit(FORM, before_send=before_send)):
            with pytest.raises(InvalidResponse, match=shown) as caught:
                await ask
            assert coding == "br" or coding not in f"{caught.value} {vars(caught.value)}"


@pytest.mark.parametrize("location", ["htts:p//other.example/v1/videos", "http://[::1", "//:99999"])
async def test_a_redirect_to_no_url_is_an_answer_that_nobody_can_read(location: str) -> None:
    async def before_send() -> None:
        pass

    async with gateway(b"", status=f"301 Moved\r\nLocation: {location}") as client:
        for ask in (client.query("task_1"), client.list_models(), client.submit(FORM, before_send=before_send)):
            with pytest.raises((InvalidResponse, ResponseLost)):
                await ask


@pytest.mark.parametrize("paid", [False, True])
@pytest.mark.parametrize(
    "status", [f"200 OK\r\nX\x00: {FORM.prompt}", f"x{FORM.prompt}", f"200 OK\r\nTransfer-Encoding: {FORM.prompt}"]
)
async def test_words_in_a_broken_head_are_not_repeated(status: str, paid: bool) -> None:
    async def before_send() -> None:
        pass

    async with gateway(b"", status=status) as client:
        with pytest.raises(ResponseLost) as caught:
            await (client.submit(FORM, before_send=before_send) if paid else client.query("task_1"))
        assert FORM.prompt not in f"{caught.value} {vars(caught.value)}"
        assert "RemoteProtocolError" in str(caught.value)


WORST = {
    "links without an end": "://" * 1_300_000,
    "logins without an end": "://a" * 1_000_000,
    "queries without an end": "?a=" * 1_300_000,
    "images without an end": "data:a/a;base64," * 250_000,
    "data without a type": "data:" * 800_000,
    "bearers": "bearer " * 600_000,
    "keys": "sk-" * 1_300_000,
    "a title that does not begin": "<title" * 700_000,
    "spaces": " " * 4_000_000,
}


@pytest.mark.parametrize("name", WORST)
def test_redaction_is_bounded_whatever_it_reads(name: str) -> None:
    text = WORST[name]
    began = time.process_time()
    for body in ({text: 1}, {"error": {"message": text, "code": text, "type": text}}, {"message": text}, text):
        content = json.dumps(body).encode()
        wire.read_error(500, {}, content, secrets=["a secret of ours " * 10])
        wire.read_error(500, {"content-type": "text/html"}, text.encode())
        with pytest.raises(InvalidResponse):
            wire.read_submission(body, status=200, request_id=None)
    wire.redact(text, secrets=[text[:40]])
    # Some megabytes of JSON are parsed here a dozen times; the quadratic patterns took 39 s for one text.
    assert time.process_time() - began < 5


def test_a_login_that_the_cut_tears_is_not_shown() -> None:
    for padding in range(3_400, 4_000, 7):
        assert "hunter2" not in wire.redact(
            "x" * padding + " https://user:hunter2hunter2@gateway.example/" + "y" * 5_000
        )
