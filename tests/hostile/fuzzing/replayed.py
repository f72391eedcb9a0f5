"""Lets our real HTTP clients read raw bytes as the answers of a server, by the parser that they use, with no socket."""

import ssl
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import Any

import httpcore
import httpx
from httpcore import AsyncNetworkBackend, AsyncNetworkStream

CUT = b"\n--8<--\n"
"""Between the parts of an input that has several."""


def parts(data: bytes, most: int) -> list[bytes]:
    return data.split(CUT, most - 1)


# Never used; httpcore would make one, which takes 30 ms, for each connection.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Stream(AsyncNetworkStream):
    def __init__(self, answer: bytes, host: str, sent: list[tuple[str, bytes]]) -> None:
        # In two pieces, so that nothing counts on an answer that comes at once.
        middle = len(answer) // 2
        self._pieces = [piece for piece in (answer[:middle], answer[middle:]) if piece]
        self._host = host
        self._sent = sent

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's name
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > max_bytes:
            self._pieces.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's name
        self._sent.append((self._host, buffer))

    async def aclose(self) -> None:
        self._pieces.clear()

    async def start_tls(self, *_: Any, **__: Any) -> AsyncNetworkStream:
        return self

    def get_extra_info(self, info: str) -> Any:
        return None


class Replay(AsyncNetworkBackend):
    """Each connection gets the next of these answers, and after the last one they begin anew."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        """To which host, and what."""
        self._answers: Iterable[bytes] = iter(())
        self._hosts = 0

    def give(self, answers: Sequence[bytes]) -> None:
        self.sent.clear()
        self._answers = islice(cycle(answers), 100)

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> AsyncNetworkStream:
        answer = next(iter(self._answers), None)
        if answer is None:
            raise httpcore.ConnectError("no more answers")
        return _Stream(answer, host, self.sent)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> AsyncNetworkStream:
        raise httpcore.ConnectError("there is none")

    async def sleep(self, seconds: float) -> None:
        pass

    def transport(self) -> httpx.AsyncHTTPTransport:
        """httpx's own transport, which connects to these answers."""
        transport = httpx.AsyncHTTPTransport(verify=False, trust_env=False)
        transport._pool = httpcore.AsyncConnectionPool(
            ssl_context=_TLS, network_backend=self, max_keepalive_connections=0
        )
        return transport
