"""Which gateway the simulator is like: what differs between installations, and nothing else.

`document` answers as the provider's document prints it. `newapi-2026-07` answers as a NewAPI of July 2026 did that was
seen live; the README's table says what of it was seen and what was read in that gateway's public source.
"""

from typing import Any, Final

from starlette.responses import JSONResponse, Response

from simulator import answers
from simulator.tasks import Json, Moment, Task

DOCUMENT: Final = "document"
NEWAPI: Final = "newapi-2026-07"

_VIDEO_STATUS = {
    "SUBMITTED": "queued",
    "QUEUED": "queued",
    "IN_PROGRESS": "in_progress",
    "SUCCESS": "completed",
    "FAILURE": "failed",
}
_RAW_STATUS = {"pending": "queued", "processing": "in_progress", "succeeded": "completed", "error": "failed"}
_LINK_FIELDS = ("result_url", "url", "video_url")


class Document:
    """The gateway of the document, and the stock builds before July 2026.

    Attributes:
        name: What `--like` calls it.
        charges_failures: Whether a POST that ends in an error of the gateway's own stays charged, and its job listed.
        notices_leaving: Whether a client that leaves before the answer cancels its POST, which is then free.
        takes_files: Whether images may be file parts.
        has_fetch: Whether `POST /suno/fetch` is there.
        proxy_pages_are_named: Whether the HTML pages of proxies carry the gateway's request id.
        forwards_range: Whether `/content` honours `Range` without being set to.
        keeps_links: Whether a task that has ended keeps its link for good: then no query brings a fresh one.
    """

    name = DOCUMENT
    charges_failures = True
    notices_leaving = False
    takes_files = True
    has_fetch = False
    proxy_pages_are_named = True
    forwards_range = False
    keeps_links = False

    def headers(self) -> dict[str, str]:
        """Sent with every answer of the gateway, beside the request id."""
        return {}

    def accepted_headers(self) -> dict[str, str]:
        """Sent with the 200 of a submission."""
        return {}

    def submitted(self, flat: Json) -> Json:
        """The stock answer to a submission."""
        return flat

    def envelope(self, envelope: Json, task: Task, moment: Moment) -> Json:  # noqa: ARG002 (the other one needs them)
        """The task as the envelope routes show it."""
        return envelope

    def flat(self, envelope: Json, task: Task, server_address: str) -> Json | None:  # noqa: ARG002 (likewise)
        """What `GET /v1/videos/{id}` answers instead of the envelope; None for the envelope itself."""
        return None

    def list_row(self, envelope: Json, task: Task) -> Json:
        """The task in `/api/task/self`."""
        properties = {"upstream_model_name": task.model, "origin_model_name": task.model}
        return {"submit_time": int(task.submitted_at), "properties": properties, "quota": task.quota, **envelope}

    def charge(self, task: Task) -> Json:  # noqa: ARG002 (likewise)
        """What a charge row of the usage log has besides time, model, quota and type."""
        return {"other": '{"is_task":true}'}

    def refund(self, task: Task, reason: str) -> Json:  # noqa: ARG002 (likewise)
        """The same of a refund row."""
        return {"other": f'{{"task_id":"{task.task_id}"}}'}

    def invalid_key(self) -> Response:
        """A key that is wrong, disabled, expired or exhausted."""
        return answers.new_api_error(401, "无效的令牌")

    def invalid_key_at_console(self) -> Response:
        """The same on the routes under `/api`."""
        return JSONResponse({"success": False, "message": "无效的令牌"}, 401)

    def invalid_token(self) -> Response:
        """A console token that is wrong, or comes without its user."""
        return JSONResponse({"success": False, "message": "无权进行此操作，access token 无效"}, 401)

    def account_is_empty(self, left: int, needed: int) -> Response:  # noqa: ARG002 (likewise)
        """The account has no quota left."""
        return answers.new_api_error(403, "用户额度不足", "insufficient_user_quota")

    def key_is_empty(self, left: int, needed: int) -> Response:
        """The key has no quota left; the account may have some."""
        message = f"token quota is not enough, token remain quota: {left}, need quota: {needed}"
        return answers.relay_error(403, "pre_consume_token_quota_failed", message)

    def no_content(self) -> Response:
        """`/content` of a task that the gateway does not know."""
        return answers.relay_error(404, "task_not_exist", "task_not_exist")

    def not_completed(self, status: str, moment: Moment) -> Response:  # noqa: ARG002 (likewise)
        """`/content` of a task that is no SUCCESS."""
        return answers.relay_error(400, "invalid_request", f"task is not completed yet: {moment.state}")

    def remix_refused(self) -> Response:
        """`/remix` where nobody has set it up."""
        return answers.relay_error(400, "task_origin_not_exist", "task_origin_not_exist")


class NewApi202607(Document):
    """A NewAPI of July 2026, channel type Sora, as it was seen live."""

    name = NEWAPI
    charges_failures = False
    notices_leaving = True
    takes_files = False
    has_fetch = True
    proxy_pages_are_named = False
    forwards_range = True
    keeps_links = True

    def headers(self) -> dict[str, str]:
        """See `Document`."""
        return {"X-New-Api-Version": "v0.0.0-simulator"}

    def accepted_headers(self) -> dict[str, str]:
        """See `Document`."""
        return {"X-New-Api-Other-Ratios": '{"seconds":4,"size":1}'}

    def submitted(self, flat: Json) -> Json:
        """See `Document`."""
        return {"id": flat["id"], "task_id": flat["task_id"], "taskId": flat["task_id"], **flat}

    def envelope(self, envelope: Json, task: Task, moment: Moment) -> Json:
        """All fields at any time, `model_name`, no names in `properties`; the middleware's record untouched."""
        data, status = envelope["data"], envelope["status"]
        record: Json = data if isinstance(data, dict) else {}
        if status == "SUBMITTED":
            status = "NOT_START" if moment.looked_at <= task.submitted_at else "QUEUED"
        failed = status == "FAILURE"
        fail_reason = envelope["fail_reason"] if failed else ""
        result_url = record.get("video_url", "") if status == "SUCCESS" else fail_reason
        return {
            "id": task.serial,
            "created_at": int(task.submitted_at),
            "updated_at": int(moment.looked_at),
            "task_id": task.task_id,
            "platform": "55",
            "user_id": 2,
            "group": "default",
            "channel_id": 7,
            "quota": 0 if failed else task.quota,
            "action": envelope.get("action", "textGenerate"),
            "status": status,
            "fail_reason": fail_reason,
            **({"result_url": result_url} if result_url else {}),
            "submit_time": int(task.submitted_at),
            "start_time": envelope.get("start_time", int(task.submitted_at)),
            "finish_time": 0 if moment.running else int(moment.ended_at),
            "progress": envelope["progress"] if moment.running else "100%",
            "model_name": task.model,
            "properties": {"input": ""},
            "data": data,
        }

    def flat(self, envelope: Json, task: Task, server_address: str) -> Json | None:
        """The record of the middleware under the public id; every link leads to the gateway's own `/content`.

        As that gateway does it, links appear wherever it has anything as `result_url`: a failure's text is enough.
        """
        record: Json = dict(envelope["data"]) if isinstance(envelope["data"], dict) else {}
        raw = str(record.get("status") or "")
        record["id"], record["task_id"] = task.task_id, task.middleware_id
        record.setdefault("object", "video")
        record["model"] = task.model
        record["status"] = _VIDEO_STATUS.get(envelope["status"], _RAW_STATUS.get(raw, raw))
        progress = str(envelope.get("progress") or "").removesuffix("%")
        record.setdefault("progress", int(float(progress or 0)))
        record.setdefault("created_at", int(task.submitted_at))
        if envelope.get("finish_time"):
            record.setdefault("completed_at", envelope["finish_time"])
        if record.get("video_url") or envelope.get("result_url"):
            _rewrite_links(record, f"{server_address}/v1/videos/{task.task_id}/content")
        return record

    def list_row(self, envelope: Json, task: Task) -> Json:  # noqa: ARG002 (the other one needs it)
        """See `Document`."""
        return envelope

    def charge(self, task: Task) -> Json:
        """See `Document`."""
        return {"request_id": task.request_id, "other": '{"is_task":true,"request_path":"/v1/videos"}'}

    def refund(self, task: Task, reason: str) -> Json:
        """See `Document`."""
        quota: Json = {"pre_consumed_quota": task.quota, "actual_quota": 0}
        other: Json = {"task_id": task.task_id, **quota, "reason": reason, "seconds": 4, "size": 1}
        return {"other": answers.compact(other)}

    def invalid_key(self) -> Response:
        """See `Document`."""
        return answers.new_api_error(401, "Invalid token")

    def invalid_key_at_console(self) -> Response:
        """See `Document`."""
        return JSONResponse({"success": False, "message": "Invalid token"}, 401)

    def invalid_token(self) -> Response:
        """See `Document`."""
        return JSONResponse({"success": False, "message": "Unauthorized, invalid access token"})

    def account_is_empty(self, left: int, needed: int) -> Response:
        """See `Document`."""
        message = f"user quota is not enough, user quota: {left}, need quota: {needed}"
        return answers.relay_error(403, "insufficient_user_quota", message)

    def no_content(self) -> Response:
        """See `Document`."""
        return answers.proxy_error(404, "Task not found")

    def not_completed(self, status: str, moment: Moment) -> Response:  # noqa: ARG002 (the other one needs it)
        """See `Document`."""
        return answers.proxy_error(400, f"Task is not completed yet, current status: {status}")

    def remix_refused(self) -> Response:
        """See `Document`."""
        return answers.new_api_error(500, "Panic detected, error: invalid memory address", "new_api_panic")


def _rewrite_links(record: dict[str, Any], link: str) -> None:
    record.update(dict.fromkeys(_LINK_FIELDS, link))
    record["output"] = [link]
    video = record.get("video")
    record["video"] = {**(video if isinstance(video, dict) else {}), "url": link}
    metadata = record.get("metadata")
    record["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), **dict.fromkeys(_LINK_FIELDS, link)}


PERSONALITIES: Final = {one.name: one for one in (Document(), NewApi202607())}
"""All of them, by the name that `--like` takes."""
