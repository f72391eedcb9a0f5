"""Logs: one line an event, `key=value` on a terminal and JSON otherwise; never a prompt, a key or a signed link."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_CONTEXT = ("workflow_id", "workflow_run_id", "activity_type", "attempt")
"""What the SDK's loggers know of the activity or workflow that speaks."""


def configure_logging(form: str = "auto") -> None:
    """Write this process's log to standard error.

    Args:
        form: `text`, `json`, or `auto`: text on a terminal, JSON otherwise.
    """
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # httpx logs whole URLs, signatures included.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _event(record: logging.LogRecord) -> dict[str, Any]:
    event: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
    }
    known = getattr(record, "temporal_activity", None) or getattr(record, "temporal_workflow", None) or {}
    event |= {name: known[name] for name in _CONTEXT if name in known}
    if record.exc_info and record.exc_info[1] is not None:
        event["error"] = _innermost(record.exc_info[1])
    return event


def _innermost(error: BaseException) -> str:
    """The innermost cause in one line; tracebacks of expected failures only hide it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_event(record), ensure_ascii=False, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = _event(record)
        head = f"{event.pop('time')[11:23]} {event.pop('level'):7} {event.pop('event')}"
        event.pop("logger")
        return " ".join([head, *(f"{name}={value}" for name, value in event.items())])
