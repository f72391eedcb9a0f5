"""Brings a clip home: from whichever source still has it into the store, whole and verified, in one pass.

What arrives is hashed, counted and read as an MP4 while it is written, and the write only becomes visible if all of
that agrees; so nothing in the store is ever half a video, and no restart pays or downloads for what is already there.
"""

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeAlias

import httpx
from pydantic import BaseModel, ValidationError

from longtake.delivery.mp4 import Mp4Reader, NotAWholeVideo
from longtake.delivery.public_network import ANY_ADDRESS, AddressRefused, HostUnknown, download_client, what_to_set
from longtake.models import DeliveryKind, DeliveryReceipt, MediaInfo, StoredVideo
from longtake.observability.http_tracing import exchange_span
from longtake.storage import Store, StoreProblem

MAX_VIDEO_BYTES = 2 * 2**30
"""A 15 s clip has 5 to 50 MB."""
MIN_PROGRESS_BYTES = 256 * 2**10
"""A download goes on, however long it takes, while it brings this much in each `PROGRESS_TIME`. At 2 KiB/s, 50 MB take
7 h, and links live for about 24 h. A drip never runs into a read timeout, and would hold up the other sources."""
PROGRESS_TIME = timedelta(minutes=2)
"""For `MIN_PROGRESS_BYTES`, and so for every standstill on either side."""
STORE_TIME = timedelta(minutes=15)
"""After the last byte has come: what the store may take to make a large video visible, its own retries included."""

_MAX_REDIRECTS = 5
_MAX_BREAKS = 5
_MAX_RESTARTS = 1
_BREAK_PAUSE_SECONDS = 0.1
_ERROR_BODY_BYTES = 4096
_REFUSES_FAILED = b"current status: failure"
"""In small letters: so stock answers `/content` of a task that failed (field notes)."""
_TIMEOUT = httpx.Timeout(30, connect=10)
_PREFLIGHT_SECONDS = 10
_PREFLIGHT_GOOD_FOR_SECONDS = 300.0

_EXPECTED_SECONDS = {DeliveryKind.FULL: 15.0, DeliveryKind.FIRST: 8.0}
_DURATION_SLACK_SECONDS = 1.0

Origin: TypeAlias = tuple[str, str, int | None]
Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the bytes that are done and the total, where it is known; in the task that delivers."""


@dataclass(frozen=True)
class Source:
    """One place that may have the clip."""

    label: str
    """What to call it in errors and receipts; never the link."""
    url: str = field(repr=False)
    with_key: bool = False
    """Whether the gateway's key is needed; it is sent to the gateway's own origin only, whatever stands here."""


class SourceFailed(Exception):
    """One source did not give the clip.

    Attributes:
        reason: Why, without links.
        gone: True where the source says that it never will again.
    """

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.gone = gone


class DownloadsBlocked(Exception):
    """Downloads cannot reach anything, not even the gateway; says what to set."""


class DownloadFailed(Exception):
    """No source gave the clip.

    Attributes:
        attempts: Each source's label and why it failed, in the order of trying.
        gone: True where every source said that it no longer has the clip; False where it may come later.
    """

    def __init__(self, kind: DeliveryKind, attempts: Sequence[tuple[str, str]], *, gone: bool) -> None:
        tried = "; ".join(f"{label}: {reason}" for label, reason in attempts) or "there is no link to it"
        advice = "every link is gone: a fresh query may bring a new one" if gone else "it may work later: try again"
        super().__init__(f"the {kind.value} video could not be downloaded ({tried}); {advice}")
        self.attempts = list(attempts)
        self.gone = gone


# Python refuses to read a number of thousands of digits, with a ValueError.
_SIZE = re.compile(r"[0-9]{1,18}")
_ENTITY_TAG = re.compile(r'"[\x21\x23-\x7e]*"')
_DATE = re.compile(r"[\x20-\x7e]+")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class _StartOver(Exception):
    """A broken download cannot be continued where it stopped."""


class Fetcher:
    """Downloads from strangers: no key but to the gateway itself, no private addresses, every limit checked."""

    def __init__(  # noqa: PLR0913 - four limits, each named at every call
        self,
        gateway_url: str,
        key: Callable[[], str] | None = None,
        *,
        allow_private_addresses: bool = False,
        max_bytes: int = MAX_VIDEO_BYTES,
        progress_time: timedelta = PROGRESS_TIME,
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> None:
        """Open a client of its own; close it with `aclose` or `async with`.

        Args:
            gateway_url: The gateway's base URL; its origin may be private, and it alone is sent the key.
            key: Gives the gateway's API key, such as `settings.gateway_api_key.get_secret_value`.
            allow_private_addresses: Whether links may lead to addresses that are not public.
            max_bytes: The largest video that is taken.
            progress_time: Within which a source brings at least `MIN_PROGRESS_BYTES`, or the rest.
            timeout: For connecting, and for each silence.
        """
        self._gateway = _origin(httpx.URL(gateway_url))
        self._key = key
        self._allow_private_addresses = allow_private_addresses
        self.max_bytes = max_bytes
        self.progress_time = progress_time
        self._client = download_client(timeout, httpx.Limits(max_connections=20))
        self._good_until = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def preflight(self) -> None:
        """Send a free request to the gateway's own origin on the way that downloads take.

        So a proxy or an authority that is missing here shows before anything is paid. Any answer will do; where the
        connection was made and no answer came, nothing is concluded.

        Raises:
            DownloadsBlocked: No connection can be made.
        """
        if time.monotonic() < self._good_until:
            return
        scheme, host, port = self._gateway
        origin = httpx.URL(scheme=scheme, host=host, port=port, path="/")
        request = self._client.build_request(
            "HEAD", origin, extensions={ANY_ADDRESS: True}, timeout=httpx.Timeout(_PREFLIGHT_SECONDS)
        )
        where = f"{scheme}://{host}" + (f":{port}" if port else "")
        with exchange_span(request) as span:
            try:
                response = await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                raise DownloadsBlocked(
                    f"downloads do not reach {where} ({what_to_set(error)}): check the network; where it takes a "
                    "proxy, set HTTPS_PROXY"
                ) from None
            except (httpx.TransportError, httpx.InvalidURL):  # as `open` says: it answered, with a bad Location
                return
            span.answered(response)
            await response.aclose()
        if response.status_code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
            raise DownloadsBlocked(
                f"downloads do not reach {where}: the proxy wants a name and a password: "
                "set HTTP_PROXY to http://NAME:PASSWORD@HOST:PORT"
            )
        self._good_until = time.monotonic() + _PREFLIGHT_GOOD_FOR_SECONDS

    @contextlib.asynccontextmanager
    async def open(self, source: Source, headers: dict[str, str] | None = None) -> AsyncIterator[httpx.Response]:
        """Send a GET, follow redirects by hand, and give the response with its body unread.

        Raises:
            SourceFailed: if the link is no `http(s)` URL, redirects without end, or leads (or redirects) to an address
                that is not public.
            httpx.TransportError: if the connection fails.
        """
        url = _parse(source.url)
        send_key = source.with_key
        for _ in range(_MAX_REDIRECTS + 1):
            at_gateway = _origin(url) == self._gateway
            # Once it has led elsewhere the key stays at home, even if a redirect leads back.
            send_key = send_key and at_gateway
            request = self._client.build_request("GET", url, headers={"Accept-Encoding": "identity", **(headers or {})})
            if at_gateway or self._allow_private_addresses:
                request.extensions[ANY_ADDRESS] = True
            if send_key and self._key is not None:
                request.headers["Authorization"] = f"Bearer {self._key()}"
            with exchange_span(request) as span:
                try:
                    response = await self._client.send(request, stream=True)
                except httpx.InvalidURL:  # httpx reads the Location even where it does not follow it
                    raise SourceFailed("redirected to something that is no URL") from None
                except (AddressRefused, HostUnknown) as error:
                    raise SourceFailed(str(error)) from None
                try:
                    span.answered(response)
                    if not response.has_redirect_location:
                        yield response
                        return
                    url = _parse(response.headers["Location"], base=url)
                finally:
                    await response.aclose()
        raise SourceFailed(f"redirected more than {_MAX_REDIRECTS} times")


async def deliver(  # noqa: PLR0913 - all of them facts of one delivery, named at the call
    *,
    store: Store,
    fetcher: Fetcher,
    sources: Callable[[], AsyncIterator[Source]],
    directory: str,
    kind: DeliveryKind,
    task_id: str,
    expected_size: tuple[int, int] | None = None,
    expect_audio: bool = True,
    on_progress: Progress | None = None,
) -> DeliveryReceipt:
    """Bring a clip into the store, or find it there. Called again after a crash, it goes on where that is possible.

    Args:
        store: Where to.
        fetcher: Downloads.
        sources: Gives the sources in turn; it is asked for one more only after the one before has failed, so it may
            ask the gateway for a fresh link in between. What it raises passes through.
        directory: The generation's folder in the store.
        kind: Which clip.
        task_id: The gateway's task, whose hash names the object.
        expected_size: Width and height in pixels, where the request named them.
        expect_audio: Whether a clip without sound is worth a warning.
        on_progress: Called with the bytes done and the total if known.

    Raises:
        DownloadFailed: if no source gave the clip, whole.
        StoreProblem: if the store failed; that says nothing about the sources.
    """
    path = _clip_path(directory, kind, task_id)
    delivery = _Delivery(store, path, kind, expected_size, expect_audio, on_progress or _silent)
    return await delivery.find() or await delivery.download(fetcher, sources)


async def is_delivered(store: Store, directory: str, kind: DeliveryKind, task_id: str) -> bool:
    """Whether a clip lies in the store, whole.

    Raises:
        StoreProblem: The store does not answer.
    """
    return await store.head(f"{_clip_path(directory, kind, task_id)}.json") is not None


def _clip_path(directory: str, kind: DeliveryKind, task_id: str) -> str:
    return f"{directory}/{kind.value}-{hashlib.sha256(task_id.encode()).hexdigest()[:8]}.mp4"


class _Sidecar(BaseModel):
    """What lies beside a clip, written last: the clip is there, whole, and need not be read again."""

    video: StoredVideo
    warnings: tuple[str, ...] = ()
    source: str = ""


class _Inspection:
    """Reads a clip as it streams past: its hash, its length and what is in it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._reader = Mp4Reader()

    def feed(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        self._hash.update(chunk)
        self._reader.feed(chunk)

    def finish(self) -> MediaInfo:
        return self._reader.finish()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def stray_bytes(self) -> int:
        return self._reader.stray_bytes


@dataclass(frozen=True)
class _Delivery:
    """One clip on its way to one place in the store."""

    store: Store
    path: str
    kind: DeliveryKind
    expected_size: tuple[int, int] | None
    expect_audio: bool
    on_progress: Progress

    async def find(self) -> DeliveryReceipt | None:
        """Find the clip in the store, if an earlier delivery brought it there."""
        size = await self.store.head(self.path)
        if size is None:
            return None
        sidecar = await self._read_sidecar()
        if sidecar is not None and sidecar.video.bytes == size:
            video = sidecar.video.model_copy(update={"uri": self.store.uri_of(self.path)})
            return DeliveryReceipt(video=video, warnings=sidecar.warnings, source=sidecar.source, already_stored=True)
        # A crash between the clip and its sidecar: the clip is believed only after it was read again.
        inspection = _Inspection()
        try:
            async for chunk in self.store.stream(self.path):
                inspection.feed(chunk)
                self.on_progress(inspection.bytes, size)
            info = inspection.finish()
        except NotAWholeVideo:
            return None
        receipt = await self._seal(inspection, info, "the store")
        return receipt.model_copy(update={"already_stored": True})

    async def download(self, fetcher: Fetcher, sources: Callable[[], AsyncIterator[Source]]) -> DeliveryReceipt:
        """Take the clip from the first source that has it, whole."""
        attempts: list[tuple[str, str]] = []
        all_gone = True
        tried: set[str] = set()
        async for source in sources():
            if source.url in tried:
                continue  # a fresh query need not bring a fresh link
            tried.add(source.url)
            try:
                return await self._take(fetcher, source)
            except SourceFailed as failure:
                attempts.append((source.label, failure.reason))
                all_gone = all_gone and failure.gone
        raise DownloadFailed(self.kind, attempts, gone=all_gone and bool(attempts))

    async def _take(self, fetcher: Fetcher, source: Source) -> DeliveryReceipt:
        for _ in range(_MAX_RESTARTS + 1):
            transfer = _Transfer(fetcher, source, self.on_progress)
            try:
                async with asyncio.timeout(None) as limit:
                    async with contextlib.aclosing(transfer.chunks(limit)) as chunks:
                        await self.store.put_stream(self.path, chunks)
            except _StartOver:
                continue
            except TimeoutError:
                if transfer.is_done:
                    raise StoreProblem(f"the store did not finish within {STORE_TIME}", retryable=True) from None
                raise SourceFailed(transfer.too_slow()) from None
            return await self._seal(transfer.inspection, transfer.info, source.label)
        raise SourceFailed(f"broke off {_MAX_RESTARTS + 1} times and could not be continued")

    async def _seal(self, inspection: _Inspection, info: MediaInfo, source: str) -> DeliveryReceipt:
        """Write down that the clip is there."""
        video = StoredVideo(
            **info.model_dump(),
            uri=self.store.uri_of(self.path),
            sha256=inspection.sha256,
            bytes=inspection.bytes,
        )
        warnings = self._judge(info, inspection.stray_bytes)
        sidecar = _Sidecar(video=video, warnings=warnings, source=source)
        await self.store.put(f"{self.path}.json", sidecar.model_dump_json(indent=2).encode())
        return DeliveryReceipt(video=video, warnings=warnings, source=source)

    async def _read_sidecar(self) -> _Sidecar | None:
        content = await self.store.get(f"{self.path}.json")
        try:
            return None if content is None else _Sidecar.model_validate_json(content)
        except ValidationError:
            return None  # the clip itself will tell

    def _judge(self, info: MediaInfo, stray_bytes: int) -> tuple[str, ...]:
        """Say what is wrong with a clip that is whole."""
        warnings = []
        expected = _EXPECTED_SECONDS[self.kind]
        if abs(info.duration_seconds - expected) > _DURATION_SLACK_SECONDS:
            warnings.append(
                f"the {self.kind.value} video is {info.duration_seconds:.1f} s long, {expected:.0f} s were expected"
            )
        if self.expected_size is not None and (info.width, info.height) != self.expected_size:
            width, height = self.expected_size
            warnings.append(
                f"the {self.kind.value} video has {info.width}x{info.height} pixels, {width}x{height} were expected"
            )
        if self.expect_audio and not info.has_audio:
            warnings.append(f"the {self.kind.value} video has no sound")
        if stray_bytes:
            warnings.append(f"{stray_bytes:,} bytes that belong to no part of it follow the {self.kind.value} video")
        return tuple(warnings)


class _Transfer:
    """One download from its first byte to its last, over as many connections as it takes."""

    def __init__(self, fetcher: Fetcher, source: Source, on_progress: Progress) -> None:
        self.inspection = _Inspection()
        self.info: MediaInfo
        self._fetcher = fetcher
        self._source = source
        self._on_progress = on_progress
        self._total: int | None = None
        self._validator: str | None = None
        self.is_done = False
        """Whether all has come, so that only the store has something left to do."""

    async def chunks(self, limit: asyncio.Timeout) -> AsyncGenerator[bytes, None]:
        """Give the clip's bytes; end only if they are a whole video.

        Args:
            limit: Is moved on as long as enough comes.

        Raises:
            SourceFailed: if the source does not have it, or what it has is no whole video.
            _StartOver: if the connection broke and the source cannot continue where it did.
        """
        breaks = 0
        goal = self._move_on(limit)
        while True:
            try:
                async with self._fetcher.open(self._source, self._range()) as response:
                    await self._accept(response)
                    # As it comes: to wait for pieces of one size is to lose the last one when the connection breaks.
                    async for chunk in response.aiter_raw():
                        self._inspect(chunk)
                        if self.inspection.bytes >= goal:
                            goal = self._move_on(limit)
                        yield chunk
                break
            except httpx.TransportError as error:
                breaks += 1
                if breaks > _MAX_BREAKS or self.inspection.bytes == 0:
                    raise SourceFailed(self._broken(error)) from None
                if self._validator is None:
                    raise _StartOver from None
            await asyncio.sleep(_BREAK_PAUSE_SECONDS * 2**breaks)
        if self._total is not None and self.inspection.bytes != self._total:
            raise SourceFailed(f"cut after {self.inspection.bytes:,} of {self._total:,} bytes")
        try:
            self.info = self.inspection.finish()
        except NotAWholeVideo as error:
            raise SourceFailed(error.reason) from None
        self.is_done = True
        limit.reschedule(asyncio.get_running_loop().time() + STORE_TIME.total_seconds())

    def _move_on(self, limit: asyncio.Timeout) -> int:
        """Give it time again, and tell how many bytes must have come by then."""
        limit.reschedule(asyncio.get_running_loop().time() + self._fetcher.progress_time.total_seconds())
        return self.inspection.bytes + MIN_PROGRESS_BYTES

    def too_slow(self) -> str:
        done, time = self.inspection.bytes, self._fetcher.progress_time
        return f"too slow: {done:,} bytes came, and less than {MIN_PROGRESS_BYTES:,} of them within the last {time}"

    def _range(self) -> dict[str, str]:
        done = self.inspection.bytes
        if done == 0 or self._validator is None:
            return {}
        # With If-Range the source sends the rest only of what it sent before, else everything.
        return {"Range": f"bytes={done}-", "If-Range": self._validator}

    async def _accept(self, response: httpx.Response) -> None:
        """Look at the head of an answer before its body is taken."""
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceFailed("answered compressed, although it was asked not to")
        if self.inspection.bytes:
            self._accept_rest(response)
            return
        if response.status_code != httpx.codes.OK:
            raise await self._refused(response)
        self._total = _number(response.headers.get("Content-Length"))
        self._validator = _strong_validator(response)
        if self._total is not None and self._total > self._fetcher.max_bytes:
            raise SourceFailed(f"{self._total:,} bytes, at most {self._fetcher.max_bytes:,} are taken")

    def _accept_rest(self, response: httpx.Response) -> None:
        if response.status_code in {httpx.codes.OK, httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE}:
            raise _StartOver
        content_range = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            raise SourceFailed(f"broke off, then answered {response.status_code}")
        if content_range is None:
            raise _StartOver
        first, last, total = (int(number) for number in content_range.groups())
        if first != self.inspection.bytes or last != total - 1 or (self._total is not None and total != self._total):
            raise _StartOver
        self._total = total

    async def _refused(self, response: httpx.Response) -> SourceFailed:
        status = response.status_code
        reason = f"answered {status}"
        asked_with_key = "Authorization" in response.request.headers
        if asked_with_key and status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            return SourceFailed(f"{reason}: the gateway refused the key")
        if status in {httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND, httpx.codes.GONE}:
            return SourceFailed(reason, gone=True)
        if status in {httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED}:
            body = await _beginning(response)
            if b"expired" in body:
                return SourceFailed(f"{reason}: the link has expired", gone=True)
            if asked_with_key and _REFUSES_FAILED in body:
                return SourceFailed(f"{reason}: the gateway serves nothing of a failed task", gone=True)
        return SourceFailed(reason)

    def _inspect(self, chunk: bytes) -> None:
        if self.inspection.bytes + len(chunk) > self._fetcher.max_bytes:
            raise SourceFailed(f"more than {self._fetcher.max_bytes:,} bytes, which is more than is taken")
        try:
            self.inspection.feed(chunk)
        except NotAWholeVideo as error:
            raise SourceFailed(error.reason) from None
        self._on_progress(self.inspection.bytes, self._total)

    def _broken(self, error: httpx.TransportError) -> str:
        done = self.inspection.bytes
        if done == 0:
            return f"not a byte came ({what_to_set(error)})"
        total = f" of {self._total:,}" if self._total is not None else ""
        return f"cut after {done:,}{total} bytes ({type(error).__name__})"


def _silent(_done: int, _total: int | None) -> None:
    """Progress that nobody wants to know."""


def _parse(url: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise SourceFailed("the link is not a URL") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise SourceFailed("the link is no http:// or https:// URL")
    return parsed


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host.rstrip("."), url.port  # httpx leaves a scheme's own port out


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and _SIZE.fullmatch(text) else None


def _strong_validator(response: httpx.Response) -> str | None:
    """What If-Range may name, as it can be sent back: a strong entity tag, else the date of the last change."""
    for pattern, name in ((_ENTITY_TAG, "ETag"), (_DATE, "Last-Modified")):
        if pattern.fullmatch(said := response.headers.get(name, "")):
            return str(said)
    return None


async def _beginning(response: httpx.Response) -> bytes:
    """The beginning of an error's body, in small letters."""
    body = b""
    async for chunk in response.aiter_raw(_ERROR_BODY_BYTES):
        body += chunk
        if len(body) >= _ERROR_BODY_BYTES:
            break
    return body.lower()
