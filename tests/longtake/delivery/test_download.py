import asyncio
import contextlib
import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from longtake.delivery.download import DownloadFailed, Fetcher, Source, deliver
from longtake.delivery.public_network import is_public
from longtake.models import DeliveryKind, DeliveryReceipt
from longtake.storage import Store, StoreProblem
from tests.longtake.media_samples import mp4
from tests.longtake.s3_server import S3Server

KEY = "sk-secret"
TASK_ID = "task_zgUBKXVW6YhJkXPvuTJ2Y0jaLnycfEu9"
OBJECT = f"videos/one/full-{hashlib.sha256(TASK_ID.encode()).hexdigest()[:8]}.mp4"
ETAG = '"v1"'


@dataclass
class Request:
    """What the server was asked."""

    path: str
    headers: dict[str, str]


class Reply:
    """One connection of the server's, to be used byte by byte."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def head(self, status: str, **headers: object) -> None:
        lines = [f"HTTP/1.1 {status}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.body("\r\n".join([*lines, "", ""]).encode())

    async def body(self, content: bytes) -> None:
        self._writer.write(content)
        await self._writer.drain()

    def reset(self) -> None:
        """Break the connection off as a crash does; what was written may be lost."""
        self._writer.transport.abort()


Handler = Callable[[Request, Reply], Awaitable[None]]


@dataclass
class WebServer:
    """A raw HTTP server on loopback whose every cut, wrong length and drip is real. One handler for each request."""

    handlers: list[Handler]
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> Self:
        self._replies: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self.tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://{self.host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        for reply in self._replies:
            reply.cancel()
        await asyncio.gather(*self._replies, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._replies.add(task)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            request = Request(head[0].split()[1], headers)
            self.requests.append(request)
            # The last handler goes on for ever.
            handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
            await handler(request, Reply(writer))


def whole(content: bytes, **headers: object) -> Handler:
    async def handle(_: Request, reply: Reply) -> None:
        await reply.head("200 OK", Content_Length=len(content), **headers)
        await reply.body(content)

    return handle


def answer(status: str, content: bytes = b"", **headers: object) -> Handler:
    async def handle(_: Request, reply: Reply) -> None:
        await reply.head(status, Content_Length=len(content), **headers)
        await reply.body(content)

    return handle


def cut(content: bytes, at: int, **headers: object) -> Handler:
    """Promise everything, send a part."""

    async def handle(_: Request, reply: Reply) -> None:
        await reply.head("200 OK", Content_Length=len(content), **headers)
        await reply.body(content[:at])

    return handle


def rest(content: bytes, *, shift: int = 0, total: int | None = None, until: int | None = None) -> Handler:
    """A true 206 for `Range: bytes=N-`, or one that is wrong by `shift`, in its `total`, or cut at `until`."""

    async def handle(request: Request, reply: Reply) -> None:
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-")) + shift
        size = len(content) if total is None else total
        await reply.head(
            "206 Partial Content",
            Content_Length=len(content) - start,
            Content_Range=f"bytes {start}-{size - 1}/{size}",
            ETag=ETAG,
        )
        await reply.body(content[start:until])

    return handle


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def clip() -> bytes:
    return mp4(seconds=15, layout="faststart")


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    # Nobody listens at this gateway.
    async with Fetcher("http://127.0.0.1:9", lambda: KEY, allow_private_addresses=True) as fetcher:
        yield fetcher


async def bring(store: Store, fetcher: Fetcher, *urls: str | Source, **facts: Any) -> DeliveryReceipt:
    async def sources() -> AsyncIterator[Source]:
        for number, url in enumerate(urls, 1):
            yield url if isinstance(url, Source) else Source(f"source {number}", url)

    order: dict[str, Any] = {"directory": "videos/one", "kind": DeliveryKind.FULL, "task_id": TASK_ID, **facts}
    return await deliver(store=store, fetcher=fetcher, sources=sources, **order)


async def failure(store: Store, fetcher: Fetcher, *urls: str | Source, **facts: Any) -> DownloadFailed:
    """Deliver in vain, and see that nothing of it stayed."""
    with pytest.raises(DownloadFailed) as caught:
        await bring(store, fetcher, *urls, **facts)
    assert await store.head(OBJECT) is None
    assert await store.head(f"{OBJECT}.json") is None
    return caught.value


async def test_downloads_a_clip(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    progress: list[tuple[int, int | None]] = []
    async with WebServer([whole(clip)]) as web:
        receipt = await bring(
            store,
            fetcher,
            f"{web.url}/clip.mp4?Signature=secret",
            expected_size=(320, 180),
            on_progress=lambda done, total: progress.append((done, total)),
        )
    assert receipt.video.model_dump() == {
        "uri": store.uri_of(OBJECT),
        "sha256": hashlib.sha256(clip).hexdigest(),
        "bytes": len(clip),
        "duration_seconds": 15.0,
        "width": 320,
        "height": 180,
        "has_audio": True,
    }
    assert (receipt.warnings, receipt.source, receipt.already_stored) == ((), "source 1", False)
    assert await store.get(OBJECT) == clip
    assert progress == sorted(progress)
    assert progress[-1] == (len(clip), len(clip))
    assert [request.headers.get("authorization") for request in web.requests] == [None]
    assert "secret" not in (await store.get(f"{OBJECT}.json") or b"").decode()


async def test_brings_a_clip_into_s3(fetcher: Fetcher, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with S3Server() as s3:
        store = Store.open(s3.url("prefix"))
        async with WebServer([cut(clip, 1000), whole(clip)]) as web:
            receipt = await bring(store, fetcher, web.url)
        assert receipt.video.uri == f"s3://clips/prefix/{OBJECT}"
        assert await store.get(OBJECT) == clip
        assert (await bring(store, fetcher)).already_stored


async def test_what_is_stored_is_not_downloaded_again(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    async with WebServer([whole(clip)]) as web:
        first = await bring(store, fetcher, web.url, expected_size=(640, 360))
        again = await bring(store, fetcher, web.url)
    assert len(web.requests) == 1
    assert again == first.model_copy(update={"already_stored": True})
    assert again.warnings


async def test_a_clip_without_its_sidecar_is_verified_and_kept(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    # A crash between the two writes.
    await store.put(OBJECT, clip)
    seen: list[int] = []
    receipt = await bring(store, fetcher, on_progress=lambda done, _: seen.append(done))
    assert receipt.already_stored
    assert receipt.video.sha256 == hashlib.sha256(clip).hexdigest()
    assert seen[-1] == len(clip)
    sidecar = json.loads(await store.get(f"{OBJECT}.json") or b"")
    assert sidecar["video"] == receipt.video.model_dump()


@pytest.mark.parametrize("sidecar", [b"", b"{}", b"not json", b'{"video": {"bytes": 5}}'])
async def test_a_useless_sidecar_is_written_anew(store: Store, fetcher: Fetcher, clip: bytes, sidecar: bytes) -> None:
    await store.put(OBJECT, clip)
    await store.put(f"{OBJECT}.json", sidecar)
    assert (await bring(store, fetcher)).already_stored
    assert len(await store.get(f"{OBJECT}.json") or b"") > len(sidecar)


async def test_an_object_that_is_not_whole_is_downloaded_anew(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    await store.put(OBJECT, clip[:-1])
    async with WebServer([whole(clip)]) as web:
        receipt = await bring(store, fetcher, web.url)
    assert not receipt.already_stored
    assert await store.get(OBJECT) == clip


async def test_a_sidecar_of_another_object_is_not_believed(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    async with WebServer([whole(clip)]) as web:
        await bring(store, fetcher, web.url)
    other = mp4(seconds=8)
    await store.put(OBJECT, other)
    receipt = await bring(store, fetcher)
    assert receipt.video.sha256 == hashlib.sha256(other).hexdigest()
    (warning,) = receipt.warnings
    assert re.findall(r"[\d.]+ s\b", warning) == ["8.0 s", "15 s"]


async def test_warns_of_a_whole_clip_that_is_not_what_was_ordered(store: Store, fetcher: Fetcher) -> None:
    async with WebServer([whole(mp4(seconds=8, sound=False))]) as web:
        full = await bring(store, fetcher, web.url, expected_size=(1920, 1080))
        first = await bring(store, fetcher, web.url, kind=DeliveryKind.FIRST, expect_audio=False)
    duration, size, sound = full.warnings
    assert re.findall(r"[\d.]+ s\b", duration) == ["8.0 s", "15 s"]
    assert re.findall(r"\d+x\d+", size) == ["320x180", "1920x1080"]
    assert "sound" in sound
    assert first.warnings == ()
    assert re.fullmatch(r".*/videos/one/first-[0-9a-f]{8}\.mp4", first.video.uri)


async def test_goes_from_source_to_source_and_asks_for_the_next_one_late(
    store: Store, fetcher: Fetcher, clip: bytes
) -> None:
    asked = []
    async with WebServer([answer("502 Bad Gateway", b"<html>"), whole(b"<!DOCTYPE html>"), whole(clip)]) as web:

        async def sources() -> AsyncIterator[Source]:
            for name in ("a", "b", "c", "d"):
                asked.append((name, len(web.requests)))
                yield Source(name, f"{web.url}/{name}")

        receipt = await deliver(
            store=store,
            fetcher=fetcher,
            sources=sources,
            directory="videos/one",
            kind=DeliveryKind.FULL,
            task_id=TASK_ID,
        )
    assert receipt.source == "c"
    assert asked == [("a", 0), ("b", 1), ("c", 2)]


async def test_the_same_link_is_tried_once(store: Store, fetcher: Fetcher) -> None:
    async with WebServer([answer("404 Not Found")]) as web:
        problem = await failure(store, fetcher, f"{web.url}/a", f"{web.url}/a")
    assert [source for source, _ in problem.attempts] == ["source 1"]
    assert len(web.requests) == 1


async def test_lists_each_source_with_its_reason_and_no_link(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    handlers = [answer("404 Not Found"), whole(b'{"error": "no"}'), whole(clip[:-5]), answer("503 Unavailable")]
    async with WebServer(handlers) as web:
        problem = await failure(
            store, fetcher, *(f"{web.url}/{name}?Signature=secret" for name in "abcd"), "http://127.0.0.1:9/", "what?"
        )
    facts = ["404", "JSON", f"{len(clip) - 5} of at least {len(clip)} bytes", "503", "ConnectError", "https://"]
    assert [source for source, _ in problem.attempts] == [f"source {number}" for number in range(1, 7)]
    assert all(fact in reason for fact, (_, reason) in zip(facts, problem.attempts, strict=True))
    assert not problem.gone
    assert all(f"{source}: {reason}" in str(problem) for source, reason in problem.attempts)
    assert "secret" not in str(problem)


async def test_no_source_at_all_is_not_gone(store: Store, fetcher: Fetcher) -> None:
    problem = await failure(store, fetcher)
    assert (problem.attempts, problem.gone) == ([], False)


@pytest.mark.parametrize(
    ("replies", "gone"),
    [
        ([answer("404 Not Found"), answer("410 Gone"), answer("403 Forbidden")], True),
        ([answer("400 Bad Request", b"<Error><Code>ExpiredToken</Code></Error>")], True),
        ([answer("401 Unauthorized", b"Signature expired")], True),
        ([answer("404 Not Found"), answer("500 Oops")], False),
        ([answer("400 Bad Request", b"not completed yet")], False),
        ([answer("404 Not Found"), whole(b"<html>")], False),
        ([answer("429 Too Many Requests")], False),
    ],
)
async def test_knows_whether_it_is_gone(
    store: Store, fetcher: Fetcher, replies: Sequence[Handler], *, gone: bool
) -> None:
    async with WebServer(list(replies)) as web:
        problem = await failure(store, fetcher, *(f"{web.url}/{number}" for number in range(len(replies))))
    assert problem.gone is gone


@pytest.mark.parametrize("share", [0.0, 0.2, 0.62, 0.99])
async def test_a_download_that_is_cut_every_time_stays_out(
    store: Store, fetcher: Fetcher, clip: bytes, share: float
) -> None:
    at = int(len(clip) * share)
    async with WebServer([cut(clip, at)]) as web:
        problem = await failure(store, fetcher, web.url)
    expected = (
        "the connection broke 2 times, and the download could not be resumed"
        if at
        else "no byte received (RemoteProtocolError)"
    )
    assert problem.attempts == [("source 1", expected)]


async def test_a_cut_without_a_promised_length_is_seen_in_the_file(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    async def until_closed(_: Request, reply: Reply) -> None:
        await reply.head("200 OK")
        await reply.body(clip[: len(clip) // 2])

    async with WebServer([until_closed]) as web:
        problem = await failure(store, fetcher, web.url)
    ((_, reason),) = problem.attempts
    assert f"{len(clip) // 2} of at least {len(clip)} bytes" in reason


async def test_takes_a_body_in_chunks(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    async def chunked(_: Request, reply: Reply) -> None:
        await reply.head("200 OK", Transfer_Encoding="chunked")
        for start in range(0, len(clip), 3000):
            piece = clip[start : start + 3000]
            await reply.body(b"%x\r\n%b\r\n" % (len(piece), piece))
        await reply.body(b"0\r\n\r\n")

    async with WebServer([chunked]) as web:
        receipt = await bring(store, fetcher, web.url)
    assert receipt.video.bytes == len(clip)


async def test_goes_on_where_a_connection_broke(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    handlers = [cut(clip, 5000, ETag=ETAG), rest(clip, until=9000), rest(clip)]
    async with WebServer(handlers) as web:
        receipt = await bring(store, fetcher, web.url)
    assert await store.get(OBJECT) == clip
    assert receipt.video.sha256 == hashlib.sha256(clip).hexdigest()
    assert [request.headers.get("range") for request in web.requests] == [None, "bytes=5000-", "bytes=9000-"]
    assert [request.headers.get("if-range") for request in web.requests] == [None, ETAG, ETAG]


async def test_a_date_names_the_version_where_there_is_no_strong_tag(
    store: Store, fetcher: Fetcher, clip: bytes
) -> None:
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    async with WebServer([cut(clip, 5000, ETag='W/"weak"', Last_Modified=date), rest(clip)]) as web:
        await bring(store, fetcher, web.url)
    assert web.requests[1].headers["if-range"] == date.lower()


def _first_part_and(reply: Handler, clip: bytes) -> list[Handler]:
    return [cut(clip, 5000, ETag=ETAG), reply, whole(clip)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda clip: whole(clip, ETag='"v2"'),
        lambda clip: rest(clip, shift=-1),
        lambda clip: rest(clip, shift=7),
        lambda clip: rest(clip, total=len(clip) + 1),
        lambda _: answer("206 Partial Content", b"xyz"),
        lambda _: answer("206 Partial Content", b"xyz", Content_Range="bytes 5000-5002/*"),
        lambda _: answer("416 Range Not Satisfiable"),
    ],
    ids=["200", "before", "behind", "other total", "no range", "no total", "416"],
)
async def test_starts_over_where_the_rest_is_not_the_rest(
    store: Store, fetcher: Fetcher, clip: bytes, wrong: Callable[[bytes], Handler]
) -> None:
    async with WebServer(_first_part_and(wrong(clip), clip)) as web:
        await bring(store, fetcher, web.url)
    assert await store.get(OBJECT) == clip
    assert [request.headers.get("range") for request in web.requests] == [None, "bytes=5000-", None]


@pytest.mark.parametrize(
    "version", [{}, {"ETag": '"ü"'}, {"Last_Modified": "Mittwoch, 21. März"}, {"ETag": '"a\tb"'}, {"ETag": '"a'}]
)
async def test_without_a_version_that_can_be_named_it_starts_over_at_once(
    store: Store, fetcher: Fetcher, clip: bytes, version: dict[str, str]
) -> None:
    async with WebServer([cut(clip, 5000, **version), whole(clip)]) as web:
        await bring(store, fetcher, web.url)
    assert [request.headers.get("range") for request in web.requests] == [None, None]
    assert await store.get(OBJECT) == clip


async def test_a_source_that_goes_away_midway_is_left(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    async with WebServer([cut(clip, 5000, ETag=ETAG), answer("404 Not Found"), whole(clip)]) as web:
        receipt = await bring(store, fetcher, f"{web.url}/a", f"{web.url}/b")
    assert receipt.source == "source 2"


async def test_gives_a_source_up_that_breaks_off_again_and_again(
    store: Store, fetcher: Fetcher, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longtake.delivery.download._RECONNECT_PAUSE_SECONDS", 0)
    step = len(clip) // 20
    parts = [rest(clip, until=step * number) for number in range(2, 20)]
    async with WebServer([cut(clip, step, ETag=ETAG), *parts]) as web:
        problem = await failure(store, fetcher, web.url)
    ((_, reason),) = problem.attempts
    assert reason == f"cut after {step * 6:,} of {len(clip):,} bytes (RemoteProtocolError)"
    assert len(web.requests) == 6


async def test_a_silent_source_is_left(store: Store, clip: bytes) -> None:
    never = asyncio.Event()

    async def silent(_: Request, reply: Reply) -> None:
        await reply.head("200 OK", Content_Length=len(clip))
        await reply.body(clip[:100])
        await never.wait()

    impatient = Fetcher("http://127.0.0.1:9", allow_private_addresses=True, timeout=httpx.Timeout(0.2))
    async with impatient, WebServer([silent]) as web:
        problem = await failure(store, impatient, web.url)
        never.set()
    ((_, reason),) = problem.attempts
    assert "2 times" in reason


async def test_a_dripping_source_has_a_limit(store: Store, clip: bytes) -> None:
    async def drip(_: Request, reply: Reply) -> None:
        await reply.head("200 OK", Content_Length=len(clip))
        for start in range(len(clip)):
            await reply.body(clip[start : start + 1])
            await asyncio.sleep(0.02)

    hurried = Fetcher("http://127.0.0.1:9", allow_private_addresses=True, progress_time=timedelta(seconds=0.5))
    async with hurried, WebServer([drip, whole(clip)]) as web:
        receipt = await bring(store, hurried, f"{web.url}/a", f"{web.url}/b")
    assert receipt.source == "source 2"


async def test_what_is_slow_and_steady_is_not_begun_again(
    store: Store, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole length takes many times as long as the time within which it has to make progress."""
    parts = 40
    piece = -(-len(clip) // parts)
    monkeypatch.setattr("longtake.delivery.download.MIN_PROGRESS_BYTES", piece)

    async def steady(_: Request, reply: Reply) -> None:
        await reply.head("200 OK", Content_Length=len(clip))
        for start in range(0, len(clip), piece):
            await reply.body(clip[start : start + piece])
            await asyncio.sleep(0.05)

    patient = Fetcher("http://127.0.0.1:9", allow_private_addresses=True, progress_time=timedelta(seconds=0.5))
    async with patient, WebServer([steady]) as web:
        receipt = await bring(store, patient, web.url)
    assert receipt.video.bytes == len(clip)
    assert len(web.requests) == 1


async def test_a_store_that_does_not_finish_is_not_blamed_on_the_source(
    store: Store, fetcher: Fetcher, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longtake.delivery.download.STORE_TIME", timedelta(seconds=0.2))

    async def never_done(_path: str, chunks: AsyncIterator[bytes]) -> None:
        async for _ in chunks:
            pass
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "put_stream", never_done)
    async with WebServer([whole(clip)]) as web:
        with pytest.raises(StoreProblem):
            await bring(store, fetcher, web.url)


async def test_a_cancelled_delivery_leaves_nothing_behind(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    never, begun = asyncio.Event(), asyncio.Event()

    async def hang(_: Request, reply: Reply) -> None:
        await reply.head("200 OK", Content_Length=len(clip))
        await reply.body(clip[:9000])
        await never.wait()

    async with WebServer([hang]) as web:
        task = asyncio.create_task(bring(store, fetcher, web.url, on_progress=lambda *_: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        never.set()
    assert await store.head(OBJECT) is None


@pytest.mark.parametrize("declared", [True, False])
async def test_refuses_a_video_that_is_too_large(store: Store, clip: bytes, *, declared: bool) -> None:
    async def undeclared(_: Request, reply: Reply) -> None:
        await reply.head("200 OK")
        await reply.body(clip)

    small = Fetcher("http://127.0.0.1:9", allow_private_addresses=True, max_bytes=len(clip) - 1)
    async with small, WebServer([whole(clip) if declared else undeclared]) as web:
        problem = await failure(store, small, web.url)
    assert f"{len(clip) - 1:,}" in problem.attempts[0][1]


async def test_refuses_what_is_compressed_against_its_wish(store: Store, fetcher: Fetcher, clip: bytes) -> None:
    async with WebServer([whole(clip, Content_Encoding="gzip")]) as web:
        problem = await failure(store, fetcher, web.url)
    assert web.requests[0].headers["accept-encoding"] == "identity"
    ((_, reason),) = problem.attempts
    assert "Accept-Encoding" in reason


async def test_a_problem_of_the_store_is_not_blamed_on_the_source(
    store: Store, fetcher: Fetcher, clip: bytes, tmp_path: Path
) -> None:
    async with WebServer([whole(clip)]) as web:

        async def sources() -> AsyncIterator[Source]:
            (tmp_path / "store").rmdir()
            yield Source("a", web.url)

        with pytest.raises(StoreProblem, match="is gone"):
            await deliver(
                store=store,
                fetcher=fetcher,
                sources=sources,
                directory="videos/one",
                kind=DeliveryKind.FULL,
                task_id=TASK_ID,
            )


async def test_a_whole_clip_with_stray_bytes_at_its_end_is_delivered_with_a_warning(
    store: Store, fetcher: Fetcher, clip: bytes
) -> None:
    async with WebServer([whole(clip + b"\0\r\n")]) as web:
        receipt = await bring(store, fetcher, web.url)
    assert len(receipt.warnings) == 1
    assert receipt.video.bytes == len(clip) + 3
    assert await store.get(OBJECT) == clip + b"\0\r\n", "what the gateway sent is kept as it is"


def gateway_fetcher(web: WebServer, *, allow_private_addresses: bool = True) -> Fetcher:
    return Fetcher(f"{web.url}/v1", lambda: KEY, allow_private_addresses=allow_private_addresses)


def keys_sent(web: WebServer) -> list[str | None]:
    return [request.headers.get("authorization") for request in web.requests]


async def test_the_key_goes_to_the_gateway_alone(store: Store, clip: bytes) -> None:
    async with (
        WebServer([answer("502 Bad Gateway")]) as gateway,
        WebServer([whole(clip)]) as elsewhere,
        gateway_fetcher(gateway) as fetcher,
    ):
        await bring(
            store,
            fetcher,
            Source("without", f"{gateway.url}/a"),
            Source("content", f"{gateway.url}/b", with_key=True),
            Source("elsewhere", elsewhere.url, with_key=True),
        )
    assert keys_sent(gateway) == [None, f"bearer {KEY}"]
    assert keys_sent(elsewhere) == [None]


async def test_a_redirect_away_takes_the_key_from_the_request_for_good(store: Store, clip: bytes) -> None:
    async with WebServer([]) as gateway, WebServer([]) as elsewhere:
        gateway.handlers = [
            answer("302 Found", Location="/moved"),
            answer("307 Temporary Redirect", Location=f"{elsewhere.url}/away?Signature=x"),
            whole(clip),
        ]
        elsewhere.handlers = [answer("301 Moved", Location=f"{gateway.url}/back")]
        async with gateway_fetcher(gateway) as fetcher:
            await bring(store, fetcher, Source("content", f"{gateway.url}/content", with_key=True))
    assert [request.path for request in gateway.requests] == ["/content", "/moved", "/back"]
    assert keys_sent(gateway) == [f"bearer {KEY.lower()}", f"bearer {KEY.lower()}", None]
    assert keys_sent(elsewhere) == [None]


async def test_does_not_follow_redirects_for_ever(store: Store, fetcher: Fetcher) -> None:
    async with WebServer([answer("302 Found", Location="/again")]) as web:
        problem = await failure(store, fetcher, web.url)
    assert [source for source, _ in problem.attempts] == ["source 1"]
    assert len(web.requests) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/x", "javascript:alert(1)", "gopher:"])
async def test_does_not_follow_redirects_out_of_the_web(store: Store, fetcher: Fetcher, location: str) -> None:
    async with WebServer([answer("302 Found", Location=location)]) as web:
        problem = await failure(store, fetcher, web.url)
    assert "URL" in problem.attempts[0][1]
    assert len(web.requests) == 1


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_a_key_that_was_refused_does_not_mean_gone(store: Store, status: str) -> None:
    async with WebServer([answer(status)]) as gateway, gateway_fetcher(gateway) as fetcher:
        problem = await failure(store, fetcher, Source("content", gateway.url, with_key=True))
    ((source, reason),) = problem.attempts
    assert (source, status[:3] in reason, "key" in reason) == ("content", True, True)
    assert not problem.gone
    assert KEY not in str(problem)


async def test_private_addresses_are_refused_but_the_gateways_own(store: Store, clip: bytes) -> None:
    async with WebServer([]) as gateway, WebServer([whole(clip)]) as inside:
        port = inside.url.rsplit(":", 1)[1]
        gateway.handlers = [answer("302 Found", Location=inside.url), whole(clip)]
        async with gateway_fetcher(gateway, allow_private_addresses=False) as fetcher:
            problem = await failure(
                store,
                fetcher,
                gateway.url,
                *(f"http://{host}:{port}/" for host in ("localhost", "[::1]", "2130706433")),
            )
            receipt = await bring(store, fetcher, gateway.url)
    assert inside.requests == []
    assert len(problem.attempts) == 4
    for _, reason in problem.attempts:
        assert "LONGTAKE_ALLOW_PRIVATE_ADDRESSES" in reason
    assert not receipt.already_stored


async def test_an_unknown_host_is_named_without_its_link(store: Store) -> None:
    async with Fetcher("http://127.0.0.1:9") as fetcher:
        problem = await failure(store, fetcher, "https://no-such-host.invalid/a?Signature=secret")
    ((_, reason),) = problem.attempts
    assert "no-such-host.invalid" in reason


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",  # noqa: S104 - to be refused
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
