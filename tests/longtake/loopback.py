"""Names and proxies on loopback: what a machine behind a company's proxy, or a hostile name server, sees."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass
class Names:
    """A name server: each name has a list of answers, the last of which goes on for ever. Literals resolve as ever."""

    answers: Mapping[str, list[Sequence[str]]]
    asked: list[str] = field(default_factory=list)
    _real: Callable[..., Any] = socket.getaddrinfo

    def getaddrinfo(self, host: str | bytes | None, port: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host or ""
        if name not in self.answers:
            flags = options.pop("flags", 0) | socket.AI_NUMERICHOST
            return self._real(name, port, *args, flags=flags, **options)
        self.asked.append(name)
        left = self.answers[name]
        addresses = left.pop(0) if len(left) > 1 else left[0]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, int(port))) for address in addresses
        ]


@dataclass
class Proxy:
    """A forward proxy that tunnels `CONNECT` and passes plain requests on; it alone knows where the names lead."""

    places: Mapping[str, str]
    """`host:port` as it is asked for, and the address and port on loopback behind it."""
    credentials: str | None = None
    """What must stand in `Proxy-Authorization`."""
    refusal: str | None = None
    """A status line for every request."""
    asked: list[str] = field(default_factory=list)
    """The targets, in order: `CONNECT host:port`, or `GET http://…`."""
    url: str = ""

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, EOFError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split("\r\n", 1)[0].split(" ")
            self.asked.append(f"{method} {target}")
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            if self.refusal or (self.credentials and headers.get("proxy-authorization") != self.credentials.lower()):
                status = self.refusal or "407 Proxy Authentication Required"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                return
            await self._pass_on(method, target, head, reader, writer)

    async def _pass_on(
        self, method: str, target: str, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        parts = urlsplit(target if method != "CONNECT" else f"//{target}")
        asked_for = f"{parts.hostname}:{parts.port or 80}"
        host, _, port = self.places.get(asked_for, asked_for).rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            there_writer.write(head.replace(target, path or "/", 1).encode())
        with contextlib.closing(there_writer):
            async with asyncio.TaskGroup() as ways:
                back = ways.create_task(_copy(there_reader, writer))
                ways.create_task(_copy(reader, there_writer, until=back))


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: asyncio.Task[None] | None = None
) -> None:
    with contextlib.suppress(ConnectionError):
        reading = asyncio.ensure_future(reader.read(65536))
        while True:
            await asyncio.wait([reading, *([until] if until else [])], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() or not (data := reading.result()):
                reading.cancel()
                break
            writer.write(data)
            await writer.drain()
            reading = asyncio.ensure_future(reader.read(65536))
    if until is None:
        writer.close()
