"""Logs: one line an event, `key=value` on a terminal and JSON otherwise; never a prompt, a key or a signed link.

A line knows what is known: of the work under way (`note`), of the SDK's activity or workflow that speaks, of the error
that is logged with it, and what the call itself gives as `extra`. Where they disagree, the later one counts.
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
"""The gateway's messages and core's fields may be of any length; a line stays one that can be read."""

_FIRST = ("workflow_id", "run_id", "task_id", "stage", "request_id", "activity", "attempt")
"""What people look for, in the same place in every line."""
_SDK_NAMES = {
    "workflow_id": "workflow_id",
    "run_id": "run_id",
    "workflow_run_id": "run_id",
    "activity_type": "activity",
    "attempt": "attempt",
    "update_name": "update",
}
"""What the SDK's loggers tell of their activity or workflow, and what it is called here."""
_IDS_OF_ERRORS = ("task_id", "request_id", "http_status", "gateway_code")
_NOT_EXTRA = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    *("temporal_activity", "temporal_workflow", "temporal_log"),
    *("activity_info", "workflow_info"),
}
_PLAIN = re.compile(r"[^\s\"=\\]+")

_noted: ContextVar[Mapping[str, object]] = ContextVar("noted", default=MappingProxyType({}))
_withheld: ContextVar[Callable[[BaseException], bool]] = ContextVar("withheld", default=lambda _: False)


def configure_logging(form: str = "auto") -> None:
    """Write this process's log to standard error: every logger's, warnings, and what nobody caught.

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
    # httpx logs whole URLs, signatures included.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def note(**fields: object) -> None:
    """Give these fields to every line of this asyncio task, and of those that it starts, from here on."""
    _noted.set({**_noted.get(), **{name: value for name, value in fields.items() if value is not None}})


def withhold_words(may_quote: Callable[[BaseException], bool]) -> None:
    """Leave the words of such errors out of every line of this asyncio task, and of those that it starts.

    Their types, places, statuses and ids stay.
    """
    _withheld.set(may_quote)


class JsonFormatter(logging.Formatter):
    """One JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """See base class."""
        return escaped(json.dumps(_event(record), ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """`key=value` pairs in one line, values quoted like JSON strings where they need it (logfmt)."""

    def format(self, record: logging.LogRecord) -> str:
        """See base class."""
        event = _event(record)
        event["time"] = event["time"][11:23]  # the date is known to whoever sits there
        return " ".join(f"{name}={_value(value)}" for name, value in event.items())


def _event(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says, in its order."""
    told = dict(_noted.get())
    told |= _told_by_the_sdk(record)
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        told |= _told_by(error)
    told |= {name: value for name, value in vars(record).items() if name not in _NOT_EXTRA and value is not None}
    told.setdefault("trace_id", current_trace_id())
    first = {name: told.pop(name) for name in _FIRST if name in told}
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": _short(record.getMessage()),
        **{name: _readable(value) for name, value in (first | told).items() if value is not None},
    }


def _told_by_the_sdk(record: logging.LogRecord) -> dict[str, object]:
    details = getattr(record, "temporal_activity", None) or getattr(record, "temporal_workflow", None) or {}
    told = {ours: details[theirs] for theirs, ours in _SDK_NAMES.items() if details.get(theirs) is not None}
    core = getattr(record, "temporal_log", None)
    return told | (dict(core.fields) if core is not None else {})


def _told_by(error: BaseException) -> dict[str, object]:
    """An error in one line: its innermost cause's type, words and place, and the ids that the chain has."""
    told: dict[str, object] = {}
    chain = _chain(error)
    for link in chain:
        details = getattr(link, "details", None)
        for carrier in (link, *(details if isinstance(details, (list, tuple)) else (details,))):
            told |= {name: value for name in _IDS_OF_ERRORS if (value := getattr(carrier, name, None)) is not None}
    innermost = chain[-1]
    kind = getattr(innermost, "type", None)  # of Temporal's ApplicationError: the name that others match on
    told["error_type"] = kind if isinstance(kind, str) else type(innermost).__name__
    if not _withheld.get()(innermost):
        told["error"] = _words(innermost)
    elif status := getattr(innermost, "status", None):
        told["http_status"] = status
    if place := _place(innermost.__traceback__):
        told["at"] = place
    return told


def _chain(error: BaseException) -> list[BaseException]:
    """From what was caught to its innermost cause. An implicit `__context__` is none: it hides clearer words."""
    chain = [error]
    while True:
        inner = chain[-1].__cause__
        if inner is None and isinstance(chain[-1], BaseExceptionGroup):
            inner = chain[-1].exceptions[0]
        if inner is None or inner in chain:
            return chain
        chain.append(inner)


def _words(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # its own words repeat the input, a prompt for example
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        return _short("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems))
    message = getattr(error, "message", None)
    return _short(message if isinstance(message, str) and message else str(error))


def _place(traceback: TracebackType | None) -> str | None:
    """Where it was raised; a whole traceback is no line."""
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
