"""The gateway's HTTP client: one exchange per call. It retries nothing, because retries belong to Temporal.

A submission costs money and has no idempotency, so the client knows of every one whether anything was sent. httpx
calls a trace hook after connect and TLS, directly before the first byte of the request (`before_send`). If that hook
never let the request through, nothing was sent: `GatewayUnreachable`, whatever went wrong. If it did, only a response
that `PAID_TABLE` maps to "nothing was made" counts as a refusal; any other end is "outcome unknown". Hence HTTP/1.1
only (HTTP/2 has other hooks), no kept-alive connections, no redirects and a separate httpx client for submissions.

Proxies and certificate bundles from the environment are honoured (`trust_env`, httpx's default), because workers often
live behind them. A proxy's own CONNECT does not count as sending.

httpx logs every URL at INFO. No URL of this module holds a secret; code that downloads from signed links with httpx
must set the logger `httpx` to WARNING.
"""

import asyncio
import hashlib
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self
from urllib.parse import quote, unquote

import httpx
from pydantic import SecretStr

from longtake.gateway import wire
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    InvalidResponse,
    KeyRefused,
    MediaRefused,
    QuotaExhausted,
    RequestRefused,
    ResponseLost,
    TaskNotFound,
)
from longtake.gateway.wire import ErrorFacts, GatewayRecord
from longtake.observability.http_tracing import REQUEST_ID_HEADER, ExchangeSpan, exchange_span
from longtake.request.images import ImagePart

logger = logging.getLogger("longtake.gateway")

SUBMIT_PATH = "/v1/videos"

_CONNECT_SECONDS = 10.0  # per step: TCP, TLS
_REACH_SECONDS = 30.0  # all steps before the first byte of a submission, with a proxy between
_MAX_RESPONSE_BYTES = 4 * 1024 * 1024  # a record has 2 kB; more is a page or an attack
_MAX_QUERIES_AT_ONCE = 20  # httpx's pool re-scans all its connections at each request
_USER_AGENT = "longtake"  # some firewalls refuse the default names of HTTP libraries
_CHECK_URL = "is LONGTAKE_GATEWAY_URL right?"
_TOP_UP = "top up the gateway's account, or give the key a larger share of it"
QUOTA_CODES = frozenset({"insufficient_user_quota", "pre_consume_token_quota_failed"})
"""The gateway's codes for a valid key whose account, or share of it, is used up (field notes)."""


class SendHookDidNotFire(RuntimeError):
    """A response came although the hook before the first byte never fired: at-most-once cannot be kept.

    A defect of this installation (another HTTP library version, a transport of its own), not of the gateway. The
    worker must stop submitting.
    """


@dataclass(frozen=True, kw_only=True)
class SubmissionForm:
    """What is submitted. There is no duration: the field would multiply the price (field notes).

    Raises:
        ValueError: Images of both kinds (the gateway would reorder them, field notes), or one that is neither.
    """

    model: str
    prompt: str = field(repr=False)
    prompt_extend: str = field(repr=False)
    size: str | None = None
    images: Sequence[ImagePart] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if any((part.text is None) == (part.content is None) for part in self.images):
            raise ValueError("an image is either text (a URL, a data URI) or a file")
        if len({part.text is None for part in self.images}) > 1:
            raise ValueError("send all images of one request in one kind: the gateway puts texts before files")

    def parts(self) -> list[tuple[str, tuple[str | None, bytes] | tuple[str | None, bytes, str]]]:
        """The parts of the multipart body, in order, as httpx takes them.

        Text fields are files without a name, so that the body is `multipart/form-data` even with no file in it.

        Raises:
            RequestRefused: A text is not valid Unicode; nothing was sent.
        """
        texts = {"model": self.model, "prompt": self.prompt, "prompt_extend": self.prompt_extend}
        if self.size is not None:
            texts["size"] = self.size
        parts: list[tuple[str, tuple[str | None, bytes] | tuple[str | None, bytes, str]]] = [
            (name, (None, encode_text(name, text))) for name, text in texts.items()
        ]
        for number, part in enumerate(self.images, start=1):
            if part.text is not None:
                parts.append(("input_reference[]", (None, encode_text(f"images[{number - 1}]", part.text))))
            elif part.content is not None:
                media_type = part.media_type or "application/octet-stream"
                parts.append(("input_reference[]", (part.filename or f"image-{number}", part.content, media_type)))
        return parts


@dataclass(frozen=True)
class SubmittedTask:
    """A paid submission that the gateway accepted."""

    task_id: str
    request_id: str | None = None
    """The gateway's id of the POST."""


@dataclass(frozen=True)
class PaidRow:
    """One row of "was a paid job made?" (field notes): which responses, and what they mean."""

    summary: str
    error: type[GatewayError]
    statuses: frozenset[int] | range
    codes: frozenset[str] | None = None
    """Only with one of these error codes; None for any."""
    advice: str = ""


PAID_TABLE: tuple[PaidRow, ...] = (
    # Nothing was made, send again later.
    PaidRow("Cloudflare could not reach the gateway", GatewayUnreachable, frozenset({521, 522, 523, 525, 526})),
    PaidRow("the proxy wants a login", GatewayUnreachable, frozenset({407}), advice="set it in HTTPS_PROXY"),
    # The gateway hands on its upstream's refusal of the gateway's own key: ours is good (seen on a NewAPI, July 2026).
    PaidRow(
        "the gateway's upstream refused the gateway's own access",
        RequestRefused,
        frozenset({401, 402, 403}),
        frozenset({"fail_to_fetch_task"}),
        advice="LONGTAKE_GATEWAY_API_KEY is good: tell the gateway's operator",
    ),
    # Nothing was made until an operator acts. The code goes before the status: some installations answer 429 with it.
    PaidRow("out of quota", QuotaExhausted, range(400, 500), QUOTA_CODES, advice=_TOP_UP),
    PaidRow("out of quota", QuotaExhausted, frozenset({402}), advice=_TOP_UP),
    PaidRow(
        "the key was refused",
        KeyRefused,
        frozenset({401, 403}),
        advice="the key is wrong, disabled, expired or exhausted: check LONGTAKE_GATEWAY_API_KEY and its quota",
    ),
    PaidRow("too many requests", GatewayBusy, frozenset({429})),
    PaidRow("no channel for this model now", GatewayBusy, frozenset({503}), frozenset({"model_not_found"})),
    PaidRow(
        "the gateway failed before it called upstream",
        GatewayBusy,
        frozenset({500}),
        frozenset({"build_request_failed"}),
    ),
    # Nothing was made, and never will be.
    PaidRow("no such route", RequestRefused, frozenset({404, 405}), advice=_CHECK_URL),
    # A time-out is ambiguous under a 4xx number too: 408 may be the upstream's, handed on; 499 is nginx's own.
    PaidRow("a time-out", ResponseLost, frozenset({408, 499})),
    PaidRow(
        "images in this form were refused",
        MediaRefused,
        frozenset({400}),
        frozenset({"invalid_media_input"}),
        advice="see LONGTAKE_IMAGE_TRANSFER",
    ),
    PaidRow("the request was refused", RequestRefused, range(400, 500)),
    # Unknown: 5xx that are not above, other redirects, numbers outside HTTP. `get_channel_failed` too: in stock it
    # follows a first try that failed, and hides what became of that (field notes).
    PaidRow("a response that does not say whether a job was made", ResponseLost, range(1000)),
)
"""Read from the top: the first row that fits decides. Redirects to the same route are checked before it."""


def classify_submission(
    status: int, headers: Mapping[str, str], body: bytes, *, secrets: Sequence[str] = (), path: str = SUBMIT_PATH
) -> GatewayError | None:
    """What a response to a submission means for money; None for 2xx, whose body is then read for the task id.

    A redirect to the same route at another scheme or host (`http` to `https`) comes from in front of the gateway and
    means that the base URL is wrong: nothing was made. Any other redirect may follow a submission that was processed
    (post, redirect, get), so its outcome is unknown.

    Args:
        status: The HTTP status.
        headers: The response's headers.
        body: The response's body, or as much of it as was read.
        secrets: Texts that must not come back in messages.
        path: The route that was asked.
    """
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's success
        return None
    facts = wire.read_error(status, headers, body, secrets=secrets)
    moved_to = _moved_to(status, headers, path, secrets)
    if moved_to is not None:
        advice = f"set LONGTAKE_GATEWAY_URL to {moved_to}"
        return _error(RequestRefused, f"the gateway has moved (HTTP {status})", status, headers, facts, advice)
    fitting = (row for row in PAID_TABLE if status in row.statuses and (row.codes is None or facts.code in row.codes))
    row = next(fitting, PAID_TABLE[-1])
    return _error(row.error, f"{row.summary} (HTTP {status})", status, headers, facts, row.advice)


class GatewayClient:
    """The gateway's routes, typed. One for each worker; safe for many calls at once within one event loop."""

    def __init__(
        self,
        *,
        base_url: str,
        api_keys: Sequence[SecretStr],
        submit_timeout: timedelta = timedelta(seconds=120),
        query_timeout: timedelta = timedelta(seconds=20),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            base_url: `https://gateway.example`; a trailing `/v1` is understood.
            api_keys: The first pays for submissions; the others only help to query (same account).
            submit_timeout: The longest from the first byte of a submission to the last of its response.
            query_timeout: The same for any other request, connecting included.
            transport: For tests of single HTTP cases, instead of the network. Submissions need a real one.

        Raises:
            ValueError: The URL or a key cannot be used; says what to set, without repeating keys.
        """
        self._base_url = _read_base_url(base_url)
        self._keys = [read_key(key) for key in api_keys]
        if not self._keys:
            raise ValueError("no API key for the gateway: set LONGTAKE_GATEWAY_API_KEY")
        self._good_key = 0
        self._send_hook_failed = False
        self._submit_seconds = submit_timeout.total_seconds()
        self._query_seconds = query_timeout.total_seconds()
        self._query_slots = asyncio.Semaphore(_MAX_QUERIES_AT_ONCE)
        # Compressed bytes are a way to send gigabytes in a kilobyte: ask for none, and bound those that come (`_Body`).
        headers = {"User-Agent": _USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"}
        tls = httpx.create_ssl_context()  # once for both: reading the certificates takes 20 ms
        # Two clients, because a kept-alive connection may die under a request: harmless for a query, "outcome unknown"
        # for a paid one.
        self._submitting = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(self._submit_seconds, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_keepalive_connections=0),
            verify=tls,
            http2=False,
            follow_redirects=False,
            trust_env=True,
            transport=transport,
        )
        self._querying = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(self._query_seconds, connect=min(_CONNECT_SECONDS, self._query_seconds)),
            limits=httpx.Limits(max_connections=_MAX_QUERIES_AT_ONCE),
            verify=tls,
            http2=False,
            follow_redirects=False,
            trust_env=True,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._submitting.aclose()
        await self._querying.aclose()

    @property
    def origin(self) -> str:
        """`scheme://host[:port]` of the gateway."""
        return _origin(httpx.URL(self._base_url))

    @property
    def account(self) -> str:
        """A fingerprint of the key that pays, which can be written down: tells one account from another."""
        return fingerprint(self._keys[0])

    def content_url(self, task_id: str) -> str:
        """Where the gateway itself serves the video of a task; it needs the key (`key_for`)."""
        return f"{self._base_url}{_task_path(task_id)}/content"

    def key_for(self, url: str) -> SecretStr | None:
        """The key to send to `url`; None unless it has the gateway's origin ("never send the key to another host")."""
        try:
            same = _origin(httpx.URL(url)) == self.origin
        except (httpx.InvalidURL, ValueError):
            return None
        return SecretStr(self._keys[self._good_key]) if same else None

    def has_key_of(self, account: str) -> bool:
        """Whether one of the keys has this fingerprint: all of them are of one account."""
        return any(fingerprint(key) == account for key in self._keys)

    async def submit(self, form: SubmissionForm, *, before_send: Callable[[], Awaitable[None]]) -> SubmittedTask:
        """Pay for one generation: one POST, sent at most once.

        Args:
            form: What to submit.
            before_send: Awaited once, after connect and TLS and before the first byte. If it raises, no byte leaves and
                that very exception comes out here. Its own duration counts towards no time limit of this call.

        Raises:
            GatewayUnreachable, GatewayBusy, RequestRefused, KeyRefused: Nothing was made.
            ResponseLost, InvalidResponse: Sent, and the outcome is unknown.
            SendHookDidNotFire: Answered without having asked `before_send`; stop submitting.
        """
        return await self.pay_once(
            SUBMIT_PATH, before_send=before_send, secrets=(form.prompt, form.prompt_extend), files=form.parts()
        )

    async def pay_once(
        self, path: str, *, before_send: Callable[[], Awaitable[None]], secrets: Sequence[str], **body: Any
    ) -> SubmittedTask:
        """Make a paid POST: `submit` is one, the retry of an extension another.

        Args:
            path: The route below the base URL, escaped.
            before_send: See `submit`.
            secrets: Texts in the body that must not come back in messages.
            body: As httpx takes it: `files` or `json`.

        Raises:
            GatewayUnreachable, GatewayBusy, RequestRefused, KeyRefused, ResponseLost, InvalidResponse,
            SendHookDidNotFire: See `submit`.
        """
        if self._send_hook_failed:
            raise GatewayUnreachable(
                "this worker sends nothing any more: its HTTP client did not call the hook before sending"
            )
        gate = _SendGate(before_send, self._submit_seconds)
        secrets = (*self._keys, *secrets)
        request = self._submitting.build_request(
            "POST",
            self._base_url + path,
            headers={"Authorization": f"Bearer {self._keys[0]}"},
            extensions={"trace": gate.trace},
            **body,
        )
        try:
            async with asyncio.timeout(_REACH_SECONDS) as gate.deadline:
                response = await _exchange(self._submitting, request, path)
        except Exception as error:
            # From None throughout: a chained httpx traceback is too long for Temporal to keep the failure's type.
            if gate.refusal is not None:
                raise gate.refusal from None
            if gate.passed and isinstance(error, GatewayError):
                raise
            if gate.passed:
                # Whatever it is, a defect of ours included: the request may have arrived.
                raise ResponseLost(f"the submission was sent and its response was lost: {_cause(error)}") from None
            if isinstance(error, httpx.HTTPError | TimeoutError | OSError):
                raise GatewayUnreachable(
                    f"nothing was sent, {self.origin} cannot be reached: {_cause(error)}; {_CHECK_URL}"
                ) from None
            raise
        if gate.refusal is not None:
            raise gate.refusal
        if not gate.passed:
            self._send_hook_failed = True
            raise SendHookDidNotFire(
                f"HTTP {response.status} came although the hook before the first byte never fired: stop submitting, "
                "and install the versions of httpx and httpcore that longtake was released with"
            )
        try:
            return _read_submission(response, path, secrets)
        except (ResponseLost, InvalidResponse) as error:
            # A person who has to find the task may see more in the response than a program does.
            error.excerpt = wire.read_excerpt(response.body, secrets=secrets)
            raise

    async def query(self, task_id: str, *, second_path: bool = False) -> GatewayRecord:
        """Query the state of a task once.

        Args:
            task_id: The gateway's id of the task.
            second_path: Ask `/v1/video/generations/{id}`, the gateway's other route to the same task.

        Raises:
            KeyRefused: None of the keys is accepted; the task itself goes on.
            TaskNotFound: The gateway does not know the task: too early, or its row was lost.
            GatewayUnreachable, GatewayBusy, ResponseLost, InvalidResponse: Poll again later.
        """
        path = _task_path(task_id, second_path=second_path)
        response = await self._get(path, of_a_task=True)
        body = _parse(response, self._keys)
        record = wire.read_task(body, asked_for=task_id, request_id=response.request_id, status=response.status)
        if record.answered_task_id not in {None, task_id}:
            fields = {
                "task_id": task_id,
                "answered_task_id": record.answered_task_id,
                "request_id": response.request_id,
            }
            logger.warning("the response is about another task", extra=fields)
        return record

    async def list_models(self) -> list[str]:
        """The models that the paying key may use.

        Raises:
            KeyRefused: The key that pays for submissions is not accepted.
            GatewayUnreachable, GatewayBusy, ResponseLost, InvalidResponse: Could not be asked now.
        """
        response = await self._get("/v1/models", only_key=0)
        body = _parse(response, self._keys)
        rows = body.get("data") if isinstance(body, dict) else None
        if not isinstance(rows, list):
            raise InvalidResponse(
                f"the list of models is not one; {_CHECK_URL}", status=response.status, request_id=response.request_id
            )
        return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    async def check_key(self) -> None:
        """Check that every key is accepted, with a request that costs nothing.

        Raises:
            KeyRefused: Names the first that is not by its place in LONGTAKE_GATEWAY_API_KEY.
            GatewayUnreachable, GatewayBusy, ResponseLost, InvalidResponse: Could not be asked now.
        """
        for place in range(len(self._keys)):
            _parse(await self._get("/v1/models", only_key=place), self._keys)

    async def _get(self, path: str, *, only_key: int | None = None, of_a_task: bool = False) -> "HttpResponse":
        """GET with the key that worked last, then with the others."""
        count = len(self._keys)
        first = self._good_key
        places = [only_key] if only_key is not None else [(first + step) % count for step in range(count)]
        refusal: GatewayError | None = None
        for place in places:
            response = await self.get_once(path, headers={"Authorization": f"Bearer {self._keys[place]}"})
            problem = self._classify_response(response, place, of_a_task=of_a_task)
            if problem is None:
                if only_key is None:
                    self._good_key = place
                return response
            if not isinstance(problem, KeyRefused):
                raise problem
            refusal = problem
        raise refusal or AssertionError("there is always a key")

    async def get_once(
        self, path: str, *, headers: Mapping[str, str], params: Mapping[str, str | int] | None = None
    ) -> "HttpResponse":
        """One GET with credentials of the caller's, and return the response, whatever its status.

        Raises:
            GatewayUnreachable, ResponseLost, InvalidResponse: There is no complete response of at most 4 MiB.
        """
        request = self._querying.build_request("GET", self._base_url + path, headers=headers, params=params)
        try:
            async with self._query_slots, asyncio.timeout(self._query_seconds):
                return await _exchange(self._querying, request, path)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            raise GatewayUnreachable(f"{self.origin} cannot be reached: {_cause(error)}; {_CHECK_URL}") from None
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            raise ResponseLost(f"no response from {self.origin}: {_cause(error)}") from None

    def _classify_response(self, response: "HttpResponse", place: int, *, of_a_task: bool) -> GatewayError | None:
        """What a response to a GET means; while a paid job runs, every error but the key's means "poll again later"."""
        status, headers = response.status, response.headers
        if 200 <= status < 300:  # noqa: PLR2004 - HTTP's success
            return None
        facts = wire.read_error(status, headers, response.body, secrets=self._keys)
        error: type[GatewayError]
        if status == 402 or (status < 500 and facts.code in QUOTA_CODES):  # noqa: PLR2004 - payment required; HTTP's own errors
            error, summary, advice = QuotaExhausted, "out of quota", _TOP_UP
        elif status in {401, 403}:
            which = f"key {place + 1} of {len(self._keys)}" if len(self._keys) > 1 else "the key"
            error, summary, advice = KeyRefused, f"{which} was refused", "check LONGTAKE_GATEWAY_API_KEY and its quota"
        elif of_a_task and (status == 404 or (status == 400 and facts.code in wire.NOT_FOUND_CODES)):  # noqa: PLR2004 - HTTP
            error, summary, advice = TaskNotFound, "the gateway does not know the task", ""
        elif status == 429:  # noqa: PLR2004 - too many requests
            error, summary, advice = GatewayBusy, "too many requests", ""
        elif status in {521, 522, 523, 525, 526}:
            error, summary, advice = GatewayUnreachable, "Cloudflare could not reach the gateway", ""
        elif status >= 500:  # noqa: PLR2004 - HTTP's server errors
            error, summary, advice = ResponseLost, "the gateway failed", ""
        else:
            error, summary, advice = InvalidResponse, "a response outside the document", _CHECK_URL
        return _error(error, f"{summary} (HTTP {status})", status, headers, facts, advice)


@dataclass(frozen=True)
class HttpResponse:
    """A whole HTTP response."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def request_id(self) -> str | None:
        """The gateway's name for the request."""
        return _request_id(self.headers)


class _BodyRefused(Exception):
    """A body that is too large, or has a content coding that is not supported."""


class _Body:
    """Collects a response's body as it came over the wire, never more than the cap.

    httpx unpacks a chunk whole before it hands it out, codings within codings too: 3 kB became 4 GB.
    """

    def __init__(self, coding: str) -> None:
        self.content = bytearray()
        coding = coding.strip().lower() or "identity"
        if coding not in {"identity", "gzip", "x-gzip", "deflate"}:
            # A header may repeat what was sent, a key or a prompt: only codings are quoted.
            known = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "identity"}
            is_known = {part.strip() for part in coding.split(",")} <= known
            named = repr(coding[:40]) if is_known else "of an unknown name"
            raise _BodyRefused(f"the response has the content coding {named}, which was not asked for")
        # 32: by its header, gzip or zlib.
        self._unpacker = None if coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)

    def add(self, chunk: bytes) -> None:
        """Add what has come.

        Raises:
            _BodyRefused: It is too much, or cannot be unpacked.
        """
        room = _MAX_RESPONSE_BYTES + 1 - len(self.content)
        try:
            self.content += chunk if self._unpacker is None else self._unpacker.decompress(chunk, room)
        except zlib.error:
            raise _BodyRefused("the response's body does not have the content coding that its header names") from None
        if len(self.content) > _MAX_RESPONSE_BYTES:
            raise _BodyRefused(f"the response is larger than {_MAX_RESPONSE_BYTES} bytes")


class _SendGate:
    """Lets one request through, once, after `before_send` has agreed."""

    def __init__(self, before_send: Callable[[], Awaitable[None]], seconds_after: float) -> None:
        self.passed = False
        self.refusal: Exception | None = None
        self.deadline: asyncio.Timeout | None = None
        self._before_send = before_send
        self._seconds_after = seconds_after
        self._asked = False

    async def trace(self, name: str, info: dict[str, Any]) -> None:
        """The trace hook for httpcore; an exception in it stops the request before its first byte."""
        if name != "http11.send_request_headers.started" or info["request"].method == b"CONNECT":
            return
        if self._asked:
            raise ResponseLost("the submission was sent, and sending it a second time was refused")
        self._asked = True
        # `before_send` writes to the store and must not be cut off in the middle; its caller limits it.
        self._set_deadline(None)
        try:
            await self._before_send()
        except Exception as error:
            # Kept, because httpcore replaces exceptions of its own kinds.
            self.refusal = error
            raise
        self._set_deadline(asyncio.get_running_loop().time() + self._seconds_after)
        self.passed = True

    def _set_deadline(self, when: float | None) -> None:
        if self.deadline is not None:
            self.deadline.reschedule(when)


async def _exchange(client: httpx.AsyncClient, request: httpx.Request, path: str) -> HttpResponse:
    """Send, read the whole response up to the cap, write one span and log one line."""
    with exchange_span(request) as span:
        return await _send(client, request, path, span)


async def _send(client: httpx.AsyncClient, request: httpx.Request, path: str, span: ExchangeSpan) -> HttpResponse:
    started = time.monotonic()
    fields: dict[str, object] = {"outcome": "no response"}
    try:
        try:
            response = await client.send(request, stream=True)
        except httpx.InvalidURL:  # httpx reads the Location even where it does not follow it
            raise InvalidResponse(f"redirected to something that is no URL; {_CHECK_URL}") from None
        try:
            span.answered(response)
            request_id = _request_id(response.headers)
            fields = {"outcome": "body incomplete", "http_status": response.status_code, "request_id": request_id}
            body = _Body(response.headers.get("Content-Encoding", ""))
            async for chunk in response.aiter_raw():
                body.add(chunk)
            del fields["outcome"]
            return HttpResponse(response.status_code, response.headers, bytes(body.content))
        except _BodyRefused as refused:
            raise InvalidResponse(
                f"{refused}; {_CHECK_URL}", status=response.status_code, request_id=request_id
            ) from None
        except httpx.HTTPError as error:
            raise ResponseLost(
                f"the response (HTTP {response.status_code}) broke off: {_cause(error)}",
                status=response.status_code,
                request_id=request_id,
            ) from None
        finally:
            await response.aclose()
    except Exception as error:
        fields["error_type"] = type(error).__name__
        raise
    finally:
        fields["seconds"] = round(time.monotonic() - started, 3)
        logger.info("%s %s", request.method, path, extra=fields)


def _read_submission(response: HttpResponse, path: str, secrets: Sequence[str]) -> SubmittedTask:
    refusal = classify_submission(response.status, response.headers, response.body, secrets=secrets, path=path)
    if refusal is not None:
        raise refusal
    body = _parse(response, secrets)
    task_id = wire.read_submission(body, status=response.status, request_id=response.request_id, secrets=secrets)
    return SubmittedTask(task_id, response.request_id)


def _parse(response: HttpResponse, secrets: Sequence[str]) -> object:
    try:
        return wire.read_json(response.body)
    except ValueError as error:
        facts = wire.read_error(response.status, response.headers, response.body, secrets=secrets)
        raise InvalidResponse(
            f"HTTP {response.status} with something that is no JSON ({error}): {facts.message}; {_CHECK_URL}",
            status=response.status,
            gateway_message=facts.message,
            request_id=response.request_id,
        ) from None


def _error(  # noqa: PLR0913, PLR0917 - the facts of one response, from two call sites
    error: type[GatewayError],
    summary: str,
    status: int,
    headers: Mapping[str, str],
    facts: ErrorFacts,
    advice: str,
) -> GatewayError:
    reason = ": ".join(part for part in (facts.code, facts.message) if part)
    return error(
        "; ".join(part for part in (summary, reason, advice) if part),
        status=status,
        code=facts.code,
        gateway_message=facts.message,
        request_id=_request_id(headers),
        retry_after=wire.read_retry_after(headers),
    )


def _request_id(headers: Mapping[str, str]) -> str | None:
    return wire.read_request_id(headers, REQUEST_ID_HEADER)


def _moved_to(status: int, headers: Mapping[str, str], path: str, secrets: Sequence[str]) -> str | None:
    """The origin that a redirect names, if it leads to the same route there, without the `secrets`."""
    location = next((value for key, value in headers.items() if key.lower() == "location"), "")
    if status not in {301, 302, 307, 308} or not location:
        return None
    try:
        url = httpx.URL(location)
    except (httpx.InvalidURL, ValueError):
        return None
    route = unquote(path).rstrip("/")
    same_route = url.scheme in {"http", "https"} and url.host and url.path.rstrip("/").endswith(route)
    # httpx unescapes paths: so are secrets found, and it is escaped again to be copied into a setting.
    base = quote(wire.redact(url.path.rstrip("/").removesuffix(route), secrets=secrets)).replace(quote("…"), "…")
    return wire.redact(_origin(url) + base, secrets=secrets) if same_route else None


def _cause(error: BaseException) -> str:
    """An error's type and message, redacted; httpx's timeouts have no message."""
    text = str(error)
    if isinstance(error, httpx.RemoteProtocolError):
        text = text.partition(":")[0]  # after it h11 quotes what came, which may repeat what was sent
    message = wire.redact(" ".join(text.split()))[:200]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def encode_text(name: str, text: str) -> bytes:
    """The text as UTF-8.

    Raises:
        RequestRefused: It is not valid Unicode; nothing was sent.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Not from it: that error carries the whole text.
        raise RequestRefused(f"nothing was sent: {name} is not valid Unicode, remove the broken character") from None


def _task_path(task_id: str, *, second_path: bool = False) -> str:
    if not task_id.strip("."):
        raise TaskNotFound(f"no task can have the id {task_id!r}")
    root = "/v1/video/generations" if second_path else SUBMIT_PATH
    return f"{root}/{quote(task_id, safe='', errors='replace')}"


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _read_base_url(text: str) -> str:
    rule = "LONGTAKE_GATEWAY_URL must be http(s)://host[:port][/path], such as https://gateway.example"
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"{rule}: {_cause(error)}") from None
    # httpx takes nearly anything for a host.
    if url.scheme not in {"http", "https"} or not re.fullmatch(rb"[a-z0-9.:_-]+", url.raw_host):
        raise ValueError(f"{rule}; it is {wire.redact(text)[:200]!r}")
    if url.userinfo or url.query or url.fragment:
        raise ValueError(f"{rule}, without a login, a query or a fragment; keys go into LONGTAKE_GATEWAY_API_KEY")
    return _origin(url) + url.raw_path.decode("ascii").rstrip("/").removesuffix("/v1").rstrip("/")


def read_key(key: SecretStr, *, setting: str = "LONGTAKE_GATEWAY_API_KEY") -> str:
    """A credential that can stand in a header; from now on no text from a gateway shows it.

    Raises:
        ValueError: It cannot; names the setting and does not repeat the value.
    """
    value = key.get_secret_value().strip()
    # What cannot stand in a header must fail here, not between the hook and the first byte.
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"{setting} holds an empty value or one with spaces or unprintable characters")
    wire.register_secret(value)
    return value


def fingerprint(key: str) -> str:
    """What can be written down of an API key; the prefix keeps it from matching another program's hash of that key."""
    return hashlib.sha256(f"longtake gateway account\n{key}".encode()).hexdigest()[:16]
