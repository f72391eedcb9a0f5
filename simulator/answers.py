"""The many ways a gateway writes the same thing: error bodies, odd values, shapes S1 to S7."""

import json
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response

from simulator.scenarios import Script
from simulator.tasks import Json, Moment, Task

_TIMES = frozenset({"created_at", "updated_at", "submit_time", "start_time", "finish_time", "completed_at"})
_KEPT_BY_NULLING = frozenset(
    {
        "id",
        "task_id",
        "status",
        "data",
        "video_url",
        "first_video_url",
        "result_url",
        "remix_id",
        "remix_id_extend",
        "error",
    }
)
_SYNONYMS = {"completed": "succeeded", "failed": "error", "processing": "in_progress"}
_SIMPLE_STATUSES = {"SUCCESS": "succeeded", "FAILURE": "failed", "SUBMITTED": "queued"}
_ODD_RUNNING_STATUSES = {
    "unknown_status": ("REVIEWING", "rendering"),
    "status_unknown": ("UNKNOWN", "unknown"),
    "status_empty": ("", ""),
    "not_start": ("NOT_START", "pending"),
}
_PLACEHOLDERS = (30, 10, 20)


def new_api_error(status: int, message: str, code: str = "") -> Response:
    """The error shape of authentication and routing."""
    return JSONResponse({"error": {"message": message, "type": "new_api_error", "code": code}}, status)


def relay_error(status: int, code: str, message: str) -> Response:
    """The error shape of the task relay."""
    return JSONResponse({"code": code, "message": message, "data": None}, status)


def proxy_error(status: int, message: str) -> Response:
    """The error shape of newer builds' `/content`: no code."""
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


def compact(value: Json) -> str:
    """JSON in a string, as the usage log's `other` holds it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def html_page(status: int) -> Response:
    """The page of a proxy in front of the gateway, or of a wrong base URL (200)."""
    return HTMLResponse(
        f"<html><head><title>{status}</title></head><body><h1>{status}</h1><hr>nginx</body></html>", status
    )


def problem(status: int) -> Response:
    """Cloudflare's problem JSON: its `status` is the HTTP status, not a task's."""
    body = {
        "type": "https://developers.cloudflare.com/",
        "title": f"Error {status}",
        "status": status,
        "cloudflare_error": True,
    }
    return JSONResponse(body, status, media_type="application/problem+json")


def retry_after(script: Script) -> dict[str, str]:
    """The Retry-After header that a 429 carries, if any: real seconds, or a date two seconds ahead."""
    value = script.params.get("retry_after")
    if value is None:
        return {}
    return {"Retry-After": formatdate(time.time() + 2, usegmt=True) if value == "date" else value}


def submission(word: str, task: Task, envelope: Json, flat: Json) -> Response:
    """The 200 of a submission, in one of its shapes."""
    bodies: dict[str, Any] = {
        "submit_envelope": envelope,
        "submit_code_string": {"code": "success", "data": task.task_id},
        "submit_code_object": {"code": "success", "data": {"task_id": task.task_id}},
        "submit_code_list": {"code": 200, "data": [{"status": "submitted", "task_id": task.task_id}]},
        "submit_id_only": {"id": task.task_id},
        "submit_no_id": {"object": "video", "model": task.model, "status": "queued", "progress": 0},
    }
    if word == "submit_html":
        return html_page(200)
    if word in {"submit_not_json", "submit_empty"}:
        return Response(b"" if word == "submit_empty" else b"queued: ok", media_type="application/json")
    return JSONResponse(bodies.get(word, flat))


def with_odd_values(script: Script, envelope: Json, moment: Moment, poll: int) -> Json:
    """The envelope with the odd values the scenario asks for."""
    data = dict(envelope["data"]) if isinstance(envelope["data"], dict) else envelope["data"]
    record: Json = data if isinstance(data, dict) and "object" in data else {}
    envelope = {**envelope, "data": data}
    _odd_statuses(script, envelope, record, moment)
    _odd_progress(script, envelope, record, poll)
    if "no_first_url" in script:
        record.pop("first_video_url", None)
    if "content_only" in script or "result_url_only" in script:
        record.pop("video_url", None)
    if "failure_in_result_url" in script and envelope["status"] == "FAILURE":
        envelope["result_url"] = envelope["fail_reason"]
    return _odd_fields(script, envelope, record)


def _odd_fields(script: Script, envelope: Json, record: Json) -> Json:
    if "milliseconds" in script:
        for level in (envelope, record):
            level.update({name: level[name] * 1000 for name in _TIMES & level.keys()})
    if "extra_fields" in script:
        envelope["group"], envelope["retries"] = "default", {"count": 0}
        record["seconds"], record["metadata"] = "15", [1, None, {"deep": True}]
    if "null_fields" in script:
        for level in (envelope, record):
            level.update(dict.fromkeys(level.keys() - _KEPT_BY_NULLING))
    if "missing_fields" in script:
        envelope = {name: envelope[name] for name in ("task_id", "status", "data")}
        for name in ("id", "object", "model", "progress", "created_at", "completed_at"):
            record.pop(name, None)
    return envelope


def _odd_statuses(script: Script, envelope: Json, record: Json, moment: Moment) -> None:
    if moment.running:
        for word, (status, inner) in _ODD_RUNNING_STATUSES.items():
            if word in script:
                envelope["status"] = status
                record["status"] = inner
    if "inner_synonyms" in script and record:
        record["status"] = _SYNONYMS.get(record["status"], record["status"])
    if "inner_lags" in script and record and not moment.running:
        record["status"] = "processing"


def _odd_progress(script: Script, envelope: Json, record: Json, poll: int) -> None:
    number = int(envelope["progress"].rstrip("%"))
    if "progress_backwards" in script and poll % 2 == 0:
        number = _PLACEHOLDERS[poll // 2 % len(_PLACEHOLDERS)]
        envelope["progress"] = f"{number}%"
    if "failure_progress_100" in script and envelope["status"] == "FAILURE":
        envelope["progress"] = "100%"
    odd: dict[str, Any] = {
        "progress_bare": str(number),
        "progress_int": number,
        "progress_float": float(number),
        "progress_empty": "",
        "progress_null": None,
    }
    for word, value in odd.items():
        if word in script:
            envelope["progress"] = value
            if record:
                record["progress"] = value


def shaped(shape: str, envelope: Json) -> Any:
    """The same answer in one of the shapes of the field notes."""
    wrapped = {"code": "success", "message": "", "data": envelope}
    shapes: dict[str, Callable[[], Any]] = {
        "S1": lambda: envelope["data"],
        "S2": lambda: wrapped,
        "S3": lambda: envelope,
        "S4": lambda: {"code": "success", "data": _simple(envelope)},
        "S5": lambda: {"code": "success", "data": None},
        "S6": lambda: {"id": envelope["task_id"], "error": {"message": "upstream busy", "code": "busy"}},
        "S7": lambda: {"code": "success", "message": "", "data": wrapped},
    }
    return shapes[shape]()


def _simple(envelope: Json) -> Json:
    record = envelope["data"] if isinstance(envelope["data"], dict) else {}
    return {
        "task_id": envelope["task_id"],
        "status": _SIMPLE_STATUSES.get(envelope["status"], "processing"),
        "url": record.get("video_url", ""),
        "error": record.get("error"),
    }
