"""The client against a real server on loopback that can also reset, hang, break off and talk nonsense."""

import asyncio
import email
import json
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar

import httpcore
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from longtake.gateway.client import GatewayClient, SendHookDidNotFire, SubmissionForm
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    InvalidResponse,
    KeyRefused,
    RequestRefused,
    ResponseLost,
    TaskNotFound,
)
from longtake.models import TaskState
from longtake.request.images import ImagePart
from tests.unread import UnreadAnswers

TASK = "task_abc"
ACCEPTED = {"id": TASK, "task_id": TASK, "object": "video", "status": "queued", "progress": 0}
RUNNING = {"task_id": TASK, "status": "IN_PROGRESS", "progress": "30%", "data": {"status": "processing"}}
FORM = SubmissionForm(model="veo_3_1-fast-remix", prompt="a cat on the moon", prompt_extend="it jumps")

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Request:
    """What the server read; `body` only as far as the client sent it."""

    method: str
    target: str
    headers: Message
    body: bytes


@dataclass
class RawGateway:
    """A server of bare sockets: it reads one request after the other and answers with the next behaviour."""

    behaviours: list[Behaviour] = field(default_factory=list)
    """Taken in turn; the last one stays."""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    bytes_read: int = 0
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def will(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.connected.set()
        try:
            while await self._read_request(reader):
                behaviour = self.behaviours[0] if len(self.behaviours) == 1 else self.behaviours.pop(0)
                await behaviour(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.disconnected.set()

    async def _read_request(self, reader: asyncio.StreamReader) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            self.bytes_read += len(error.partial)
            return False
        self.bytes_read += len(head)
        line, _, rest = head.partition(b"\r\n")
        method, target, _ = line.decode().split(" ")
        headers = email.message_from_bytes(rest)
        self.requests.append(Request(method, target, headers, b""))
        self.requests[-1].body = await reader.readexactly(int(headers.get("Content-Length", "0")))
        self.bytes_read += len(self.requests[-1].body)
        return True


def answer(status: int, body: object = None, **headers: str) -> Behaviour:
    """Answer properly; anything but bytes goes out as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}", "X-Oneapi-Request-Id: req-1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()

    return behave


def say(raw: bytes) -> Behaviour:
    """Write these bytes and close."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    return behave


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client hangs up


_Raw = TypeVar("_Raw", bound=RawGateway)
HALF_ANSWER = say(b"HTTP/1.1 200 OK\r\nX-Oneapi-Request-Id: req-1\r\nContent-Length: 500\r\n\r\n{")


@asynccontextmanager
async def listening(raw: _Raw) -> AsyncIterator[_Raw]:
    """Serve on a free port of loopback."""
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
    raw.port = server.sockets[0].getsockname()[1]
    async with server:
        yield raw


@pytest.fixture
async def gateway() -> AsyncIterator[RawGateway]:
    async with listening(RawGateway()) as raw:
        yield raw


@pytest.fixture
async def client(gateway: RawGateway) -> AsyncIterator[GatewayClient]:
    async with connect(gateway.url) as client:
        yield client


def connect(url: str, *keys: str, **options: Any) -> GatewayClient:
    return GatewayClient(base_url=url, api_keys=[SecretStr(key) for key in keys or ("sk-first",)], **options)


class CreateIntent:
    """A `before_send` that counts, and may refuse."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.fired = 0
        self.error = error

    async def __call__(self) -> None:
        self.fired += 1
        if self.error is not None:
            raise self.error


def parts_of(request: Request) -> list[tuple[str, str | None, str | None, bytes]]:
    """Name, file name, content type and content of each part of a multipart request."""
    content_type = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(content_type + request.body)
    parts: list[Any] = list(message.get_payload())
    return [
        (
            part.get_param("name", header="content-disposition"),
            part.get_filename(),
            part.get("Content-Type"),
            part.get_payload(decode=True),
        )
        for part in parts
    ]


class TestForm:
    async def test_text_to_video(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, ACCEPTED))
        form = SubmissionForm(model="veo_3_1-remix", prompt="猫 \r\n--x", prompt_extend="跳", size="1280x720")
        sent = await client.submit(form, before_send=CreateIntent())
        assert (sent.task_id, sent.request_id) == (TASK, "req-1")
        request = gateway.requests[0]
        assert (request.method, request.target) == ("POST", "/v1/videos")
        assert request.headers["Authorization"] == "Bearer sk-first"
        assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
        assert parts_of(request) == [
            ("model", None, None, b"veo_3_1-remix"),
            ("prompt", None, None, "猫 \r\n--x".encode()),
            ("prompt_extend", None, None, "跳".encode()),
            ("size", None, None, b"1280x720"),
        ]

    async def test_files_in_order(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, ACCEPTED))
        images = [
            ImagePart(filename="image-1.png", media_type="image/png", content=b"first\r\n\x00\xff"),
            ImagePart(filename="image-2.jpg", media_type="image/jpeg", content=b"last"),
        ]
        await client.submit(
            SubmissionForm(model="veo_3_1-fl-remix", prompt="a", prompt_extend="b", images=images),
            before_send=CreateIntent(),
        )
        assert parts_of(gateway.requests[0])[3:] == [
            ("input_reference[]", "image-1.png", "image/png", b"first\r\n\x00\xff"),
            ("input_reference[]", "image-2.jpg", "image/jpeg", b"last"),
        ]

    async def test_urls_in_order(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, ACCEPTED))
        images = [ImagePart(text="https://example.com/2.png"), ImagePart(text="data:image/png;base64,AAAA")]
        await client.submit(
            SubmissionForm(model="veo_3_1-remix", prompt="a", prompt_extend="b", images=images),
            before_send=CreateIntent(),
        )
        assert parts_of(gateway.requests[0])[3:] == [
            ("input_reference[]", None, None, b"https://example.com/2.png"),
            ("input_reference[]", None, None, b"data:image/png;base64,AAAA"),
        ]

    @pytest.mark.parametrize(
        "images",
        [
            [ImagePart(text="https://h/a"), ImagePart(content=b"x")],
            [ImagePart()],
            [ImagePart(text="https://h/a", content=b"x")],
        ],
    )
    def test_kinds_are_not_mixed(self, images: list[ImagePart]) -> None:
        with pytest.raises(ValueError, match="image"):
            SubmissionForm(model="m", prompt="a", prompt_extend="b", images=images)

    async def test_text_that_cannot_be_sent(self, gateway: RawGateway, client: GatewayClient) -> None:
        create_intent = CreateIntent()
        with pytest.raises(RequestRefused, match=r"prompt_extend is not valid Unicode") as caught:
            await client.submit(
                SubmissionForm(model="m", prompt="a", prompt_extend="cat \ud800"), before_send=create_intent
            )
        assert "cat" not in str(caught.value)
        assert (create_intent.fired, gateway.connections) == (0, 0)

    def test_prompts_are_not_shown(self) -> None:
        assert "cat" not in repr(FORM)


class TestBeforeTheFirstByte:
    async def test_fires_once_connected_and_with_nothing_sent(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, ACCEPTED))
        seen: list[int] = []

        async def before_send() -> None:
            await gateway.connected.wait()
            seen.append(gateway.bytes_read)

        await client.submit(FORM, before_send=before_send)
        assert seen == [0]
        assert len(gateway.requests) == 1

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("slot taken"),
            TimeoutError("the store is slow"),
            GatewayBusy("as if"),
            httpcore.WriteError("httpcore swallows this one"),
            httpcore.ConnectError("and renames this one"),
            httpx.ReadTimeout("looks like ours"),
            asyncio.CancelledError(),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_if_it_raises_nothing_leaves_and_that_comes_out(
        self, gateway: RawGateway, error: BaseException
    ) -> None:
        gateway.will(answer(200, ACCEPTED))
        async with connect(gateway.url, submit_timeout=timedelta(seconds=0.5)) as client:
            with pytest.raises(type(error)) as caught:
                await client.submit(FORM, before_send=CreateIntent(error))
        assert caught.value is error
        await gateway.disconnected.wait()
        assert (gateway.connections, gateway.bytes_read) == (1, 0)

    async def test_cancelled_while_asking(self, gateway: RawGateway, client: GatewayClient) -> None:
        asking = asyncio.Event()

        async def before_send() -> None:
            asking.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(client.submit(FORM, before_send=before_send))
        await asking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gateway.disconnected.wait()
        assert gateway.bytes_read == 0

    async def test_its_own_time_does_not_count(self, gateway: RawGateway, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("longtake.gateway.client._REACH_SECONDS", 1.0)
        gateway.will(answer(200, ACCEPTED))

        async def before_send() -> None:
            await asyncio.sleep(1.2)

        async with connect(gateway.url, submit_timeout=timedelta(seconds=1)) as client:
            assert (await client.submit(FORM, before_send=before_send)).task_id == TASK

    async def test_each_submission_has_a_connection_of_its_own(
        self, gateway: RawGateway, client: GatewayClient
    ) -> None:
        gateway.will(answer(200, ACCEPTED))
        create_intent = CreateIntent()
        await client.submit(FORM, before_send=create_intent)
        await client.submit(FORM, before_send=create_intent)
        assert (gateway.connections, create_intent.fired) == (2, 2)

    async def test_a_second_transmission_is_refused(self, gateway: RawGateway) -> None:
        class Twice(httpx.AsyncHTTPTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                await (await super().handle_async_request(request)).aread()
                return await super().handle_async_request(request)

        gateway.will(answer(200, ACCEPTED))
        create_intent = CreateIntent()
        async with connect(gateway.url, transport=Twice()) as client:
            with pytest.raises(ResponseLost, match="second time was refused"):
                await client.submit(FORM, before_send=create_intent)
        assert (len(gateway.requests), create_intent.fired) == (1, 1)

    @pytest.mark.parametrize("status", [200, 400, 502])
    async def test_an_answer_without_the_hook_is_a_defect(self, status: int) -> None:
        transport = UnreadAnswers(lambda _: httpx.Response(status, json=ACCEPTED))
        async with connect("http://gateway.example", transport=transport) as client:
            with pytest.raises(SendHookDidNotFire) as caught:
                await client.submit(FORM, before_send=CreateIntent())
        assert not isinstance(caught.value, GatewayError)

    async def test_after_an_answer_without_the_hook_it_never_sends_again(self) -> None:
        sent: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            sent.append(request)
            return httpx.Response(200, json=ACCEPTED)

        async with connect("http://gateway.example", transport=UnreadAnswers(handle)) as client:
            with pytest.raises(SendHookDidNotFire):
                await client.submit(FORM, before_send=CreateIntent())
            for _ in range(2):
                with pytest.raises(GatewayUnreachable):
                    await client.submit(FORM, before_send=CreateIntent())
        assert len(sent) == 1


class TestNothingWasSent:
    async def test_connection_refused(self, gateway: RawGateway) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            async with connect(url) as client:
                create_intent = CreateIntent()
                with pytest.raises(GatewayUnreachable, match="nothing was sent"):
                    await client.submit(FORM, before_send=create_intent)
                with pytest.raises(GatewayUnreachable):
                    await client.query(TASK)
        assert create_intent.fired == 0

    async def test_no_tls_there(self, gateway: RawGateway) -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            await say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")(reader, writer)

        server = await asyncio.start_server(plain, "127.0.0.1", 0)
        async with server, connect(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            create_intent = CreateIntent()
            with pytest.raises(GatewayUnreachable, match="nothing was sent"):
                await client.submit(FORM, before_send=create_intent)
        assert create_intent.fired == 0

    async def test_a_certificate_that_nobody_signed(self, gateway: RawGateway, tmp_path: Path) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(make_certificate(tmp_path, "localhost"))
        server = await asyncio.start_server(gateway.serve, "127.0.0.1", 0, ssl=tls)
        async with server, connect(f"https://localhost:{server.sockets[0].getsockname()[1]}") as client:
            create_intent = CreateIntent()
            with pytest.raises(GatewayUnreachable, match="nothing was sent"):
                await client.submit(FORM, before_send=create_intent)
        assert (create_intent.fired, gateway.bytes_read) == (0, 0)

    async def test_proxy_refuses(self, gateway: RawGateway, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", gateway.url)
        gateway.will(answer(503, b"no"))
        async with connect("https://gateway.example") as client:
            create_intent = CreateIntent()
            with pytest.raises(GatewayUnreachable, match="ProxyError"):
                await client.submit(FORM, before_send=create_intent)
        assert (create_intent.fired, [request.method for request in gateway.requests]) == (0, ["CONNECT"])

    async def test_through_a_proxy_the_hook_fires_after_tls(
        self, gateway: RawGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        certificate = make_certificate(tmp_path, "gateway.example")
        inside = RawGateway(behaviours=[answer(200, ACCEPTED)])
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        server = await asyncio.start_server(inside.serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            await answer(200, b"")(reader, writer)
            await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))

        gateway.will(tunnel)
        monkeypatch.setenv("HTTPS_PROXY", gateway.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        seen: list[tuple[int, int]] = []

        async def before_send() -> None:
            await inside.connected.wait()  # only after the TLS handshake
            seen.append((len(gateway.requests), inside.bytes_read))

        async with server, connect("https://gateway.example") as client:
            sent = await client.submit(FORM, before_send=before_send)
        assert sent.task_id == TASK
        assert seen == [(1, 0)]
        assert [request.method for request in gateway.requests + inside.requests] == ["CONNECT", "POST"]


class TestOutcomeUnknown:
    @pytest.mark.parametrize(
        "behaviour",
        [reset, hang, say(b""), say(b"SMTP ready\r\n"), say(b"HTTP/1.1 200"), HALF_ANSWER],
        ids=["reset", "hang", "closed", "no HTTP", "half a head", "half a body"],
    )
    async def test_sent_and_no_whole_answer(self, gateway: RawGateway, behaviour: Behaviour) -> None:
        gateway.will(behaviour)
        async with connect(gateway.url, submit_timeout=timedelta(seconds=0.5)) as client:
            create_intent = CreateIntent()
            with pytest.raises(ResponseLost) as caught:
                await client.submit(FORM, before_send=create_intent)
            with pytest.raises(ResponseLost):
                await connect_quickly(gateway).query(TASK)
        assert (create_intent.fired, gateway.requests[0].method) == (1, "POST")
        assert sum(request.method == "POST" for request in gateway.requests) == 1
        assert "moon" not in str(caught.value)
        if behaviour is HALF_ANSWER:
            assert (caught.value.status, caught.value.request_id) == (200, "req-1")

    async def test_a_trickling_answer_ends_with_the_time_limit(self, gateway: RawGateway) -> None:
        async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)

        gateway.will(trickle)
        async with connect(gateway.url, submit_timeout=timedelta(seconds=0.3)) as client:
            with pytest.raises(ResponseLost):
                await client.submit(FORM, before_send=CreateIntent())

    @pytest.mark.parametrize("body", [b"<html><title>Welcome</title>", b"", b'{"status": "queued"}', b"[1]"])
    async def test_200_without_an_id(self, gateway: RawGateway, client: GatewayClient, body: bytes) -> None:
        gateway.will(answer(200, body))
        with pytest.raises(InvalidResponse) as caught:
            await client.submit(FORM, before_send=CreateIntent())
        assert (caught.value.status, caught.value.request_id) == (200, "req-1")

    @pytest.mark.parametrize(
        ("status", "body", "shows"),
        [
            (200, {"id": 4711, "prompt": FORM.prompt}, "4711"),
            (200, {"id": "videos/9f/1", "echo": FORM.prompt}, "videos/9f/1"),
            (200, b"queued as 12/7", "12/7"),
            (500, {"code": "new_api_panic", "message": "sk-first", "task": "t 1"}, "t 1"),
        ],
    )
    async def test_an_answer_that_says_too_little_is_kept_as_an_excerpt(
        self, gateway: RawGateway, client: GatewayClient, status: int, body: object, shows: str
    ) -> None:
        gateway.will(answer(status, body))
        with pytest.raises((InvalidResponse, ResponseLost)) as caught:
            await client.submit(FORM, before_send=CreateIntent())
        assert caught.value.excerpt
        assert shows in caught.value.excerpt
        for secret in ("cat", "jumps", "sk-first"):
            assert secret not in caught.value.excerpt

    async def test_an_answer_without_end(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, b" " * (4 * 1024 * 1024 + 1)))
        with pytest.raises(InvalidResponse, match="larger than"):
            await client.submit(FORM, before_send=CreateIntent())
        with pytest.raises(InvalidResponse, match="larger than"):
            await client.query(TASK)

    @pytest.mark.parametrize("status", [307, 308])
    async def test_redirects_are_not_followed(self, gateway: RawGateway, client: GatewayClient, status: int) -> None:
        gateway.will(answer(status, b"", Location=f"{gateway.url}/elsewhere"))
        with pytest.raises(ResponseLost):
            await client.submit(FORM, before_send=CreateIntent())
        assert len(gateway.requests) == 1


class TestRefusal:
    async def test_prompt_and_key_do_not_come_back(self, gateway: RawGateway, client: GatewayClient) -> None:
        message = f"bad prompt: {FORM.prompt}, key sk-first, see https://gw.example/x?token=SECRET"
        gateway.will(answer(400, {"code": "invalid_request", "message": message, "data": None}))
        with pytest.raises(RequestRefused) as caught:
            await client.submit(FORM, before_send=CreateIntent())
        error = caught.value
        assert str(error).startswith("[req-1] ")
        assert error.gateway_message == "bad prompt: …, key …, see https://gw.example/x?…"
        assert (error.status, error.code) == (400, "invalid_request")

    async def test_wait_as_long_as_asked(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(429, {}, Retry_After="7"))
        with pytest.raises(GatewayBusy) as caught:
            await client.submit(FORM, before_send=CreateIntent())
        assert caught.value.retry_after == timedelta(seconds=7)


class TestQuery:
    async def test_first_path(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, RUNNING))
        record = await client.query(TASK)
        assert (record.state, record.progress, record.request_id) == (TaskState.RUNNING, 30, "req-1")
        assert (gateway.requests[0].method, gateway.requests[0].target) == ("GET", "/v1/videos/task_abc")

    async def test_second_path(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, {"code": "success", "message": "", "data": RUNNING}))
        assert (await client.query(TASK, second_path=True)).state is TaskState.RUNNING
        assert gateway.requests[0].target == "/v1/video/generations/task_abc"

    async def test_any_id_stays_one_part_of_the_path(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, RUNNING))
        await client.query("../models?x=1#任\ud800")
        assert gateway.requests[0].target == "/v1/videos/..%2Fmodels%3Fx%3D1%23%E4%BB%BB%3F"
        for nonsense in ("", ".", ".."):
            with pytest.raises(TaskNotFound):
                await client.query(nonsense)
        assert len(gateway.requests) == 1

    async def test_another_id_in_the_answer_is_logged(
        self, gateway: RawGateway, client: GatewayClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        gateway.will(answer(200, RUNNING))
        assert (await client.query("task_other")).task_id == "task_other"
        (warning,) = (vars(record) for record in caplog.records if record.levelname == "WARNING")
        assert (warning["task_id"], warning["answered_task_id"]) == ("task_other", "task_abc")

    @pytest.mark.parametrize(
        ("status", "body", "error"),
        [
            (404, {"error": {"message": "no"}}, TaskNotFound),
            (404, b"<html>", TaskNotFound),
            (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None}, TaskNotFound),
            (200, {"code": "task_not_exist", "message": "task_not_exist", "data": None}, TaskNotFound),
            (400, {"code": "something_else", "message": "no"}, InvalidResponse),
            (405, b"", InvalidResponse),
            (302, b"", InvalidResponse),
            (200, b"<html><title>Console</title></html>", InvalidResponse),
            (200, b"", InvalidResponse),
            (200, {"code": "success", "data": None}, InvalidResponse),
            (429, {}, GatewayBusy),
            (500, {"code": "do_request_failed"}, ResponseLost),
            (503, b"", ResponseLost),
            (522, b"", GatewayUnreachable),
            (524, {"status": 524, "title": "timeout"}, ResponseLost),
            (401, {"error": {"message": "无效的令牌"}}, KeyRefused),
            (403, b"", KeyRefused),
        ],
    )
    async def test_answers(
        self, gateway: RawGateway, client: GatewayClient, status: int, body: object, error: type[GatewayError]
    ) -> None:
        gateway.will(answer(status, body, Retry_After="3"))
        with pytest.raises(GatewayError) as caught:
            await client.query(TASK)
        assert type(caught.value) is error
        assert caught.value.status == status
        assert caught.value.request_id == "req-1"
        if status != 200:
            assert caught.value.retry_after == timedelta(seconds=3)

    async def test_html_points_at_the_url(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, b"<html><title>Console</title></html>"))
        with pytest.raises(InvalidResponse, match=r"an HTML page: Console; is LONGTAKE_GATEWAY_URL right\?"):
            await client.query(TASK)

    async def test_as_many_at_once_as_wanted(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, RUNNING))
        records = await asyncio.gather(*(client.query(TASK) for _ in range(60)))
        assert len(records) == 60
        assert gateway.connections <= 20


class TestKeyRing:
    async def test_goes_on_with_the_key_that_works(self, gateway: RawGateway) -> None:
        refuse = answer(401, {"error": {"message": "无效的令牌"}})
        gateway.will(refuse, answer(403), answer(200, RUNNING), answer(200, RUNNING), refuse, answer(200, RUNNING))
        async with connect(gateway.url, "sk-one", "sk-two", "sk-three") as client:
            for _ in range(3):
                await client.query(TASK)
            assert client.key_for(f"{gateway.url}/x") == SecretStr("sk-one")
        used = [request.headers["Authorization"].removeprefix("Bearer sk-") for request in gateway.requests]
        assert used == ["one", "two", "three", "three", "three", "one"]

    async def test_all_refused(self, gateway: RawGateway) -> None:
        gateway.will(answer(401, {"error": {"message": "无效的令牌"}}))
        async with connect(gateway.url, "sk-one", "sk-two") as client:
            with pytest.raises(KeyRefused, match="key 2 of 2 was refused") as caught:
                await client.query(TASK)
        assert len(gateway.requests) == 2
        assert caught.value.gateway_message == "无效的令牌"

    async def test_the_first_key_pays_whatever_queries_found(self, gateway: RawGateway) -> None:
        gateway.will(answer(401), answer(200, RUNNING), answer(200, ACCEPTED))
        async with connect(gateway.url, "sk-one", "sk-two") as client:
            await client.query(TASK)
            await client.submit(FORM, before_send=CreateIntent())
        assert gateway.requests[-1].headers["Authorization"] == "Bearer sk-one"

    async def test_other_troubles_do_not_try_other_keys(self, gateway: RawGateway) -> None:
        gateway.will(answer(429))
        async with connect(gateway.url, "sk-one", "sk-two") as client:
            with pytest.raises(GatewayBusy):
                await client.query(TASK)
        assert len(gateway.requests) == 1

    @pytest.mark.parametrize("keys", [[], [""], ["sk-a b"], ["sk-\n"], ["sk-钥匙"], ["sk-a\x00b"]])
    def test_keys_that_cannot_be_sent(self, keys: list[str]) -> None:
        if keys == ["sk-\n"]:
            keys = ["sk-a\nb"]
        with pytest.raises(ValueError, match="LONGTAKE_GATEWAY_API_KEY") as caught:
            GatewayClient(base_url="http://h", api_keys=[SecretStr(key) for key in keys])
        assert "sk-" not in str(caught.value)


class TestDoctor:
    async def test_models(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(200, {"object": "list", "data": [{"id": "veo_3_1-remix"}, {"id": 7}, "x"]}))
        assert await client.list_models() == ["veo_3_1-remix"]
        assert gateway.requests[0].target == "/v1/models"

    @pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": null}'])
    async def test_no_list(self, gateway: RawGateway, client: GatewayClient, body: bytes) -> None:
        gateway.will(answer(200, body))
        with pytest.raises(InvalidResponse, match="LONGTAKE_GATEWAY_URL"):
            await client.list_models()

    async def test_no_such_route(self, gateway: RawGateway, client: GatewayClient) -> None:
        gateway.will(answer(404, b"<html>"))
        with pytest.raises(InvalidResponse, match="LONGTAKE_GATEWAY_URL"):
            await client.list_models()

    async def test_every_key_is_checked(self, gateway: RawGateway) -> None:
        gateway.will(answer(200, {"data": []}), answer(401))
        async with connect(gateway.url, "sk-one", "sk-two") as client:
            with pytest.raises(KeyRefused, match="key 2 of 2"):
                await client.check_key()
        assert [request.headers["Authorization"] for request in gateway.requests] == ["Bearer sk-one", "Bearer sk-two"]


class TestAddresses:
    @pytest.mark.parametrize(
        ("given", "origin", "content"),
        [
            ("https://gw.example", "https://gw.example", "https://gw.example/v1/videos/t/content"),
            ("https://GW.example:443/v1/", "https://gw.example", "https://gw.example/v1/videos/t/content"),
            (
                "http://gw.example:8080/api/v1",
                "http://gw.example:8080",
                "http://gw.example:8080/api/v1/videos/t/content",
            ),
            (" https://gw.example// ", "https://gw.example", "https://gw.example/v1/videos/t/content"),
            ("http://[::1]:3000", "http://[::1]:3000", "http://[::1]:3000/v1/videos/t/content"),
        ],
    )
    async def test_understood(self, given: str, origin: str, content: str) -> None:
        async with connect(given) as client:
            assert (client.origin, client.content_url("t")) == (origin, content)

    @pytest.mark.parametrize(
        "given",
        [
            "",
            "gw.example",
            "gw.example:3000",
            "ftp://gw.example",
            "https://",
            "https:///v1",
            "http://[",
            "http://h:port",
            "http://h h",
            "https://u:SECRET@gw.example",
            "https://gw.example?key=SECRET",
            "https://gw.example/#SECRET",
            "https://\ud800",
        ],
    )
    def test_refused(self, given: str) -> None:
        with pytest.raises(ValueError, match="LONGTAKE_GATEWAY_URL must be") as caught:
            connect(given)
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "ours"),
        [
            ("https://gw.example/v1/videos/t/content", True),
            ("https://GW.EXAMPLE:443/x", True),
            ("http://gw.example/x", False),
            ("https://gw.example:8443/x", False),
            ("https://gw.example.evil.test/x", False),
            ("https://gw.example@evil.test/x", False),
            ("https://cdn.example/v.mp4", False),
            ("/v1/videos/t/content", False),
            ("http://[", False),
            ("https://\ud800", False),
        ],
    )
    async def test_the_key_goes_to_the_gateway_only(self, url: str, ours: bool) -> None:
        async with connect("https://gw.example/v1") as client:
            assert (client.key_for(url) is not None) is ours


class TestLog:
    async def test_one_line_per_request_and_no_secret(
        self, gateway: RawGateway, client: GatewayClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        gateway.will(answer(200, ACCEPTED), answer(200, RUNNING), reset)
        await client.submit(FORM, before_send=CreateIntent())
        await client.query(TASK)
        with pytest.raises(ResponseLost):
            await client.query(TASK)
        lines = [
            vars(entry) | {"event": entry.getMessage()} for entry in caplog.records if entry.name == "longtake.gateway"
        ]
        assert [(line["event"], line.get("http_status"), line.get("outcome")) for line in lines] == [
            ("POST /v1/videos", 200, None),
            ("GET /v1/videos/task_abc", 200, None),
            ("GET /v1/videos/task_abc", None, "no response"),
        ]
        assert lines[0]["request_id"] == "req-1"
        assert lines[2]["error_type"].endswith("Error")
        for secret in ("sk-first", "moon", "jumps"):
            assert secret not in caplog.text


def connect_quickly(gateway: RawGateway) -> GatewayClient:
    return connect(gateway.url, query_timeout=timedelta(seconds=0.5))


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


def make_certificate(folder: Path, host: str) -> Path:
    """A self-signed certificate with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path
