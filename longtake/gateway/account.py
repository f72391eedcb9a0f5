"""Reads the account's own records of a submission in doubt. It costs nothing and submits nothing.

There are two records (field notes: "The account's own records"), each optional, which only a request shows:

- the account's task list, `GET /api/task/self`, which needs the console's access token: it may show the orphan itself;
- the key's log, `GET /api/log/token`, which needs the API key: it shows whether anything was charged.

An operator may have closed either: 401, 403, 404, 405 and HTML pages mean that, and the client remembers it for a
while. The gateway allows 20 requests for the log in 20 minutes, and far more for the list (field notes). A record that
cannot be read completely counts as not read: from half a task list a wrong orphan would be adopted. And neither record
proves that nothing was made: an operator can switch the log off, in rare cases a task's row is lost, and stock answers
an error of its database with an empty list. So the list counts only where the ledger confirms it (`reconciliation`):
for that it shows all tasks of the time in question (`AccountRecords.seen`), and the newest of any time (`ask_newest`).
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, SecretStr

from longtake.gateway import wire
from longtake.gateway.client import GatewayClient, HttpResponse, read_key
from longtake.gateway.errors import GatewayError, InvalidResponse

# The readers of single values: they belong to this package, though not to the module's public face.
from longtake.gateway.wire import read_count, read_layers, read_object, read_time

logger = logging.getLogger("longtake.gateway")

TASKS_PATH = "/api/task/self"
LOG_PATH = "/api/log/token"

MAX_LOG_CALLS = 20
LOG_CALLS_WINDOW = timedelta(minutes=20)
MAX_LIST_CALLS = 60
LIST_CALLS_WINDOW = timedelta(seconds=180)
"""Stock allows 360 there, to everybody behind one address; older ones 180."""
CLOSED_FOR = timedelta(minutes=15)
"""How long a closed record is not asked for: operators open routes and renew tokens, though rarely."""
_AFTER_FAILURE = timedelta(minutes=1)
_AFTER_429 = timedelta(minutes=5)
_LIST_AFTER_429 = LIST_CALLS_WINDOW

_TASKS = "the account's task list"
_LOG = "the key's log"
_LATER = frozenset({408, 425, 429})  # of the 4xx the ones that do not mean "closed"
_TOO_MANY_REQUESTS = 429
_PAGE_SIZE = 100  # the most that the gateway gives
_MAX_PAGES = 10
_MIN_CUT_LOG = 100  # the log shows the last rows only (stock: 1000); a shorter one is taken for the whole
_MAX_WRAPPERS = 6
_CHARGE, _REFUND = 2, 6


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class OrphanCandidate(_Answered):
    """One task of the account that the lost submission may have made."""

    task_id: str
    submitted_at: datetime
    """By the gateway's clock, in whole seconds; stock writes the moment after its upstream had accepted."""
    model: str
    """Empty where the list does not say: it may be any."""
    status: str = ""
    """As the gateway writes it."""
    quota: int | None = None


class SeenTask(_Answered):
    """One row of the task list, of any model."""

    task_id: str
    submitted_at: datetime | None


class Charge(_Answered):
    """One charge of the usage log."""

    at: datetime | None
    """By the gateway's clock; None where it cannot be read."""
    model: str
    """Empty where it cannot be read."""
    request_id: str | None = None
    """The `X-Oneapi-Request-Id` of the POST that was charged, where the log names it."""


class Refund(_Answered):
    """A full refund of a task, as the usage log shows it."""

    quota: int | None
    at: datetime | None
    """By the gateway's clock; None where it cannot be read."""


class AccountRecords(_Answered):
    """What the account's records show."""

    tasks: tuple[OrphanCandidate, ...] | None = None
    """All tasks of the model, or of none that the list names, that were submitted in the window, the oldest first; None
    where the list was not read."""
    seen: tuple[SeenTask, ...] = ()
    """All tasks that the list showed, of any model: some of them should be known."""
    charges: int | None = None
    """How often the key was charged for the model in the window; None where the log was not read."""
    charged_at: tuple[datetime, ...] = ()
    """When, by the gateway's clock, the oldest first."""
    logged: tuple[Charge, ...] | None = None
    """All charges that the log shows, of any model and time; None where the log was not read. It reaches back to the
    window's beginning at least, and goes on to the present."""
    refunds: int | None = None
    """How often it got that back in the window (a refund comes when a task fails)."""
    notes: tuple[str, ...] = ()
    """What each record showed, or why it could not be read: for a person."""
    retry_after: timedelta | None = None
    """When to ask again, where a record could not be read just now (the rate limit, a broken connection, a 5xx); None
    where asking again soon shows nothing more."""


@dataclass(frozen=True)
class ConsoleAccess:
    """Who reads the account's task list."""

    token: SecretStr
    """The console's access token; not an API key."""
    user_id: str
    """The console's user id."""


class CallWindow:
    """At most so many calls in a sliding window of time; nobody sleeps here."""

    def __init__(self, calls: int, window: timedelta, *, clock: Callable[[], float]) -> None:
        """Allow `calls` in every `window`; `clock` counts seconds."""
        self._calls = calls
        self._seconds = window.total_seconds()
        self._clock = clock
        self._taken: deque[float] = deque()
        self._blocked_until = -math.inf

    def take(self, *, leaving: int = 0) -> timedelta | None:
        """Take one call: None if it may be made now, else how long to wait.

        Args:
            leaving: How many further calls must be left for others.
        """
        now = self._clock()
        while self._taken and self._taken[0] <= now - self._seconds:
            self._taken.popleft()
        too_many = len(self._taken) + leaving - self._calls
        free_at = self._taken[too_many] + self._seconds if too_many >= 0 else now
        wait = max(free_at, self._blocked_until) - now
        if wait > 0:
            return timedelta(seconds=wait)
        self._taken.append(now)
        return None

    def block(self, wait: timedelta) -> None:
        """Allow nothing for this long: the gateway said so."""
        self._blocked_until = max(self._blocked_until, self._clock() + wait.total_seconds())


class AccountClient:
    """Reads both records at one gateway. One for each process, because of rate limits; safe for many calls at once."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: SecretStr,
        console: ConsoleAccess | None,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            base_url: The gateway's; a trailing `/v1` is understood.
            api_key: The key that paid: the log shows this key's charges only.
            console: For the account's task list; None leaves it out.
            clock: Seconds that never go back, for the rate limit and for how long "closed" is remembered.
            transport: For tests of single HTTP cases, instead of the network.

        Raises:
            ValueError: The URL, the key or the console's access cannot be used; says what to set.
        """
        self._api_key = read_key(api_key)
        self._console: Mapping[str, str] | None = None
        self._secrets = [self._api_key]
        if console is not None:
            token = read_key(console.token, setting="LONGTAKE_CONSOLE_TOKEN")
            user_id = read_key(SecretStr(console.user_id), setting="LONGTAKE_CONSOLE_USER")
            self._console = {"Authorization": f"Bearer {token}", "New-Api-User": user_id}
            self._secrets.append(token)
        self._gateway = GatewayClient(base_url=base_url, api_keys=[api_key], transport=transport)
        self._clock = clock
        self._calls = {
            _TASKS: CallWindow(MAX_LIST_CALLS, LIST_CALLS_WINDOW, clock=clock),
            _LOG: CallWindow(MAX_LOG_CALLS, LOG_CALLS_WINDOW, clock=clock),
        }
        self._closed: dict[str, tuple[float, str]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._gateway.aclose()

    @property
    def origin(self) -> str:
        """`scheme://host[:port]` of the gateway."""
        return self._gateway.origin

    @property
    def account(self) -> str:
        """Whose log is read: a fingerprint of the key (`GatewayClient.account`)."""
        return self._gateway.account

    async def ask(self, *, model: str, since: datetime, until: datetime, log: bool = True) -> AccountRecords:
        """What is known of submissions for `model` between two moments.

        Any failure becomes a note, never an exception.

        Args:
            model: As it was submitted.
            since: The earliest moment, with a time zone; allow for the gateway's clock and for whole seconds.
            until: The latest one.
            log: False leaves the log out, for example where another key paid.
        """
        window = _Window(model, since, until)
        notes: list[str] = []
        waits: list[timedelta] = []
        found: dict[str, object] = {}
        try:
            tasks, seen = await self._ask_tasks(window)
            unnamed = sum(not task.model for task in tasks)
            more = f", and {unnamed} of a model that it does not name" if unnamed else ""
            notes.append(f"{_TASKS} answered: {len(tasks) - unnamed} of this model at that time{more}")
            found |= {"tasks": tasks, "seen": seen}
        except _Unreadable as problem:
            notes.append(f"{_TASKS} {problem}")
            waits += [problem.retry_after] if problem.retry_after else []
        try:
            if log:
                charged_at, refunds, logged = await self._ask_log(window)
                counts = f"{len(charged_at)} charges and {refunds} refunds of this model at that time"
                notes.append(f"{_LOG} answered: {counts}")
                found |= {"charges": len(charged_at), "charged_at": charged_at, "refunds": refunds, "logged": logged}
        except _Unreadable as problem:
            notes.append(f"{_LOG} {problem}")
            waits += [problem.retry_after] if problem.retry_after else []
        return AccountRecords.model_validate({**found, "notes": notes, "retry_after": min(waits, default=None)})

    async def ask_newest(self) -> AccountRecords:
        """The newest tasks of the account, of any model and time (`seen`): does the list show anything at all?

        Any failure becomes a note, never an exception.
        """
        try:
            rows, _ = self._rows(await self._get_tasks({"p": 1, "page_size": _PAGE_SIZE}))
        except _Unreadable as problem:
            return AccountRecords(notes=(f"{_TASKS} {problem}",), retry_after=problem.retry_after)
        return AccountRecords(seen=_seen(rows))

    async def refund_of(self, task_id: str) -> Refund | None:
        """The refund of this task in the usage log; None where it shows none, or cannot be read.

        Leaves half of the log's calls for submissions in doubt. The log shows only rows of the key that reads it.
        """
        try:
            rows = await self._get_log(leaving=MAX_LOG_CALLS // 2)
        except _Unreadable as problem:
            logger.info("usage log not read: whether the task was refunded is not known", exc_info=problem)
            return None
        for row in rows:
            named = (read_object(_field(row, "other")) or {}).get("task_id")
            same = isinstance(named, str) and named.casefold() == task_id.casefold()
            if same and read_count(_field(row, "type")) == _REFUND and not _adjusts_another(row):
                quota, at = read_count(_field(row, "quota")), read_time(_field(row, "created_at"))
                return Refund(quota=quota, at=at)
        return None

    async def _ask_tasks(self, window: "_Window") -> tuple[tuple[OrphanCandidate, ...], tuple[SeenTask, ...]]:
        """All pages of the list; the newest task comes first.

        A task that is submitted meanwhile moves the others one place on: some then come twice, and none is missed.
        """
        seen: set[str] = set()
        shown: dict[str, SeenTask] = {}
        found: dict[str, OrphanCandidate] = {}
        total: int | None = None
        for page in range(1, _MAX_PAGES + 1):
            params = {**window.params(), "p": page, "page_size": _PAGE_SIZE}
            rows, in_all = self._rows(await self._get_tasks(params))
            # The error of a database that comes between two pages reads as "none in all"; the first page knew better.
            total = max(total or 0, in_all or 0) or None
            before = len(seen)
            shown.update((task.task_id, task) for task in _seen(rows))
            for place, row in enumerate(rows):
                task_id = _task_id(row)
                seen.add(task_id or f"the row {place} of page {page}")
                candidate = window.read_task(row, task_id)
                if candidate is not None:
                    found[candidate.task_id] = candidate
            whole = total is not None and len(seen) >= total
            if whole or len(seen) == before:
                break
        else:
            raise _Unreadable(f"goes on after {_MAX_PAGES} pages: too many tasks at that time")
        if total is not None and not whole:
            raise _Unreadable(f"is incomplete: it showed {len(seen)} tasks of {total}", _AFTER_FAILURE)
        return tuple(sorted(found.values(), key=lambda task: task.submitted_at)), tuple(shown.values())

    async def _get_tasks(self, params: Mapping[str, str | int]) -> HttpResponse:
        if self._console is None:
            raise _Unreadable("was not read: set LONGTAKE_CONSOLE_TOKEN and LONGTAKE_CONSOLE_USER")
        return await self._get(_TASKS, TASKS_PATH, self._console, params)

    async def _ask_log(self, window: "_Window") -> tuple[tuple[datetime, ...], int, tuple[Charge, ...]]:
        rows = await self._get_log()
        moments = [moment for row in rows if (moment := read_time(_field(row, "created_at"))) is not None]
        if len(rows) >= _MIN_CUT_LOG and (not moments or min(moments) >= window.since):
            raise _Unreadable(f"shows only its last {len(rows)} rows, and they do not reach back to that time")
        return window.moments(rows, _CHARGE), len(window.moments(rows, _REFUND)), _charges(rows)

    async def _get_log(self, *, leaving: int = 0) -> list[Any]:
        """All rows that the usage log shows.

        Raises:
            _Unreadable: It cannot be read.
        """
        headers = {"Authorization": f"Bearer {self._api_key}"}
        return self._rows(await self._get(_LOG, LOG_PATH, headers, leaving=leaving))[0]

    async def _get(
        self,
        source: str,
        path: str,
        headers: Mapping[str, str],
        params: Mapping[str, str | int] | None = None,
        *,
        leaving: int = 0,
    ) -> HttpResponse:
        """A 2xx response of a record that may be asked for.

        Raises:
            _Unreadable: It is closed, or cannot be read now.
        """
        until, reason = self._closed.get(source, (-math.inf, ""))
        if self._clock() < until:
            raise _Unreadable(f"is closed: {reason}")
        wait = self._calls[source].take(leaving=leaving)
        if wait is not None:
            raise _Unreadable(f"may be asked again in {_minutes(wait)}: the rate limit", wait)
        try:
            response = await self._gateway.get_once(path, headers=headers, params=params)
        except InvalidResponse as error:
            raise _Unreadable(f"gave no readable response: {error}") from None
        except GatewayError as error:
            raise _Unreadable(f"could not be asked: {error}", _AFTER_FAILURE) from None
        if response.status == _TOO_MANY_REQUESTS:
            wait = wire.read_retry_after(response.headers) or (_AFTER_429 if source == _LOG else _LIST_AFTER_429)
            # The log has a limit of its own, that of the list is everything's.
            for window in self._calls.values() if source == _TASKS else [self._calls[_LOG]]:
                window.block(wait)
            raise _Unreadable(f"may be asked again in {_minutes(wait)}: the gateway got too many requests", wait)
        closed = self._why_closed(response)
        if closed is not None:
            self._closed[source] = (self._clock() + CLOSED_FOR.total_seconds(), closed)
            raise _Unreadable(f"is closed: {closed}")
        if not 200 <= response.status < 300:  # noqa: PLR2004 - HTTP's success
            wait = wire.read_retry_after(response.headers) or _AFTER_FAILURE
            raise _Unreadable(f"could not be asked: {self._error_text(response)}", wait)
        return response

    def _why_closed(self, response: HttpResponse) -> str | None:
        """Why a record is closed for us, if this response means that."""
        if 300 <= response.status < 500 and response.status not in _LATER:  # noqa: PLR2004 - HTTP's ranges
            return self._error_text(response)
        if not 200 <= response.status < 300:  # noqa: PLR2004 - HTTP's success
            return None
        try:
            body = wire.read_json(response.body)
        except ValueError:
            return self._error_text(response)  # a page: the console's, or a login's
        # Older versions refuse with status 200.
        return self._error_text(response) if isinstance(body, dict) and body.get("success") is False else None

    def _rows(self, response: HttpResponse) -> tuple[list[Any], int | None]:
        """The rows of a response, and how many there are in all if the response says so.

        Raises:
            _Unreadable: There is no list in it.
        """
        body: object = wire.read_json(response.body)  # `_why_closed` has read it once
        total: int | None = None
        for _ in range(_MAX_WRAPPERS):
            if isinstance(body, list):
                return body, total
            if not isinstance(body, dict):
                break
            total = read_count(body.get("total")) if "total" in body else total
            body = next((body[name] for name in ("items", "data", "list", "logs", "tasks") if name in body), None)
        raise _Unreadable(f"gave no readable response: {self._error_text(response)}")

    def _error_text(self, response: HttpResponse) -> str:
        message = wire.read_error(response.status, response.headers, response.body, secrets=self._secrets).message
        return f"HTTP {response.status}: {message}" if message else f"HTTP {response.status}"


class _Unreadable(Exception):
    """A record cannot be read; the text goes on after the record's name."""

    def __init__(self, why: str, retry_after: timedelta | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class _Window:
    """Which rows are in question."""

    def __init__(self, model: str, since: datetime, until: datetime) -> None:
        self.model = model
        # The gateway's times have whole seconds.
        self.since = since.astimezone(UTC).replace(microsecond=0)
        self.until = until.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1 if until.microsecond else 0)

    def params(self) -> dict[str, str | int]:
        """The window as the task list's parameters."""
        return {"start_timestamp": int(self.since.timestamp()), "end_timestamp": int(self.until.timestamp())}

    def holds(self, moment: datetime) -> bool:
        """Whether a moment lies in it."""
        return self.since <= moment <= self.until

    def read_task(self, row: object, task_id: str | None) -> OrphanCandidate | None:
        """The row as a candidate, or None where it is surely another submission's.

        Raises:
            _Unreadable: It may be a candidate, but cannot be read.
        """
        try:
            record = wire.read_task(row, asked_for=task_id or "", request_id=None)
        except GatewayError:
            raise _Unreadable("holds a row that cannot be read") from None
        # What was asked for goes before the record's own model, which is the upstream's name for it.
        properties = [read_object(layer.get("properties")) or {} for layer in read_layers(row)]
        asked = [found.get("origin_model_name") for found in properties]
        asked += [layer.get("model_name") for layer in read_layers(row)]  # seen on a NewAPI of July 2026
        model = next((name.strip() for name in asked if isinstance(name, str) and name.strip()), record.model)
        moment = record.submitted_at
        if (model is not None and model != self.model) or (moment is not None and not self.holds(moment)):
            return None
        if moment is None or task_id is None:
            raise _Unreadable("holds a task of that time whose id or time cannot be read")
        return OrphanCandidate(
            task_id=task_id, submitted_at=moment, model=model or "", status=record.gateway_status, quota=record.quota
        )

    def moments(self, rows: list[Any], kind: int) -> tuple[datetime, ...]:
        """The times of the log's rows of this kind, model and time, the oldest first.

        Raises:
            _Unreadable: One may be, but cannot be read.
        """
        moments: list[datetime] = []
        for row in rows:
            row_kind, model = read_count(_field(row, "type")), _field(row, "model_name")
            moment = read_time(_field(row, "created_at"))
            if row_kind not in {None, kind} or (moment is not None and not self.holds(moment)):
                continue
            if isinstance(model, str) and model.strip() not in {"", self.model}:
                continue
            if _adjusts_another(row):
                continue
            if row_kind is None or moment is None or not isinstance(model, str) or not model.strip():
                raise _Unreadable("holds a row of that time that cannot be read")
            moments.append(moment)
        return tuple(sorted(moments))


def _charges(rows: list[Any]) -> tuple[Charge, ...]:
    """All charges of the log, and what may be one."""
    found: list[Charge] = []
    for row in rows:
        if read_count(_field(row, "type")) not in {None, _CHARGE} or _adjusts_another(row):
            continue
        model, request_id = _text(row, "model_name"), _text(row, "request_id")
        found.append(Charge(at=read_time(_field(row, "created_at")), model=model, request_id=request_id or None))
    return tuple(found)


def _adjusts_another(row: object) -> bool:
    """Whether the row corrects an earlier charge by a difference: no charge or refund of its own.

    Such a row names what the task cost in the end, `other.actual_quota`, which a full refund leaves out or gives as 0.
    `other.pre_consumed_quota` proves nothing: full refunds carry it, and charges by tiers too (NewAPI's source).
    """
    return bool(read_count((read_object(_field(row, "other")) or {}).get("actual_quota")))


def _text(row: object, name: str) -> str:
    """A printable string; empty for anything else, such as half a surrogate pair, which no JSON of ours can hold."""
    value = _field(row, name)
    text = value.strip() if isinstance(value, str) else ""
    return text if text.isprintable() else ""


def _task_id(row: object) -> str | None:
    try:
        return wire.read_submission(row, status=None, request_id=None)
    except InvalidResponse:
        return None


def _seen(rows: list[Any]) -> tuple[SeenTask, ...]:
    """All rows that have an id."""
    found: list[SeenTask] = []
    for row in rows:
        task_id = _task_id(row)
        moments = [read_time(layer.get(name)) for layer in read_layers(row) for name in ("submit_time", "created_at")]
        if task_id is not None:
            found.append(SeenTask(task_id=task_id, submitted_at=next(filter(None, moments), None)))
    return tuple(found)


def _field(row: object, name: str) -> object:
    return row.get(name) if isinstance(row, dict) else None


def _minutes(wait: timedelta) -> str:
    return f"{math.ceil(wait / timedelta(minutes=1))} min"
