"""Faults of the connection itself, made on uvicorn's own transport, so that the client's socket really sees them."""

import asyncio
import socket
import struct
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_TRANSPORT = "simulator.transport"


class TransportProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which also hands the transport to the application (in the scope's `state`)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Remember the transport for the requests of this connection."""
        super().connection_made(transport)
        self.app_state = {_TRANSPORT: transport}


class Origin:
    """One application on one port, which can be closed and opened again on the same port."""

    def __init__(self, app: Any) -> None:
        # A long keep-alive: a server that closes idle connections would be a fault nobody asked for.
        self._config = Config(
            app, lifespan="off", log_config=None, timeout_keep_alive=75, ws="none", http=TransportProtocol
        )
        self._config.load()
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._address = ("127.0.0.1", 0)

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host, port = self._address
        return f"http://{host}:{port}"

    async def open(self, host: str = "", port: int = 0) -> None:
        """Listen; without arguments, where it listened before."""
        address = (host, port) if host else self._address
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, *address, reuse_address=True)
        self._address = self._server.sockets[0].getsockname()[:2]

    async def reopen(self) -> None:
        """Listen again where it listened before, unless it still does."""
        if self._server is None:
            await self.open()

    def _protocol(self) -> TransportProtocol:
        return TransportProtocol(self._config, self._state, {})

    async def close(self) -> None:
        """Stop listening, abort every connection and end every request still being answered."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server = None


class WireFault(Response):
    """An ASGI response that writes raw bytes and then ends the connection in a chosen way."""

    def __init__(self, failed: str, raw: bytes = b"") -> None:
        """`ending` is `reset`, `close` or `hang`; `raw` is sent before it."""
        super().__init__(status_code=0)
        self._failed = failed
        self._raw = raw

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        """Play the fault; returns once the connection is gone."""
        transport: asyncio.Transport = scope["state"][_TRANSPORT]
        if self._raw:
            transport.write(self._raw)
            # What is still buffered would be lost with a RST.
            while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110 (transports offer no event)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # the client reads what was sent before it sees the end
        if self._failed == "reset":
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        elif self._failed == "close":
            transport.close()
        await gone(receive)


async def gone(receive: Receive) -> None:
    """Wait until the client has gone (or the server stops)."""
    while (await receive())["type"] != "http.disconnect":
        pass


def head(status: int, headers: dict[str, str]) -> bytes:
    """The raw head of an HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def half_answer(status: int, headers: dict[str, str], body: bytes) -> WireFault:
    """A whole head with the true Content-Length and half of the body, then the end."""
    raw = head(status, {**headers, "content-length": str(len(body))}) + body[: len(body) // 2]
    return WireFault("close", raw)
