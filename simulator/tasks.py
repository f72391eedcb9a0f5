"""A task: what is really happening to it at a moment, and the document's envelope of that."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import floor
from pathlib import Path
from typing import Any, Literal

from simulator.scenarios import Script, parse

Json = dict[str, Any]
State = Literal["queued", "first", "extending", "completed", "extend_failed", "generate_failed", "lost", "cancelled"]
LinkKind = Literal["extend", "video"]
"""`extend`: the finished 15 s video; `video`: the first 8 s."""

EXTEND_FAILED = "第一段视频生成成功,但二创失败:线路繁忙,请重试 (E-2003)"
GENERATE_FAILED = "视频生成失败:违反谷歌AI安全协议 请调整图片和提示词 (E-1005)"

_STARTED, _EXTENDING = 0.04, 0.55
"""Shares of the whole time after which the first segment, and the extension, begin."""

_ENDS: dict[str, tuple[float, State]] = {
    "ok": (1, "completed"),
    "late_success": (4, "completed"),
    "extend_failed": (0.7, "extend_failed"),
    "generate_failed": (0.3, "generate_failed"),
    "cancelled": (0.4, "cancelled"),
    "never_finishes": (float("inf"), "completed"),
    "task_missing": (1, "completed"),
}
_LOST_AT = 0.4

_LOST: dict[str, tuple[str, Json | Literal["kept"] | None]] = {
    "task_lost": (
        "upstream returned error",
        {"error": {"message": "upstream temporarily unavailable", "type": "upstream_error", "code": "bad_gateway"}},
    ),
    "task_lost_unrecognized": (
        "upstream returned unrecognized message",
        {"code": "unexpected", "message": "unrecognized status", "data": None},
    ),
    "task_lost_timeout": ("任务超时（1440分钟）", "kept"),
    "task_lost_channel": ("Failed to get channel info, channel ID: 7", "kept"),
    "task_lost_empty": ("", None),
}


@dataclass(frozen=True)
class Moment:
    """What the gateway knows of a task at its last poll upstream."""

    state: State
    progress: int
    looked_at: float
    ended_at: float

    @property
    def running(self) -> bool:
        """Whether nothing is decided yet."""
        return self.state in {"queued", "first", "extending"}


@dataclass
class Task:
    """One paid job.

    Attributes:
        serial: The gateway's serial number (`id` in the envelope).
        task_id: The gateway's public id.
        seconds: Real seconds from submission to the video; the clock's speed is already in it.
        poll_seconds: Real seconds between the gateway's polls upstream.
        submitted_at: Unix seconds.
        request_id: The `X-Oneapi-Request-Id` of the POST that made it.
        recorded: Whether the gateway knows the task, and charges for it; False: only the middleware has the job.
        polls: Queries answered so far on the document's path; the other counters likewise, kept in memory only.
    """

    serial: int
    model: str
    size: str
    prompt: str
    scenario: str
    seconds: float
    poll_seconds: float
    quota: int
    submitted_at: float = field(default_factory=time.time)
    task_id: str = field(default_factory=lambda: f"task_{uuid.uuid4().hex}")
    middleware_id: str = field(default_factory=lambda: f"task_{uuid.uuid4().hex}")
    remix_id: str = field(default_factory=lambda: f"video_{uuid.uuid4()}")
    remix_id_extend: str = field(default_factory=lambda: f"video_{uuid.uuid4()}")
    remixed_from: str = ""
    request_id: str = ""
    recorded: bool = True
    polls: int = field(default=0, compare=False)
    success_polls: int = field(default=0, compare=False)
    downloads: int = field(default=0, compare=False)

    @property
    def script(self) -> Script:
        """The parsed scenario."""
        return parse(self.scenario)

    @property
    def outcome(self) -> str:
        """The scenario's outcome, `ok` by default."""
        return self.script.one("outcome", "ok")

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of the video this model and size lead to."""
        width, height = (int(part) for part in self.size.split("x")) if self.size else (1280, 720)
        high = "-hd" in self.model
        if high and not self.size:
            return 1920, 1080
        if not high and max(width, height) > 1280:  # noqa: PLR2004 (720p: for 1080p the document wants an -hd model)
            return (1280, 720) if width > height else (720, 1280)
        return width, height

    def truth(self, now: float) -> Moment:
        """What the job is really doing, as far as the gateway has polled."""
        end, state = _ENDS.get(self.outcome, _ENDS["ok"])
        polled = floor((now - self.submitted_at) / self.poll_seconds + 1e-6) * self.poll_seconds
        looked_at = self.submitted_at + polled
        share = polled / self.seconds + 1e-6
        ended_at = self.submitted_at + min(end, 1e6) * self.seconds
        if share >= end:
            progress = {"completed": 100, "extend_failed": 50}.get(state, 0)
            return Moment(state, progress, looked_at, ended_at)
        if share < _STARTED:
            return Moment("queued", 0, looked_at, 0)
        if share < _EXTENDING:
            return Moment("first", int((share - _STARTED) / (_EXTENDING - _STARTED) * 50), looked_at, 0)
        progress = 50 + int(min(share - _EXTENDING, 0.449) / (1 - _EXTENDING) * 50)
        if self.outcome == "never_finishes":
            progress = min(progress, 61)
        return Moment("extending", progress, looked_at, 0)

    def seen(self, now: float) -> Moment:
        """What the gateway's row says: the truth, unless the gateway lost the task."""
        truth = self.truth(now)
        if self.outcome not in _LOST or truth.looked_at < self.submitted_at + _LOST_AT * self.seconds:
            return truth
        if "heals" in self.script and truth.state == "completed":
            return truth
        lost_at = self.submitted_at + _LOST_AT * self.seconds
        return Moment("lost", 100, lost_at, lost_at)

    def refunded(self, now: float) -> bool:
        """Whether the gateway has given the money back: it does on every FAILURE."""
        return self.seen(now).state in {"lost", "extend_failed", "generate_failed", "cancelled"}

    def flat(self) -> Json:
        """The stock answer to a submission."""
        answer: Json = {
            "id": self.task_id,
            "task_id": self.task_id,
            "object": "video",
            "model": self.model,
            "status": "queued",
            "progress": 0,
            "created_at": int(self.submitted_at),
        }
        if self.remixed_from:
            answer["remixed_from_video_id"] = self.remixed_from
        return answer

    def envelope(self, moment: Moment, link: Callable[["Task", LinkKind], str], base_url: str) -> Json:
        """The document's flat envelope (S3), fields and their order as its examples print them."""
        if moment.state in {"extend_failed", "generate_failed"}:
            return self._failure(moment, link)
        data: Json | None = self._record(moment, link)
        result_url = f"{base_url}/v1/videos/{self.middleware_id}/content"
        status = {"queued": "SUBMITTED", "completed": "SUCCESS", "lost": "FAILURE", "cancelled": "FAILURE"}
        fail_reason = result_url if moment.state == "completed" else ""
        if moment.state == "cancelled":
            fail_reason = "cancelled"
        if moment.state == "lost":
            fail_reason, kept = _LOST[self.outcome]
            data = self._record(Moment("first", 30, moment.looked_at, 0), link) if kept == "kept" else kept
        ended = moment.state in {"completed", "lost", "cancelled"}
        return {
            "id": self.serial,
            "created_at": int(self.submitted_at),
            "updated_at": int(moment.looked_at),
            "task_id": self.task_id,
            "platform": "1",
            "user_id": 2,
            "channel_id": 7,
            "quota": self.quota,
            "action": "remixGenerate" if self.remixed_from else "textGenerate",
            "status": status.get(moment.state, "IN_PROGRESS"),
            "fail_reason": fail_reason,
            **({"result_url": result_url} if moment.state == "completed" else {}),
            "submit_time": int(self.submitted_at),
            "start_time": 0 if moment.state == "queued" else int(self.submitted_at + _STARTED * self.seconds),
            "finish_time": int(moment.ended_at) if ended else 0,
            "progress": f"{100 if ended else moment.progress}%",
            "properties": {"upstream_model_name": self.model, "origin_model_name": self.model},
            "data": data,
        }

    def _record(self, moment: Moment, link: Callable[["Task", LinkKind], str]) -> Json:
        status = {"queued": "queued", "completed": "completed", "cancelled": "cancelled"}
        record: Json = {
            "id": self.middleware_id,
            "model": self.model,
            "object": "video",
            "status": status.get(moment.state, "processing"),
            "progress": moment.progress,
        }
        if moment.state != "queued":
            record["remix_id"] = self.remix_id
        if moment.state == "completed":
            record["video_url"] = link(self, "extend")
        record["created_at"] = int(self.submitted_at)
        if moment.state == "completed":
            record["completed_at"] = int(moment.ended_at)
            record["first_video_url"] = link(self, "video")
        if moment.state in {"extending", "completed"}:
            record["remix_id_extend"] = self.remix_id_extend
        return record

    def _failure(self, moment: Moment, link: Callable[["Task", LinkKind], str]) -> Json:
        extend = moment.state == "extend_failed"
        message = EXTEND_FAILED if extend else GENERATE_FAILED
        record: Json = {
            "id": self.middleware_id,
            "model": self.model,
            "object": "video",
            "status": "failed",
            "progress": moment.progress,
            "created_at": int(self.submitted_at),
            "error": {"code": moment.state, "message": message},
        }
        if extend:
            record["video_url"] = link(self, "video")
        record["remix_id"] = self.remix_id
        if extend:
            record["remix_id_extend"] = self.remix_id_extend
        return {
            "id": self.serial,
            "task_id": self.task_id,
            "status": "FAILURE",
            "fail_reason": message,
            "progress": f"{moment.progress}%",
            "data": record,
        }


class TaskBook:
    """All tasks; each is written to disk when it is made, so that a restarted simulator goes on with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tasks: list[Task] = []
        if path.exists():
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            rows = (json.loads(line) for line in whole.splitlines())
            self._tasks = list({row["task_id"]: Task(**row) for row in rows}.values())

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def add(self, task: Task) -> Task:
        """Keep a new task, on disk first."""
        self._write(task)
        self._tasks.append(task)
        return task

    def record(self, task: Task) -> None:
        """Record a task that the gateway did not know, on disk too: the last line of a task counts."""
        task.recorded = True
        self._write(task)

    def _write(self, task: Task) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(task), ensure_ascii=False) + "\n")

    def recorded(self) -> list[Task]:
        """The tasks that the gateway knows, the oldest first."""
        return [task for task in self._tasks if task.recorded]

    def next_serial(self) -> int:
        """The serial number of the next task."""
        return 1_235_905 + len(self._tasks)

    def by_task_id(self, task_id: str) -> Task | None:
        """The task that the gateway knows by this public id."""
        return next((task for task in self._tasks if task.recorded and task.task_id == task_id), None)

    def by_middleware_id(self, middleware_id: str) -> Task | None:
        """The task with this id of the middleware."""
        return next((task for task in self._tasks if task.middleware_id == middleware_id), None)

    def by_remix_id(self, remix_id: str) -> Task | None:
        """The task that the gateway knows whose first segment has this id."""
        return next((task for task in self._tasks if task.recorded and task.remix_id == remix_id), None)

    def reset(self) -> None:
        """Forget all tasks."""
        self._tasks.clear()
        self._path.unlink(missing_ok=True)
