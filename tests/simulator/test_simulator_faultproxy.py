import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from simulator.faultproxy import Fault, FaultProxy

BODY = b"x" * 100_000


@pytest.fixture
async def target() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + BODY)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=0.5) as http:
        return await http.get(url)


async def test_it_passes_what_it_is_given(target: int) -> None:
    async with FaultProxy("127.0.0.1", target) as proxy:
        assert (await get(proxy.url)).content == BODY
        assert proxy.counts == {"pass": 1}


@pytest.mark.parametrize(
    ("fault", "errors"),
    [
        (Fault("cut_answer", after_bytes=5000), (httpx.RemoteProtocolError,)),
        (Fault("cut_request", after_bytes=10), (httpx.RemoteProtocolError,)),
        (Fault("reset"), (httpx.ReadError,)),
        (Fault("reset", after_bytes=5000), (httpx.ReadError,)),
        (Fault("refuse"), (httpx.ReadError, httpx.WriteError, httpx.ConnectError)),
        (Fault("black_hole"), (httpx.ReadTimeout,)),
        (Fault("latency", seconds=5), (httpx.ReadTimeout,)),
    ],
    ids=lambda value: f"{value.kind}-{value.after_bytes}" if isinstance(value, Fault) else "",
)
async def test_each_fault_is_seen_and_counted(target: int, fault: Fault, errors: tuple[type[Exception], ...]) -> None:
    async with FaultProxy("127.0.0.1", target) as proxy:
        proxy.faults = [fault]
        with pytest.raises(errors):
            await get(proxy.url)
        proxy.faults = []
        assert (await get(proxy.url)).content == BODY
        assert proxy.counts == {fault.kind: 1, "pass": 1}


async def test_the_same_seed_draws_the_same_faults(target: int) -> None:
    async def run(seed: int) -> list[bool]:
        outcome = []
        async with FaultProxy("127.0.0.1", target, seed=seed) as proxy:
            proxy.faults = [Fault("reset", probability=0.5)]
            for _ in range(12):
                before = proxy.counts["reset"]
                with contextlib.suppress(httpx.ReadError):
                    await get(proxy.url)
                outcome.append(proxy.counts["reset"] > before)
        return outcome

    first = await run(7)
    assert first == await run(7)
    assert set(first) == {True, False}


async def test_open_connections_can_be_dropped(target: int) -> None:
    async with FaultProxy("127.0.0.1", target) as proxy:
        proxy.faults = [Fault("black_hole")]
        request = asyncio.create_task(get(proxy.url))
        while not proxy.counts:  # noqa: ASYNC110 (a plain counter has no event)
            await asyncio.sleep(0.01)
        await proxy.drop_connections()
        with pytest.raises(httpx.TransportError):
            await request
