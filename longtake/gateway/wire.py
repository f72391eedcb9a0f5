"""Parses the gateway's responses; pure, and as tolerant as possible.

A response is a chain of objects, each the `data` of the one before: wrappers (`{"code": "success", "data": …}`), the
task's envelope, perhaps the envelope of a second gateway in a row, and the middleware's record. Every shape of the
field notes (S1 to S7) is such a chain, so there is one reader and no case for each shape:

- the outermost known status decides ("the envelope's status outranks `data.status`");
- what the gateway knows (money, times, the reason) is taken from the outside in, what the middleware knows (links,
  ids, progress, the error) from the inside out;
- only `extend_failed` and `generate_failed` as `error.code` are verdicts; any other failure is "task lost";
- a link to the gateway's own content route of the task is no address of the file: some gateways write it over each link
  of a flat record, with the host of an operator's setting (field notes). The client builds that route itself;
- an unknown status means "still running".

This module raises only the errors named in each docstring, whatever the JSON. Strings come out as valid
Unicode of bounded length, so that they survive a Temporal payload.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from html import escape
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pydantic import TypeAdapter, ValidationError

from longtake.gateway.errors import InvalidResponse, TaskNotFound
from longtake.gateway.links import expires_at
from longtake.models import TaskRecord, TaskState
from longtake.request.rules import is_task_id

MAX_RETRY_AFTER = timedelta(minutes=15)
"""Longer waits of a `Retry-After` are cut to this: a typo there must not park a generation for a day."""

_Json = dict[str, Any]
_T = TypeVar("_T")

_MAX_LAYERS = 6  # wrapper, envelope, the same of a second gateway, record; deeper is not ours
_MAX_MESSAGE_CHARS = 300
_MAX_MESSAGE_CHARS_READ = 4_000  # before shortening: redaction may shrink a text, and pages can be long
_MAX_WORD_CHARS = 256
MAX_EXCERPT_CHARS = 500
_MAX_EXCERPT_CHARS_READ = 20_000
_MAX_EXCERPT_ITEMS = 20  # of an object or a list
_MAX_LINK_CHARS = 8_192
_EARLIEST_SECONDS = 946_684_800  # 2000-01-01
_LATEST_SECONDS = 4_102_444_800  # 2100-01-01
_MIN_SECRET_CHARS = 8  # shorter ones would blank out ordinary words
_SECRET_BEGINNING_CHARS = 24

_PRIVATE_NAME = re.compile(r"prompt|input|messages|content|key|secret|token$|authorization|signature", re.IGNORECASE)
_ANY_LINK = re.compile(r"[a-z][a-z0-9+.-]{0,20}:\\?/\\?/[^\s\"'<>]+|data:[^\s\"'<>]+", re.IGNORECASE)

_DONE = frozenset({"SUCCESS", "SUCCEEDED", "COMPLETED", "DONE"})
_FAILED = frozenset({"FAILURE", "FAILED", "ERROR", "EXPIRED", "CANCELLED", "CANCELED"})
_NO_STATUS = frozenset({"", "UNKNOWN"})
_VERDICTS = {"extend_failed": TaskState.EXTEND_FAILED, "generate_failed": TaskState.GENERATE_FAILED}
_OWN_QUOTA = "the task's quota is 0"
_FAILURES = frozenset({TaskState.EXTEND_FAILED, TaskState.GENERATE_FAILED, TaskState.LOST})
NOT_FOUND_CODES = frozenset({"task_not_exist", "task_not_found"})
# With one of these an object without a status is still a task; without any it is somebody else's answer.
_TASK_FIELDS = frozenset({"task_id", "progress", "remix_id", "video_url", "fail_reason"})


@dataclass(frozen=True, kw_only=True)
class GatewayRecord:
    """One readable response about a task, links included: for the worker and the store, never for Temporal or a log."""

    task_id: str
    """The id that was asked for."""
    state: TaskState
    gateway_status: str = ""
    """The outermost status as it was written."""
    inner_status: str = ""
    """The innermost status as it was written: the middleware's, where its record is there."""
    answered_task_id: str | None = None
    """The task id that the response itself names; differs from `task_id` where a relay renames tasks."""
    answered_ids: tuple[str, ...] = ()
    """Everything in the response that may be an id of the task, from the outside in."""
    progress: int | None = None
    """0 to 100; not monotonic, and 100 on failures."""
    remix_id: str | None = None
    remix_id_extend: str | None = None
    upstream_task_id: str | None = None
    model: str | None = None
    quota: int | None = None
    refund_evidence: str | None = None
    """Where the refund was seen, if that is not the task's own quota."""
    error_code: str | None = None
    error_message: str | None = None
    """The failure's reason, shortened and without links."""
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None
    request_id: str | None = None
    video_url: str | None = field(default=None, repr=False)
    """The 15 s video when completed; the 8 s clip when the extension failed."""
    first_video_url: str | None = field(default=None, repr=False)
    """The first 8 s of a completed video."""
    result_url: str | None = field(default=None, repr=False)
    """What the envelope calls the download address; only when completed. It may not work: it holds another id."""
    content_route: bool = False
    """Whether the gateway's own content route stands where the link to the video should: `video_url` is then None."""

    @property
    def refunded(self) -> bool | None:
        """Whether the gateway refunded a failed task; None where it does not say, or where nothing failed.

        A failure's quota is 0 once it is refunded (field notes).
        """
        return self.quota == 0 if self.state in _FAILURES and self.quota is not None else None

    def refunded_by(self, evidence: str) -> "GatewayRecord":
        """The same task, which another record than its own shows as refunded."""
        return replace(self, quota=0, refund_evidence=evidence)

    def completed_by(self, other: "GatewayRecord") -> "GatewayRecord":
        """This response, completed by the fields that only another one about the same task has.

        Cost and links depend on the state, so they come only from a response of the same state.
        """
        names = ["remix_id", "remix_id_extend", "upstream_task_id", "model", "first_video_url"]
        if self.state is other.state or {self.state, other.state} <= _FAILURES:
            names += ["quota", "refund_evidence"] if self.quota is None else []
        if self.state is other.state:
            names += ["video_url", "result_url", "submitted_at", "started_at", "updated_at", "finished_at"]
        fields: dict[str, Any] = {name: getattr(other, name) for name in names if getattr(self, name) is None}
        return replace(self, content_route=self.content_route or other.content_route, **fields)

    @property
    def own_task_id(self) -> str:
        """The id as the gateway writes it: its database may ignore case, and another spelling is the same task."""
        same = [name for name in self.answered_ids if name.casefold() == self.task_id.casefold()]
        return self.task_id if self.task_id in same or not same else same[0]

    def without_links(self) -> TaskRecord:
        """The part that may cross Temporal."""
        shared = {name: value for name, value in vars(self).items() if name in TaskRecord.model_fields}
        derived = {
            "refunded": self.refunded,
            "refund_evidence": self.refund_evidence or (_OWN_QUOTA if self.refunded else None),
            "has_video_link": bool(self.video_url),
            "has_first_video_link": bool(self.first_video_url),
            "link_expires_at": expires_at(self.video_url) if self.video_url else None,
        }
        return TaskRecord.model_validate(shared | derived)

    def to_json(self) -> bytes:
        """The whole record, links included, for the store."""
        return _RECORDS.dump_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "GatewayRecord":
        """Read what `to_json` of this or another version wrote.

        Raises:
            ValueError: It is not such a record; the text, which holds links, is not repeated.
        """
        try:
            return _RECORDS.validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a stored gateway record: {error.error_count()} fields do not fit") from None


_RECORDS = TypeAdapter(GatewayRecord)


@dataclass(frozen=True)
class ErrorFacts:
    """The facts of an error response, shortened and redacted; None where it does not have one."""

    code: str | None = None
    message: str | None = None
    type: str | None = None


def read_json(body: bytes) -> object:
    """Parse a body.

    Raises:
        ValueError: It is no JSON, or JSON that no honest answer contains (nested too deep, a number of 5000 digits).
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:
        # The parser's own error carries the whole document; answers hold links.
        raise ValueError("not JSON") from None


def read_task(body: object, *, asked_for: str, request_id: str | None, status: int | None = None) -> GatewayRecord:
    """Read a query's response, already parsed from JSON.

    Args:
        body: What `json.loads` made of it; anything at all.
        asked_for: The task id of the query; it stays the record's id, whatever the response calls the task.
        request_id: The gateway's `X-Oneapi-Request-Id`.
        status: The HTTP status, for the errors.

    Raises:
        TaskNotFound: An error body that says so.
        InvalidResponse: No task in it: an error body, a problem document, `data: null`, other JSON.
    """
    layers = read_layers(body)
    if not any(_is_task(layer) for layer in layers):
        raise _no_task(layers, request_id=request_id, status=status)
    outside_in, inside_out = layers, layers[::-1]

    word = next((word for word in map(_status_word, outside_in) if word not in _NO_STATUS), "")
    code, message = _error(inside_out)
    state = _state(word, code)
    if message is None and word in _FAILED:
        message = (
            _first(outside_in, _reason, "fail_reason")
            or _first(outside_in, _reason, "result_url")
            or _first(inside_out, _reason, "message")
        )

    def is_content_route(link: str | None) -> bool:
        return link is not None and _is_content_route(link, asked_for)

    def own_link(value: object) -> str | None:
        link = _link(value)
        return None if is_content_route(link) else link

    result_url = _first(outside_in, own_link, "result_url", "fail_reason") if state is TaskState.COMPLETED else None
    written = [_link(layer.get(name)) for layer in layers for name in ("video_url", "url")]
    answered, upstream_id = _ids(layers, asked_for)
    properties = _first(outside_in, read_object, "properties") or {}
    return GatewayRecord(
        task_id=asked_for,
        state=state,
        gateway_status=_first(outside_in, _short, "status") or "",
        inner_status=_first(inside_out, _short, "status") or "",
        answered_task_id=answered,
        answered_ids=tuple(filter(None, (_id(layer.get(name)) for layer in layers for name in ("task_id", "id")))),
        progress=_first(inside_out, _progress, "progress"),
        remix_id=_first(inside_out, _id, "remix_id"),
        remix_id_extend=_first(inside_out, _id, "remix_id_extend"),
        upstream_task_id=upstream_id,
        model=_first(inside_out, _short, "model") or _short(properties.get("origin_model_name")),
        quota=_first(outside_in, read_count, "quota"),
        error_code=code,
        error_message=message and (_shorten(redact(message)) or None),
        submitted_at=_first(outside_in, read_time, "submit_time", "created_at"),
        started_at=_first(outside_in, read_time, "start_time"),
        updated_at=_first(outside_in, read_time, "updated_at"),
        finished_at=_first(outside_in, read_time, "finish_time", "completed_at"),
        request_id=request_id,
        video_url=_first(inside_out, own_link, "video_url", "url"),
        first_video_url=_first(inside_out, own_link, "first_video_url"),
        result_url=result_url,
        content_route=any(map(is_content_route, written)),
    )


def read_submission(body: object, *, status: int | None, request_id: str | None, secrets: Iterable[str] = ()) -> str:
    """The task id in the response to an accepted submission, already parsed from JSON.

    Field notes: flat with `task_id` and/or a string `id`; the envelope, whose `id` is a number; `data` as the id, as an
    object, or as a list of one.

    Args:
        body: What `json.loads` made of it; anything at all.
        status: The HTTP status, for the error.
        request_id: The gateway's `X-Oneapi-Request-Id`.
        secrets: Texts that must not come back in the error: the keys and prompts that were sent.

    Raises:
        InvalidResponse: There is no id in it; for a paid request that means "outcome unknown".
    """
    layers = read_layers(body)
    for name in ("task_id", "id"):
        for layer in layers:
            found = _id(layer.get(name))
            # An error body may carry an id of its own, such as the request's (S6): there only `task_id` counts.
            if found is not None and (name == "task_id" or _is_task(layer) or not _is_error(layer)):
                return found
    for layer in layers:
        found = _id(layer.get("data"))
        if found is not None and "code" in layer and not _is_error(layer):
            return found
    facts = _facts(layers, secrets)
    message = f"; its message: {facts.message}" if facts.message else ""
    raise InvalidResponse(
        f"the response to the submission has {_outline(body, secrets)}, but no task id{message}",
        status=status,
        code=facts.code,
        gateway_message=facts.message,
        request_id=request_id,
    )


def read_error(status: int, headers: Mapping[str, str], body: bytes, *, secrets: Iterable[str] = ()) -> ErrorFacts:
    """The facts of an error response, in either of the gateway's error shapes or in none of them.

    Field notes: `{"error": {"message", "type", "code"}}`, `{"code", "message", "data": null}`, and with
    `fail_to_fetch_task` a message that is the upstream's JSON once more. Proxies in front answer with HTML or nothing.

    Args:
        status: The HTTP status, named where the body has no message.
        headers: The response's headers.
        body: Its body, or as much of it as was read.
        secrets: Texts that must not come back: the keys and prompts that were sent.
    """
    try:
        return _facts(read_layers(read_json(body)), secrets)
    except ValueError:
        page = _page(_header(headers, "content-type") or "", body) or f"HTTP {status} with an empty body"
        return ErrorFacts(message=_shorten(redact(page, secrets=secrets)))


def read_retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> timedelta | None:
    """How long the answer asks us to wait, from seconds or an HTTP date; at most `MAX_RETRY_AFTER`."""
    value = (_header(headers, "retry-after") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        wait = timedelta(seconds=float(value))
    else:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        # A date without a zone is UTC by RFC 9110.
        wait = (at if at.tzinfo else at.replace(tzinfo=UTC)) - (now or datetime.now(UTC))
    return min(wait, MAX_RETRY_AFTER) if wait > timedelta(0) else None


_MAX_LOGIN_CHARS = 512
_SECRETS = (
    # Whole images; they may be somebody's face.
    (re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,[a-z0-9+/=_-]*", re.IGNORECASE), "data:…"),
    # Who is logged in, and the query: that is where signatures are.
    (re.compile(rf"(://)[^\s/?#@\"'<>]{{1,{_MAX_LOGIN_CHARS}}}@"), r"\1…@"),
    (re.compile(r"(://[^\s?#\"'<>]{1,2048})[?#][^\s\"'<>]*"), r"\1?…"),
    # Signatures in a URL that lost its beginning or has escaped slashes.
    (re.compile(r"([?&][a-z0-9_.%-]{1,64}=)[^\s&\"'<>]+", re.IGNORECASE), r"\1…"),
    (re.compile(r"(?<![a-z0-9])bearer\s+[^\s\"',;]+", re.IGNORECASE), "Bearer …"),
    (re.compile(r"(?<![a-z0-9])sk-[a-z0-9*._-]+", re.IGNORECASE), "sk-…"),
)


_registered: dict[str, None] = {}


def register_secret(secret: str) -> None:
    """Redact this secret from now on in every text that this process reads from any gateway."""
    if len(secret) >= _MIN_SECRET_CHARS:
        _registered[secret] = None


def contains_secret(text: str) -> bool:
    """Whether the text contains a secret of `register_secret`."""
    return any(secret in text for secret in _registered)


def redact(text: str, *, secrets: Iterable[str] = ()) -> str:
    """`text` without queries and logins of URLs, keys, embedded images, and the given and registered `secrets`.

    As one line of printable characters, which is what it is shown as: a secret with another white space or a control
    character in it would come back there. Only its first 4,000 characters are read: the patterns look ahead, so their
    work grows faster than a text does.
    """
    is_cut = len(text) > _MAX_MESSAGE_CHARS_READ
    text = _as_line(text[:_MAX_MESSAGE_CHARS_READ])
    for secret in map(_as_line, (*_registered, *secrets)):
        # By its beginning, because the gateway may have shortened it; then the rest of the text goes with it.
        beginning = secret[:_SECRET_BEGINNING_CHARS]
        while len(beginning) >= _MIN_SECRET_CHARS and (at := text.find(beginning)) >= 0:
            whole = text.startswith(secret, at)
            text = text[:at] + "…" + (text[at + len(secret) :] if whole else "")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    # A login is known by the `@` behind it, which may have been cut off.
    return text[:-_MAX_LOGIN_CHARS] if is_cut else text


def read_excerpt(body: bytes, *, secrets: Iterable[str] = ()) -> str:
    """An excerpt of a response, for a person who must find what a program cannot read: an id that is a number, a path.

    Without keys, prompts, links and images: whatever is under a name for such things goes, and so does any text that
    holds one of the `secrets`, also where it is escaped once more.

    Args:
        body: As it came; anything at all.
        secrets: Texts that must not come back: the keys and prompts that were sent.

    Returns:
        One line of at most 500 characters.
    """
    hidden = _spellings((*_registered, *secrets))
    try:
        text = json.dumps(_excerpt(read_json(body), hidden, _MAX_LAYERS), ensure_ascii=False)
    except ValueError:
        text = _hide(body[:_MAX_EXCERPT_CHARS_READ].decode(errors="replace"), hidden)
    return _one_line(text, MAX_EXCERPT_CHARS)


def _excerpt(value: object, hidden: Sequence[str], depth: int) -> object:
    """`value` without what must not be shown, and not too much of it."""
    nested = read_object(value) if isinstance(value, str) else None
    value = value if nested is None else nested
    if isinstance(value, str):
        return _hide(value[:_MAX_EXCERPT_CHARS_READ], hidden)
    if isinstance(value, dict | list) and depth == 0:
        return "…"
    if isinstance(value, dict):
        few = itertools.islice(value.items(), _MAX_EXCERPT_ITEMS)
        return {
            _hide(name, hidden): "…" if _PRIVATE_NAME.search(name) else _excerpt(inner, hidden, depth - 1)
            for name, inner in few
        }
    if isinstance(value, list):
        return [_excerpt(inner, hidden, depth - 1) for inner in value[:_MAX_EXCERPT_ITEMS]]
    return value


def _hide(text: str, hidden: Sequence[str]) -> str:
    text = _as_line(text)
    if any(text == secret or (len(secret) >= _MIN_SECRET_CHARS and secret in text) for secret in hidden):
        return "…"
    return _ANY_LINK.sub("…", redact(text, secrets=hidden))


def _spellings(secrets: Iterable[str]) -> list[str]:
    """Each secret as it may come back: escaped as JSON writes it, once or twice, or as HTML or a URL does."""
    found: dict[str, None] = {}
    # White space is escaped where the text was, and collapsed where it is shown.
    for secret in filter(None, (form(secret) for secret in secrets for form in (str.strip, _as_line))):
        once = [json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]]
        twice = [json.dumps(text)[1:-1] for text in once]
        found.update(dict.fromkeys([secret, *once, *twice, escape(secret), quote(secret, safe="")]))
    return list(found)


def read_layers(body: object) -> list[_Json]:
    """The chain of objects along `data`, from the outside in."""
    layers: list[_Json] = []
    layer = read_object(body)
    while layer is not None and len(layers) < _MAX_LAYERS:
        layers.append(layer)
        layer = read_object(layer.get("data"))
    return layers


def read_object(value: object) -> _Json | None:
    """An object, also as a list of one or as JSON text: relays write all three."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = read_json(value.encode(errors="replace"))
        except ValueError:
            return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else None


def _status_word(layer: _Json) -> str:
    """The status in capitals; empty where it is absent or a number (Cloudflare's problem documents)."""
    status = layer.get("status")
    return status.strip().upper() if isinstance(status, str) else ""


def _is_task(layer: _Json) -> bool:
    if _status_word(layer):
        return True
    return not layer.get("error") and not _TASK_FIELDS.isdisjoint(layer)


def _is_error(layer: _Json) -> bool:
    return bool(layer.get("error")) or _code(layer.get("code")) is not None


def _state(word: str, error_code: str | None) -> TaskState:
    if word in _DONE:
        return TaskState.COMPLETED
    if word in _FAILED:
        return _VERDICTS.get(error_code or "", TaskState.LOST)
    return TaskState.RUNNING


def _error(inside_out: list[_Json]) -> tuple[str | None, str | None]:
    """Code and message of the innermost error."""
    for layer in inside_out:
        error = layer.get("error")
        found = read_object(error)
        if found is not None:
            code, message = _code(found.get("code")), _text(found.get("message"))
        else:
            code, message = None, _text(error)
        if code or message:
            return code, message
    return None, None


def _no_task(layers: list[_Json], *, request_id: str | None, status: int | None) -> InvalidResponse | TaskNotFound:
    facts = _facts(layers)
    message = f": {facts.message}" if facts.message else ""
    if facts.code in NOT_FOUND_CODES:
        return TaskNotFound(
            f"the gateway does not know the task{message}",
            status=status,
            code=facts.code,
            gateway_message=facts.message,
            request_id=request_id,
        )
    return InvalidResponse(
        f"the response holds no task{message}",
        status=status,
        code=facts.code,
        gateway_message=facts.message,
        request_id=request_id,
    )


def _facts(layers: list[_Json], secrets: Iterable[str] = ()) -> ErrorFacts:
    """The error of the layers, outermost first, redacted."""
    code: str | None = None
    message: str | None = None
    kind: str | None = None
    for layer in layers:
        error = layer.get("error")
        inner = read_object(error) or layer
        code = code or _code(inner.get("code"))
        kind = kind or _short(inner.get("type"))
        message = message or _text(inner.get("message")) or _text(error)
        # Problem documents (RFC 9457), as Cloudflare writes them.
        message = message or _text(layer.get("detail")) or _text(layer.get("title"))
    nested = read_object(message)
    if nested is not None:
        inner_code, inner_message = _error([{"error": nested.get("error") or nested}])
        message = ": ".join(part for part in (inner_code, inner_message) if part) or None
    return ErrorFacts(
        _word(code, secrets), message and (_shorten(redact(message, secrets=secrets)) or None), _word(kind, secrets)
    )


_PLAIN_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def _word(text: str | None, secrets: Iterable[str]) -> str | None:
    """A code or a type; where it is no plain word it may be anything, the prompt too.

    A plain one stays: what an answer means for money goes by it, and a prompt may be the very same word.
    """
    if text is None or _PLAIN_WORD.fullmatch(text):
        return text
    return redact(text, secrets=secrets) or None


def _page(content_type: str, body: bytes) -> str | None:
    """The message of a body that is no JSON: an HTML page's title, or the text itself."""
    text = body[:_MAX_MESSAGE_CHARS_READ].decode(errors="replace").strip()
    if "html" in content_type.lower() or text.startswith("<"):
        title = re.search(r"<title[^>]{0,200}>([^<]{1,500})", text, re.IGNORECASE)
        return f"an HTML page: {title[1]}" if title else "an HTML page"
    return text or None


def _outline(body: object, secrets: Iterable[str]) -> str:
    """The shape of an answer without its values, for an error text; a field's name may be anything too."""
    layers = read_layers(body)
    if not layers:
        return f"a JSON {type(body).__name__}"
    return "the fields " + _shorten(
        ", ".join(redact(name, secrets=secrets)[:_MAX_WORD_CHARS] for name in sorted(layers[0])[:12])
    )


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)


def _first(layers: list[_Json], read: Callable[[object], _T | None], *names: str) -> _T | None:
    """The first readable value among `names`, layer by layer."""
    for layer in layers:
        for name in names:
            found = read(layer.get(name))
            if found is not None:
                return found
    return None


def _text(value: object) -> str | None:
    """A non-empty string, as it came; `_shorten` it before it goes anywhere."""
    # One character more than `redact` reads, so that it knows of the cut.
    return (value[: _MAX_MESSAGE_CHARS_READ + 1].strip() or None) if isinstance(value, str) else None


def _shorten(text: str) -> str:
    """One line of at most 300 printable characters."""
    return _one_line(text, _MAX_MESSAGE_CHARS)


def _as_line(text: str) -> str:
    """Printable characters with single spaces; a lone surrogate would break the JSON that it is written into."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _one_line(text: str, most_chars: int) -> str:
    line = _as_line(text)
    return line if len(line) <= most_chars else line[: most_chars - 1] + "…"


def _short(value: object) -> str | None:
    """A word, such as a status or a model's name."""
    text = _text(value)
    return None if text is None else _shorten(redact(text))[:_MAX_WORD_CHARS] or None


def _code(value: object) -> str | None:
    """An error code; relays write numbers too. "success" and its like are no error."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1_000_000:  # noqa: PLR2004 - six digits
        value = str(value)
    text = _short(value)
    return None if text is None or text.lower() in {"success", "ok", "0", "200"} else text


def _id(value: object) -> str | None:
    """An id that can be stored, logged, copied to a shell and put into a path; None for anything else."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    return text if is_task_id(text) and not contains_secret(text) else None


def read_request_id(headers: Mapping[str, str], name: str) -> str | None:
    """The gateway's id of a request, where it is a valid id."""
    return _id(_header(headers, name) or "")


def _link(value: object) -> str | None:
    """An absolute http(s) address; `fail_reason` and `result_url` hold prose as often."""
    if not isinstance(value, str) or len(value) > _MAX_LINK_CHARS:
        return None
    text = value.strip()
    if not text.isprintable() or " " in text:
        return None
    try:
        parts = urlsplit(text)
        is_link = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return None
    return text if is_link else None


def _ids(layers: list[_Json], asked_for: str) -> tuple[str | None, str | None]:
    """Which task a response is about, and the middleware's own id of it.

    In an envelope `task_id` is the gateway's id and the record's `id` the middleware's; in a flat record of some
    gateways `id` is the gateway's and `task_id` the middleware's (field notes).
    """
    found = [(_id(layer.get("id")), _id(layer.get("task_id"))) for layer in layers]
    named = ((own if own == asked_for else task) for own, task in found if task is not None)
    upstream = ((task if own == asked_for else own) for own, task in reversed(found) if own is not None)
    answered, upstream_id = next(named, None), next(upstream, None)
    return answered, upstream_id if upstream_id != asked_for else None


def _is_content_route(link: str, task_id: str) -> bool:
    """Whether it is the gateway's own download route of this task, whatever host and folder it names.

    One with a query may be signed, and so a place of its own.
    """
    parts = urlsplit(link)
    return not parts.query and unquote(parts.path).endswith(f"/v1/videos/{task_id}/content")


def _reason(value: object) -> str | None:
    """A failure's reason: any text that is not just a link."""
    return None if _link(value) else _text(value)


def _number(value: object) -> float | None:
    """A finite number, also from text and with a percent sign."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value[:32].strip().removesuffix("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _progress(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= 100 else None  # noqa: PLR2004 - a percentage


def read_count(value: object) -> int | None:
    """A whole number that JSON readers everywhere hold exactly."""
    number = _number(value)
    return int(number) if number is not None and 0 <= number < 2**53 and number.is_integer() else None


def read_time(value: object) -> datetime | None:
    """Unix time in seconds, or in milli-, micro- or nanoseconds; 0 is "not yet"."""
    number = _number(value)
    if number is None:
        return None
    for _ in range(3):
        if number > _LATEST_SECONDS:
            number /= 1000
    return datetime.fromtimestamp(number, UTC) if _EARLIEST_SECONDS <= number <= _LATEST_SECONDS else None
