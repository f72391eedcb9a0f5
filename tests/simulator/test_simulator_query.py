import time
from typing import Any

import httpx
import pytest

from simulator import Simulator
from simulator.scenarios import SCENARIOS
from simulator.tasks import Task
from tests.simulator.requests_to_simulator import Submit

COMPLETED = [
    "id",
    "created_at",
    "updated_at",
    "task_id",
    "platform",
    "user_id",
    "channel_id",
    "quota",
    "action",
    "status",
    "fail_reason",
    "result_url",
    "submit_time",
    "start_time",
    "finish_time",
    "progress",
    "properties",
    "data",
]
RUNNING = [name for name in COMPLETED if name != "result_url"]
FAILED = ["id", "task_id", "status", "fail_reason", "progress", "data"]
WIRE_ERRORS = {
    "query_reset": httpx.ReadError,
    "query_close": httpx.RemoteProtocolError,
    "query_half": httpx.RemoteProtocolError,
    "query_hang": httpx.ReadTimeout,
}
STATUSES = {
    "task_not_exist": 400,
    "query_401": 401,
    "query_403": 403,
    "query_429": 429,
    "query_500": 500,
    "query_502": 502,
    "query_503": 503,
    "query_504": 504,
    "query_problem": 524,
}


def link(_: Task, kind: str) -> str:
    return f"https://cdn.test/{kind}.mp4"


def job(tag: str = "ok") -> Task:
    return Task(1, "veo_3_1-fast-remix", "", "x", tag, seconds=120, poll_seconds=15, quota=1, submitted_at=1000)


async def test_a_completed_answer_has_the_documents_fields(finished: Any) -> None:
    body = await finished()
    assert list(body) == COMPLETED
    assert (body["status"], body["progress"]) == ("SUCCESS", "100%")
    assert body["fail_reason"] == body["result_url"]
    assert body["result_url"].endswith(f"/v1/videos/{body['data']['id']}/content")
    assert list(body["data"]) == [
        "id",
        "model",
        "object",
        "status",
        "progress",
        "remix_id",
        "video_url",
        "created_at",
        "completed_at",
        "first_video_url",
        "remix_id_extend",
    ]
    assert body["data"]["status"] == "completed"


async def test_extend_failed_carries_the_short_clip_and_fewer_fields(finished: Any) -> None:
    body = await finished("extend_failed")
    assert list(body) == FAILED
    assert (body["status"], body["progress"]) == ("FAILURE", "50%")
    assert body["data"]["error"] == {"code": "extend_failed", "message": body["fail_reason"]}
    assert "(E-2003)" in body["fail_reason"]
    assert body["data"].keys() >= {"video_url", "remix_id", "remix_id_extend"}
    assert "first_video_url" not in body["data"]


async def test_generate_failed_carries_only_the_remix_id(finished: Any) -> None:
    body = await finished("generate_failed")
    assert list(body) == FAILED
    assert "(E-1005)" in body["fail_reason"]
    assert body["data"]["error"]["code"] == "generate_failed"
    assert "remix_id" in body["data"]
    assert not body["data"].keys() & {"video_url", "first_video_url", "remix_id_extend"}


def test_a_generation_passes_through_its_stages_in_the_gateways_steps() -> None:
    task = job()
    seen = [(seconds, task.seen(1000 + seconds)) for seconds in range(136)]
    stages = list(dict.fromkeys(moment.state for _, moment in seen))
    assert stages == ["queued", "first", "extending", "completed"]
    for seconds, moment in seen:
        assert moment.looked_at == 1000 + seconds // 15 * 15
        low, high = {"queued": (0, 0), "first": (0, 49), "extending": (50, 99), "completed": (100, 100)}[moment.state]
        assert low <= moment.progress <= high
        body = task.envelope(moment, link, "http://gateway.test")
        assert ("remix_id" in body["data"]) is (moment.state != "queued")
        assert ("remix_id_extend" in body["data"]) is (moment.state in {"extending", "completed"})
        assert list(body) == (COMPLETED if moment.state == "completed" else RUNNING)
    assert seen[119][1].running
    assert not seen[120][1].running


def test_late_success_and_never_finishes() -> None:
    assert job("late_success").seen(1000 + 479).state == "extending"
    assert job("late_success").seen(1000 + 480).state == "completed"
    forever = job("never_finishes").seen(1000 + 10**6)
    assert (forever.state, forever.progress) == ("extending", 61)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ("task_lost", "upstream returned error"),
        ("task_lost_unrecognized", "upstream returned unrecognized message"),
        ("task_lost_timeout", "任务超时（1440分钟）"),
        ("task_lost_channel", "Failed to get channel info, channel ID: 7"),
        ("task_lost_empty", ""),
        ("cancelled", "cancelled"),
    ],
)
async def test_a_failure_that_is_no_verdict(finished: Any, outcome: str, reason: str) -> None:
    body = await finished(outcome)
    assert (body["status"], body["progress"], body["fail_reason"]) == ("FAILURE", "100%", reason)
    data = body["data"] or {}
    verdict = data["error"]["code"] if isinstance(data.get("error"), dict) else ""
    assert verdict not in {"extend_failed", "generate_failed"}
    assert ("remix_id" in data) is (outcome in {"task_lost_timeout", "task_lost_channel", "cancelled"})


async def test_a_lost_job_goes_on_where_it_recovers(http: httpx.AsyncClient, submit: Submit) -> None:
    for tag, status in (("task_lost", "FAILURE"), ("task_lost,recovers", "SUCCESS")):
        task_id = (await submit(tag)).json()["task_id"]
        assert (await http.get(f"/v1/videos/{task_id}")).json()["status"] == "FAILURE"
        second = (await http.get(f"/v1/video/generations/{task_id}")).json()
        assert (second["code"], second["data"]["status"]) == ("success", status)
    task_id = (await submit("task_lost,heals")).json()["task_id"]
    assert (await http.get(f"/v1/videos/{task_id}")).json()["status"] == "SUCCESS"


@pytest.mark.parametrize("status", [400, 404])
async def test_a_lost_row_is_never_found(http: httpx.AsyncClient, submit: Submit, status: int) -> None:
    task_id = (await submit(f"task_missing,status={status}")).json()["task_id"]
    for path in ("/v1/videos/", "/v1/videos/", "/v1/videos/", "/v1/video/generations/"):
        answer = await http.get(path + task_id)
        assert (answer.status_code, answer.json()["code"]) == (status, "task_not_exist")


@pytest.mark.parametrize("word", [row.name for row in SCENARIOS.values() if row.kind == "query"])
async def test_a_query_fault_lasts_for_its_polls(
    sim: Simulator, http: httpx.AsyncClient, submit: Submit, word: str
) -> None:
    task_id = (await submit(f"{word},polls=1,after=1,delay=1")).json()["task_id"]
    path = f"/v1/videos/{task_id}"
    assert (await http.get(path)).json()["status"] == "SUCCESS"
    if word in WIRE_ERRORS:
        with pytest.raises(WIRE_ERRORS[word]):
            await http.get(path)
    else:
        answer = await http.get(path)
        assert answer.status_code == STATUSES.get(word, 200)
        assert sim.ledger.entries[-1]["fault"] == word
        if word == "query_problem":
            assert answer.json()["status"] == 524
        if word == "query_huge":
            assert len(answer.content) > 32 * 2**20
    assert (await http.get(path)).json()["status"] == "SUCCESS"


async def test_the_seven_shapes(finished: Any) -> None:
    assert (await finished("S1"))["status"] == "completed"
    assert (await finished("S2"))["data"]["status"] == "SUCCESS"
    assert (await finished("S3"))["status"] == "SUCCESS"
    simple = (await finished("shape=S4"))["data"]
    assert (simple["status"], ".mp4?" in simple["url"]) == ("succeeded", True)
    assert (await finished("S5"))["data"] is None
    assert "status" not in await finished("S6")
    assert (await finished("S7"))["data"]["data"]["status"] == "SUCCESS"
    assert (await finished("S4,generate_failed"))["data"]["error"]["code"] == "generate_failed"


async def test_s5_ends_after_its_polls(http: httpx.AsyncClient, submit: Submit) -> None:
    task_id = (await submit("S5,polls=1")).json()["task_id"]
    bodies = [(await http.get(f"/v1/videos/{task_id}")).json() for _ in range(2)]
    assert bodies[0]["data"] is None
    assert bodies[1]["status"] == "SUCCESS"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("progress_bare", "61"),
        ("progress_int", 61),
        ("progress_float", 61.0),
        ("progress_empty", ""),
        ("progress_null", None),
    ],
)
async def test_odd_progress(submit: Submit, http: httpx.AsyncClient, sim: Simulator, word: str, expected: Any) -> None:
    task_id = (await submit(f"never_finishes,{word}")).json()["task_id"]
    body = (await http.get(f"/v1/videos/{task_id}")).json()
    assert body["progress"] == expected
    assert type(body["progress"]) is type(expected)
    assert body["data"]["progress"] == expected


@pytest.mark.parametrize(
    ("word", "status", "inner"),
    [
        ("unknown_status", "REVIEWING", "rendering"),
        ("status_unknown", "UNKNOWN", "unknown"),
        ("status_empty", "", ""),
        ("not_start", "NOT_START", "pending"),
        ("inner_synonyms", "IN_PROGRESS", "in_progress"),
    ],
)
async def test_odd_statuses_while_it_runs(
    submit: Submit, http: httpx.AsyncClient, word: str, status: str, inner: str
) -> None:
    task_id = (await submit(f"never_finishes,{word}")).json()["task_id"]
    body = (await http.get(f"/v1/videos/{task_id}")).json()
    assert (body["status"], body["data"]["status"]) == (status, inner)


async def test_the_other_odd_values(http: httpx.AsyncClient, submit: Submit, finished: Any) -> None:
    body = await finished("milliseconds")
    assert body["submit_time"] > time.time() * 100
    assert body["data"]["completed_at"] > time.time() * 100
    assert set(await finished("missing_fields")) == {"task_id", "status", "data"}
    assert (await finished("extra_fields"))["group"] == "default"
    nulled = await finished("null_fields")
    assert nulled["progress"] is None
    assert nulled["data"]["video_url"]
    assert (await finished("inner_lags"))["data"]["status"] == "processing"
    assert (await finished("inner_synonyms"))["data"]["status"] == "succeeded"
    assert (await finished("extend_failed,failure_progress_100"))["progress"] == "100%"
    assert "E-1005" in (await finished("generate_failed,failure_in_result_url"))["result_url"]
    assert "first_video_url" not in (await finished("no_first_url"))["data"]
    task_id = (await submit("never_finishes,progress_backwards")).json()["task_id"]
    progress = [(await http.get(f"/v1/videos/{task_id}")).json()["progress"] for _ in range(4)]
    assert progress[1::2] == ["10%", "20%"]


async def test_an_unknown_task(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/videos/task_nobody_made")
    assert (answer.status_code, answer.json()["code"]) == (400, "task_not_exist")
