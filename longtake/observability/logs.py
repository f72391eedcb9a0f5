"""Logs: one line per event, `key=value` on a terminal, else JSON; never a prompt, a key or a signed link.

A line's fields come from the current task (`note`), the SDK's activity or workflow, the logged error, and the call's
`extra`; a later source overrides an earlier one. ADR 0021 says why this is not structlog.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from pydantic import ValidationError

from longtake.display import escaped
from longtake.observability.http_tracing import current_trace_id

MAX_TEXT_CHARACTERS = 2_000
"""Limit of each text in a line: the gateway's messages and the SDK core's fields may have any length."""

_FIRST = ("workflow_id", "run_id", "task_id", "stage", "request_id", "activity", "attempt")
"""These fields come first in every line."""
_SDK_NAMES = {
    "workflow_id": "workflow_id",
    "run_id": "run_id",
    "workflow_run_id": "run_id",
    "activity_type": "activity",
    "attempt": "attempt",
    "update_name": "update",
}
"""The SDK's field names, and ours."""
_IDS_OF_ERRORS = ("task_id", "request_id", "http_status", "gateway_code")
_NOT_EXTRA = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    *("temporal_activity", "temporal_workflow", "temporal_log"),
    *("activity_info", "workflow_info"),
}
_PLAIN = re.compile(r"[^\s\"=\\]+")

_bound: ContextVar[Mapping[str, object]] = ContextVar("bound", default=MappingProxyType({}))
_withheld: ContextVar[Callable[[BaseException], bool]] = ContextVar("withheld", default=lambda _: False)


def configure_logging(form: str = "auto") -> None:
    """Log to standard error: all loggers, warnings and uncaught exceptions.

    Args:
        form: `text`, `json`, or `auto`: text on a terminal, JSON otherwise.
    """
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda caught: _log_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    # httpx logs whole URLs with their signatures.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def note(**fields: object) -> None:
    """Add fields to every later line of this asyncio task and of the tasks that it starts."""
    _bound.set({**_bound.get(), **{name: value for name, value in fields.items() if value is not None}})


def withhold_words(may_quote: Callable[[BaseException], bool]) -> None:
    """Leave the words of such errors out of every line of this asyncio task, and of those that it starts.

    Their types, places, statuses and ids stay.
    """
    _withheld.set(may_quote)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """See base class."""
        return escaped(json.dumps(_event(record), ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """`key=value` pairs (logfmt); values are quoted like JSON strings if necessary."""

    def format(self, record: logging.LogRecord) -> str:
        """See base class."""
        event = _event(record)
        event["time"] = event["time"][11:23]  # on a terminal the date is known
        return " ".join(f"{name}={_value(value)}" for name, value in event.items())


def _event(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a line, in their order."""
    fields = dict(_bound.get())
    fields |= _sdk_fields(record)
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        fields |= _error_fields(error)
    fields |= {name: value for name, value in vars(record).items() if name not in _NOT_EXTRA and value is not None}
    fields.setdefault("trace_id", current_trace_id())
    first = {name: fields.pop(name) for name in _FIRST if name in fields}
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": _short(record.getMessage()),
        **{name: _readable(value) for name, value in (first | fields).items() if value is not None},
    }


def _sdk_fields(record: logging.LogRecord) -> dict[str, object]:
    details = getattr(record, "temporal_activity", None) or getattr(record, "temporal_workflow", None) or {}
    fields = {ours: details[theirs] for theirs, ours in _SDK_NAMES.items() if details.get(theirs) is not None}
    core = getattr(record, "temporal_log", None)
    return fields | (dict(core.fields) if core is not None else {})


def _error_fields(error: BaseException) -> dict[str, object]:
    """The innermost cause's type, message and place, and the ids found in the chain of causes."""
    fields: dict[str, object] = {}
    chain = _chain(error)
    for link in chain:
        details = getattr(link, "details", None)
        for carrier in (link, *(details if isinstance(details, (list, tuple)) else (details,))):
            fields |= {name: value for name in _IDS_OF_ERRORS if (value := getattr(carrier, name, None)) is not None}
    innermost = chain[-1]
    kind = getattr(innermost, "type", None)  # ApplicationError's type, which others match on
    fields["error_type"] = kind if isinstance(kind, str) else type(innermost).__name__
    if not _withheld.get()(innermost):
        fields["error"] = _message(innermost)
    elif status := getattr(innermost, "status", None):
        fields["http_status"] = status
    if place := _place(innermost.__traceback__):
        fields["at"] = place
    return fields


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes. `__context__` is not a cause: it would hide the clearer message."""
    chain = [error]
    while True:
        inner = chain[-1].__cause__
        if inner is None and isinstance(chain[-1], BaseExceptionGroup):
            inner = chain[-1].exceptions[0]
        if inner is None or inner in chain:
            return chain
        chain.append(inner)


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # its own message repeats the input, such as a prompt
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        return _short("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems))
    message = getattr(error, "message", None)
    return _short(message if isinstance(message, str) and message else str(error))


def _place(traceback: TracebackType | None) -> str | None:
    """File, line and function that raised it."""
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{traceback.tb_lineno} {code.co_name}"


def _readable(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _short(value if isinstance(value, str) else str(value))


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]}…"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else escaped(json.dumps(text, ensure_ascii=False))


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is not None:
        logging.getLogger("longtake").critical("uncaught", exc_info=(kind, error, traceback))
