"""A TCP proxy that misbehaves on purpose, for tests and chaos runs."""

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

FaultKind = Literal["pass", "cut_request", "cut_answer", "reset", "refuse", "black_hole", "latency"]

_CHUNK_BYTES = 16 * 1024


@dataclass(frozen=True)
class Fault:
    """What happens to a connection.

    Attributes:
        kind: `pass` lets it through; `cut_request` and `cut_answer` close it after `after_bytes` in that direction;
            `reset` sends a RST after `after_bytes` of the answer (0: as soon as the request's first bytes came);
            `refuse` closes it as it is accepted; `black_hole` accepts, reads and never answers;
            `latency` delays every piece by `seconds`.
        after_bytes: For the cuts and the reset.
        seconds: For the latency, real seconds.
        probability: The share of connections it happens to; the others pass.
    """

    kind: FaultKind = "pass"
    after_bytes: int = 0
    seconds: float = 0.0
    probability: float = 1.0


class _CutError(Exception):
    """The byte limit of one direction is reached."""


class FaultProxy:
    """Forwards a port of 127.0.0.1 to a target; `faults` may be changed at any time and holds for new connections.

    For each new connection the first fault whose probability falls is played; with the same seed and the same
    order of connections the same ones fall.

    Example:
        async with FaultProxy("127.0.0.1", 8080, seed=7) as proxy:
            proxy.faults = [Fault("reset", probability=0.2)]
            ...
            proxy.counts["reset"]
    """

    def __init__(self, target_host: str, target_port: int, *, port: int = 0, seed: int = 0) -> None:
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self._target = (target_host, target_port)
        self._port = port
        self._random = random.Random(seed)  # noqa: S311 (faults want repeatable dice, not secret ones)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        await self.drop_connections()

    async def drop_connections(self) -> None:
        """Cut every connection that is open now."""
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _fall(self) -> Fault:
        for fault in self.faults:
            if self._random.random() < fault.probability:
                return fault
        return Fault()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: the stream server would log the cancellation of `drop_connections` as an error.
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._fall()
        self.counts[fault.kind] += 1
        try:
            with contextlib.suppress(OSError):
                await self._play(fault, reader, writer)
        finally:
            writer.transport.abort()

    async def _play(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fault.kind == "refuse":
            _reset(writer)
            return
        if fault.kind == "black_hole":
            while await reader.read(_CHUNK_BYTES):
                pass
            return
        if fault.kind == "reset" and fault.after_bytes == 0:
            await reader.read(_CHUNK_BYTES)
            _reset(writer)
            return
        await self._forward(fault, reader, writer)

    async def _forward(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(*self._target)
        request_limit = fault.after_bytes if fault.kind == "cut_request" else None
        answer_limit = fault.after_bytes if fault.kind in {"cut_answer", "reset"} else None
        delay = fault.seconds if fault.kind == "latency" else 0.0
        directions = {
            asyncio.ensure_future(_pump(reader, target_writer, request_limit, delay)),
            asyncio.ensure_future(_pump(target_reader, writer, answer_limit, delay)),
        }
        try:
            done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_EXCEPTION)
            cut = any(isinstance(direction.exception(), _CutError) for direction in done)
            if cut and fault.kind == "reset":
                _reset(writer)
            elif cut:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            target_writer.transport.abort()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None, delay_seconds: float
) -> None:
    passed = 0
    while data := await reader.read(_CHUNK_BYTES):
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        if limit is not None and passed + len(data) >= limit:
            writer.write(data[: limit - passed])
            await writer.drain()
            raise _CutError
        passed += len(data)
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a RST instead of a FIN."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
