"""The reader of the gateway's answers: the document's examples, the shapes seen in the wild, and any JSON at all."""

import copy
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longtake.gateway.errors import InvalidResponse, TaskNotFound
from longtake.gateway.wire import (
    MAX_RETRY_AFTER,
    ErrorFacts,
    GatewayRecord,
    read_error,
    read_excerpt,
    read_json,
    read_retry_after,
    read_submission,
    read_task,
    redact,
)
from longtake.models import TaskState
from longtake.request.rules import is_task_id

EXAMPLES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_bytes()) for path in sorted((Path(__file__).parent / "examples").glob("*.json"))
}
TASK = "task_zgUBKXVW6YhJkXPvuTJ2Y0jaLnycfEu9"


def read(body: object, asked_for: str = TASK) -> GatewayRecord:
    return read_task(body, asked_for=asked_for, request_id="req-1")


def example_with(name: str, **changes: Any) -> dict[str, Any]:
    """An example with fields of the envelope changed, and with `data__x` those of its record."""
    body = copy.deepcopy(EXAMPLES[name])
    for field, value in changes.items():
        target = body["data"] if field.startswith("data__") else body
        target[field.removeprefix("data__")] = value
    return body


class TestDocumentedExamples:
    def test_all_four_are_here(self) -> None:
        assert set(EXAMPLES) == {"processing", "completed", "extend_failed", "generate_failed"}

    def test_processing(self) -> None:
        record = read(EXAMPLES["processing"])
        assert record == GatewayRecord(
            task_id=TASK,
            state=TaskState.RUNNING,
            gateway_status="IN_PROGRESS",
            inner_status="processing",
            answered_task_id=TASK,
            answered_ids=(TASK, "task_Dg8gD60Ntv0QgabS5jmGY6IwgraflRXo"),
            progress=61,
            remix_id="video_08a9eb19-2ea9-4753-8fde-4ae1b0867952",
            remix_id_extend="video_e8fb1fff-cf79-431d-8c57-9c87e8d36fd0",
            upstream_task_id="task_Dg8gD60Ntv0QgabS5jmGY6IwgraflRXo",
            model="veo_3_1-fast-remix",
            quota=425000,
            submitted_at=datetime.fromtimestamp(1777175740, UTC),
            started_at=datetime.fromtimestamp(1777175789, UTC),
            updated_at=datetime.fromtimestamp(1777175888, UTC),
            request_id="req-1",
        )

    def test_completed(self) -> None:
        record = read(EXAMPLES["completed"])
        assert record.state is TaskState.COMPLETED
        assert record.video_url == "https://videos-us3.ss2.life/extend/xxxxx175907133_3bd6883e.mp4"
        assert record.first_video_url is not None
        assert record.first_video_url.startswith("https://videos-us3.ss2.life/video/a8a0f0cb")
        assert record.result_url == "https://xxx.com/v1/videos/task_Dg8gD60Ntv0QgabS5jmGY6IwgraflRXo/content"
        assert record.finished_at == datetime.fromtimestamp(1777175907, UTC)
        assert record.error_message is None

    def test_extend_failed(self) -> None:
        record = read(EXAMPLES["extend_failed"])
        assert record.state is TaskState.EXTEND_FAILED
        assert record.error_code == "extend_failed"
        assert record.error_message == "第一段视频生成成功,但二创失败:线路繁忙,请重试 (E-2003)"
        assert record.video_url == "https://videos-us3.ss2.life/video/a8a0f0cb-xxxx-xxxx"

    def test_generate_failed(self) -> None:
        record = read(EXAMPLES["generate_failed"])
        assert record.state is TaskState.GENERATE_FAILED
        assert record.error_message == "视频生成失败:违反谷歌AI安全协议 请调整图片和提示词 (E-1005)"
        assert (record.video_url, record.remix_id) == (None, "video_xxxxxxxx-xxxx-xxxx")


class TestRewrittenLinks:
    """A flat record under the gateway's id, with the gateway's own content route instead of the links (seen live)."""

    CONTENT = f"http://localhost:3000/v1/videos/{TASK}/content"

    def flat(self, **changes: Any) -> dict[str, Any]:
        record = EXAMPLES["completed"]["data"]
        links = {"video_url": self.CONTENT, "url": self.CONTENT, "result_url": self.CONTENT}
        return {**record, **links, "id": TASK, "task_id": record["id"], **changes}

    def test_the_ids_change_places(self) -> None:
        record = read(self.flat())
        assert record.answered_task_id == TASK
        assert record.upstream_task_id == EXAMPLES["completed"]["data"]["id"]

    @pytest.mark.parametrize("root", ["http://localhost:3000", "https://gateway.example/nested"])
    def test_the_content_route_is_no_link(self, root: str) -> None:
        content = f"{root}/v1/videos/{TASK}/content"
        record = read(self.flat(video_url=content, url=content, result_url=content, first_video_url=content))
        assert (record.video_url, record.first_video_url, record.result_url) == (None, None, None)
        assert record.content_route
        assert read(self.flat()).first_video_url == EXAMPLES["completed"]["data"]["first_video_url"]

    @pytest.mark.parametrize(
        "link",
        [
            f"https://cdn.example/v1/videos/{TASK}/content?Signature=abc",
            "https://middleware.example/v1/videos/task_upstream/content",
            f"https://cdn.example/{TASK}.mp4",
        ],
    )
    def test_any_other_address_is_one(self, link: str) -> None:
        record = read(self.flat(video_url=link))
        assert (record.video_url, record.content_route) == (link, True)

    def test_the_envelope_fills_the_gaps(self) -> None:
        flat, whole = read(self.flat()), read(EXAMPLES["completed"])
        both = flat.completed_by(whole)
        assert (both.video_url, both.quota, both.result_url) == (whole.video_url, whole.quota, whole.result_url)
        assert whole.completed_by(flat) == dataclasses.replace(whole, content_route=True)

    def test_the_clip_of_another_state_is_another_clip(self) -> None:
        both = read(self.flat()).completed_by(read(EXAMPLES["extend_failed"]))
        assert (both.state, both.video_url, both.quota) == (TaskState.COMPLETED, None, None)

    @pytest.mark.parametrize(
        ("name", "quota", "refunded"),
        [
            ("extend_failed", 0, True),
            ("generate_failed", 0, True),
            ("extend_failed", 425_000, False),
            ("extend_failed", None, None),
            ("completed", 0, None),
            ("processing", 0, None),
        ],
    )
    def test_a_refund(self, name: str, quota: int | None, refunded: bool | None) -> None:
        record = read(example_with(name, quota=quota))
        assert (record.refunded, record.without_links().refunded) == (refunded, refunded)


class TestShapes:
    """The same task in every shape of the field notes."""

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_wrapped_once_or_twice_reads_as_the_flat_envelope(self, name: str) -> None:
        envelope = EXAMPLES[name]
        wrapped = {"code": "success", "message": "", "data": envelope}
        assert read(wrapped) == read(envelope)
        assert read({"code": "success", "message": "", "data": wrapped}) == read(envelope)
        assert read({"code": 200, "data": [envelope]}) == read(envelope)

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_the_record_alone_tells_the_same_state_and_links(self, name: str) -> None:
        whole, flat = read(EXAMPLES[name]), read(EXAMPLES[name]["data"])
        for field in ("state", "video_url", "first_video_url", "remix_id", "remix_id_extend", "error_code", "progress"):
            assert getattr(flat, field) == getattr(whole, field), field
        assert flat.task_id == TASK

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_a_second_gateway_in_a_row(self, name: str) -> None:
        outer = {"id": 7, "task_id": "task_outer", "status": EXAMPLES[name]["status"], "quota": 1}
        record = read({**outer, "data": EXAMPLES[name]}, asked_for="task_outer")
        assert record.state is read(EXAMPLES[name]).state
        assert (record.task_id, record.quota) == ("task_outer", 1)
        assert record.video_url == read(EXAMPLES[name]).video_url

    def test_record_as_json_text(self) -> None:
        body = {**EXAMPLES["completed"], "data": json.dumps(EXAMPLES["completed"]["data"])}
        assert read(body) == read(EXAMPLES["completed"])

    @pytest.mark.parametrize(
        ("status", "error", "state"),
        [
            ("succeeded", None, TaskState.COMPLETED),
            ("queued", None, TaskState.RUNNING),
            ("processing", None, TaskState.RUNNING),
            ("failed", {"message": "upstream said no"}, TaskState.LOST),
            ("failed", "upstream said no", TaskState.LOST),
            ("failed", {"code": "extend_failed", "message": "busy"}, TaskState.EXTEND_FAILED),
        ],
    )
    def test_one_layer_of_the_other_route(self, status: str, error: object, state: TaskState) -> None:
        data = {"task_id": TASK, "status": status, "url": "https://cdn.example/v.mp4", "error": error}
        record = read({"code": "success", "data": data})
        assert (record.state, record.video_url) == (state, "https://cdn.example/v.mp4")
        if state is TaskState.LOST:
            assert (record.error_code, record.error_message) == (None, "upstream said no")

    @pytest.mark.parametrize(
        "body",
        [
            {"code": "success", "data": None},
            {"id": "req-7", "error": {"message": "upstream error", "code": "bad_response"}},
            {"status": 524, "title": "Error 524: A timeout occurred", "type": "https://cloudflare.example"},
            {"id": "task_x"},
            {},
            [],
            None,
            "task",
            524,
            [{"status": "SUCCESS"}, {"status": "SUCCESS"}],
        ],
    )
    def test_no_task_in_it(self, body: object) -> None:
        with pytest.raises(InvalidResponse) as caught:
            read(body)
        assert caught.value.request_id == "req-1"

    @pytest.mark.parametrize(
        "body",
        [
            {"code": "task_not_exist", "message": "task_not_exist", "data": None},
            {"error": {"code": "task_not_exist", "message": "no such task", "type": "new_api_error"}},
        ],
    )
    def test_not_found(self, body: object) -> None:
        with pytest.raises(TaskNotFound):
            read(body)


class TestStates:
    @pytest.mark.parametrize(
        "status", ["NOT_START", "SUBMITTED", "QUEUED", "IN_PROGRESS", "PAUSED", "进行中", "SUCCESSFUL-ISH"]
    )
    def test_any_other_envelope_status_runs_whatever_the_record_says(self, status: str) -> None:
        assert read(example_with("completed", status=status)).state is TaskState.RUNNING
        assert read(example_with("extend_failed", status=status)).state is TaskState.RUNNING

    @pytest.mark.parametrize("status", ["", "UNKNOWN", None, 524, [], {}])
    def test_an_envelope_that_says_nothing_leaves_it_to_the_record(self, status: object) -> None:
        assert read(example_with("completed", status=status)).state is TaskState.COMPLETED
        assert read(example_with("processing", status=status)).state is TaskState.RUNNING
        assert read(example_with("generate_failed", status=status)).state is TaskState.GENERATE_FAILED

    @pytest.mark.parametrize("status", ["failed", "cancelled", "expired", "error", "unknown", "processing"])
    def test_success_outranks_the_record(self, status: str) -> None:
        assert read(example_with("completed", data__status=status)).state is TaskState.COMPLETED

    def test_success_without_any_link_is_still_completed(self) -> None:
        body = {"task_id": TASK, "status": "SUCCESS", "fail_reason": "", "data": None}
        record = read(body)
        assert record.state is TaskState.COMPLETED
        assert (record.video_url, record.result_url) == (None, None)

    def test_download_address_in_fail_reason_only(self) -> None:
        body = example_with("completed")
        del body["result_url"]
        assert read(body).result_url == body["fail_reason"]

    @pytest.mark.parametrize(
        "data",
        [
            None,
            {"error": {"message": "upstream returned error", "type": "upstream_error", "code": "bad_gateway"}},
            {"id": "x", "error": "boom"},
            {"status": 524, "title": "a timeout occurred"},
            {"status": "processing", "progress": 30, "remix_id": "video_1"},
            {"status": "failed", "error": {}},
            {"status": "failed", "error": {"code": "EXTEND_FAILED_MAYBE"}},
            {"status": "failed", "error": {"code": ["generate_failed"]}},
            {"status": "completed", "video_url": "https://cdn.example/v.mp4"},
        ],
    )
    def test_a_failure_without_a_verdict_is_lost(self, data: object) -> None:
        body = {
            "task_id": TASK,
            "status": "FAILURE",
            "fail_reason": "任务超时（1440分钟）",
            "progress": "100%",
            "data": data,
        }
        record = read(body)
        assert record.state is TaskState.LOST
        assert record.error_message

    def test_reason_of_a_failure_in_result_url(self) -> None:
        body = {"task_id": TASK, "status": "FAILURE", "fail_reason": "", "result_url": "upstream returned error"}
        record = read(body)
        assert (record.state, record.error_message) == (TaskState.LOST, "upstream returned error")
        assert record.result_url is None

    def test_a_failure_keeps_no_download_address(self) -> None:
        body = example_with("extend_failed", result_url="https://gw.example/v1/videos/x/content")
        assert read(body).result_url is None

    def test_reason_is_short_and_without_signature(self) -> None:
        reason = "cannot fetch https://cdn.example/v.mp4?Signature=SECRET with sk-abcdef " + "x" * 1000
        message = read({"task_id": TASK, "status": "FAILURE", "fail_reason": reason}).error_message
        assert message is not None
        assert "https://cdn.example/v.mp4?…" in message
        assert "SECRET" not in message
        assert "sk-abcdef" not in message
        assert len(message) == 300


class TestFields:
    @pytest.mark.parametrize(
        ("written", "progress"),
        [
            ("61%", 61),
            ("61", 61),
            (61, 61),
            (61.9, 61),
            (" 61 % ", 61),
            ("0%", 0),
            ("100%", 100),
            ("", None),
            (None, None),
            ("soon", None),
            (-1, None),
            (101, None),
            (True, None),
            (float("nan"), None),
            (float("inf"), None),
            (10**400, None),
            ([61], None),
        ],
    )
    def test_progress(self, written: object, progress: int | None) -> None:
        assert read({"task_id": TASK, "status": "IN_PROGRESS", "progress": written}).progress == progress

    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            (1777175740, 1777175740),
            (1777175740000, 1777175740),
            (1777175740000000, 1777175740),
            ("1777175740", 1777175740),
            (0, None),
            (-5, None),
            (12, None),
            (10**30, None),
            (None, None),
            ("yesterday", None),
        ],
    )
    def test_times(self, written: object, seconds: int | None) -> None:
        record = read({"task_id": TASK, "status": "SUCCESS", "finish_time": written})
        assert record.finished_at == (None if seconds is None else datetime.fromtimestamp(seconds, UTC))

    @pytest.mark.parametrize(
        "written",
        ["", "no link", "ftp://h/x", "https://", "https://h/a b", "http://[", 7, None, "https://h/" + "x" * 9000],
    )
    def test_what_is_no_link(self, written: object) -> None:
        assert read(example_with("completed", data__video_url=written)).video_url is None

    def test_ids_that_cannot_be_stored_are_dropped(self) -> None:
        assert read(example_with("processing", data__remix_id="video_\ud800")).remix_id is None
        assert read(example_with("processing", data__remix_id="x" * 257)).remix_id is None

    def test_the_name_an_answer_gives_the_task_is_kept_beside_ours(self) -> None:
        record = read(EXAMPLES["processing"], asked_for="task_mine")
        assert (record.task_id, record.answered_task_id) == ("task_mine", TASK)


class TestRecord:
    @pytest.mark.parametrize("name", EXAMPLES)
    def test_kept_in_the_store_and_read_again(self, name: str) -> None:
        record = read(EXAMPLES[name])
        assert GatewayRecord.from_json(record.to_json()) == record

    def test_reads_what_a_newer_version_wrote(self) -> None:
        text = b'{"task_id": "t", "state": "running", "a_new_field": 1}'
        assert GatewayRecord.from_json(text) == GatewayRecord(task_id="t", state=TaskState.RUNNING)

    @pytest.mark.parametrize("text", ["", "[]", '{"video_url": "https://h/v?Signature=SECRET"}', '{"task_id": 1}'])
    def test_no_record(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a stored gateway record") as caught:
            GatewayRecord.from_json(text)
        assert "SECRET" not in str(caught.value)

    def test_links_stay_behind(self) -> None:
        record = read(EXAMPLES["completed"])
        shown = repr(record) + record.without_links().model_dump_json()
        assert "http" not in shown
        assert record.without_links().has_video_link
        assert record.without_links().has_first_video_link


class TestSubmission:
    @pytest.mark.parametrize(
        "body",
        [
            {"id": TASK, "task_id": TASK, "object": "video", "status": "queued", "progress": 0, "created_at": 1},
            {"id": TASK, "object": "video", "status": "queued"},
            {"id": TASK},
            {"task_id": "", "id": TASK, "status": "queued"},
            {"id": 1235905, "task_id": TASK, "status": "SUBMITTED", "data": {"id": "task_inner"}},
            {"code": "success", "message": "", "data": TASK},
            {"code": "success", "data": {"task_id": TASK}},
            {"code": 200, "data": [{"status": "submitted", "task_id": TASK}]},
            {"id": "req-1", "code": "success", "data": {"task_id": TASK}},
            {"task_id": TASK, "status": "failed", "error": {"code": "generate_failed", "message": "no"}},
        ],
    )
    def test_accepted_shapes(self, body: object) -> None:
        assert read_submission(body, status=200, request_id=None) == TASK

    @pytest.mark.parametrize(
        "body",
        [
            {},
            [],
            None,
            TASK,
            {"id": 1235905, "status": "SUBMITTED"},
            {"task_id": None},
            {"task_id": " ", "id": ""},
            {"task_id": "not an id"},
            {"id": "req-1", "error": {"message": "no"}},
            {"id": "req-1", "code": "fail_to_fetch_task", "message": "no", "data": None},
            {"code": "fail_to_fetch_task", "message": "no", "data": "upstream"},
            {"data": "text"},
            {"code": "success", "data": "<html>"},
        ],
    )
    def test_no_id(self, body: object) -> None:
        with pytest.raises(InvalidResponse) as caught:
            read_submission(body, status=200, request_id="req-9")
        assert str(caught.value).startswith("[req-9] ")
        assert caught.value.status == 200

    def test_the_error_repeats_no_values(self) -> None:
        with pytest.raises(InvalidResponse) as caught:
            read_submission({"note": "a cat on the moon"}, status=200, request_id=None)
        assert "note" in str(caught.value)
        assert "cat" not in str(caught.value)


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "facts"),
        [
            (
                {"error": {"message": "无效的令牌", "type": "new_api_error", "code": ""}},
                ErrorFacts(None, "无效的令牌", "new_api_error"),
            ),
            (
                {"code": "insufficient_user_quota", "message": "quota", "data": None},
                ErrorFacts("insufficient_user_quota", "quota", None),
            ),
            (
                {"code": "fail_to_fetch_task", "message": json.dumps({"error": {"code": "E-1", "message": "busy"}})},
                ErrorFacts("fail_to_fetch_task", "E-1: busy", None),
            ),
            (
                {"code": "fail_to_fetch_task", "message": json.dumps({"code": "E-1", "message": "busy"})},
                ErrorFacts("fail_to_fetch_task", "E-1: busy", None),
            ),
            ({"error": "plain"}, ErrorFacts(None, "plain", None)),
            ({"status": 524, "title": "A timeout occurred"}, ErrorFacts(None, "A timeout occurred", None)),
            ({}, ErrorFacts()),
        ],
    )
    def test_json(self, body: object, facts: ErrorFacts) -> None:
        assert read_error(500, {}, json.dumps(body).encode()) == facts

    def test_html(self) -> None:
        body = b"<html><head><title>502 Bad Gateway</title></head></html>"
        assert read_error(502, {"Content-Type": "text/html"}, body).message == "an HTML page: 502 Bad Gateway"

    def test_empty(self) -> None:
        assert read_error(504, {}, b"").message == "HTTP 504 with an empty body"

    def test_secrets_do_not_come_back(self) -> None:
        prompt = "A cat walks over the moon and looks at the earth. " * 20
        said = f"key my-own-key with sk-abc123, Bearer xyz, https://u:p@h/x?sig=1: prompt '{prompt}' is refused"
        message = read_error(400, {}, json.dumps({"message": said}).encode(), secrets=("my-own-key", prompt)).message
        assert message == "key … with sk-…, Bearer …, https://…@h/x?… prompt '… ' is refused"
        cut = read_error(400, {}, json.dumps({"message": f"no: {prompt[:90]}"}).encode(), secrets=(prompt,)).message
        assert cut == "no: …"

    @given(st.text(), st.text(alphabet="abcdefXYZ0123456789_-", min_size=4))
    def test_redaction_holds_around_any_text(self, around: str, secret: str) -> None:
        secret = f"Q{secret}Q"
        for text in (
            f"{around} sk-{secret} {around}",
            f"{around} Authorization: Bearer {secret} {around}",
            f"{around} https://cdn.example/v.mp4?Signature={secret}&x=1 {around}",
            f"{around} https:\\/\\/cdn.example\\/v.mp4?Expires=1&Signature={secret} {around}",
            f"{around} https://{secret}:{secret}@cdn.example/v.mp4 {around}",
        ):
            assert redact(text).count(secret) <= 2 * around.count(secret)


PROMPT = 'A "red" cat\nwalks over the moon – 猫, slowly, and looks back at the earth'
API_KEY = "my-own-key-without-a-prefix"


class TestExcerpt:
    @pytest.mark.parametrize(
        ("body", "shows"),
        [
            ({"id": 4711, "status": "queued"}, '"id": 4711'),
            ({"id": "videos/9f/1?x"}, "videos/9f/1?x"),
            ({"data": {"task": {"uuid": "0b1e 77"}}}, "0b1e 77"),
            ({"code": "ok", "message": json.dumps({"inner": {"id": 12}})}, '"id": 12'),
            ([1, [2, {"id": 3}]], '[1, [2, {"id": 3}]]'),
            ("task/1", '"task/1"'),
        ],
    )
    def test_what_may_name_the_task_is_shown(self, body: object, shows: str) -> None:
        assert shows in read_excerpt(json.dumps(body).encode(), secrets=(PROMPT, API_KEY))

    def test_what_is_no_json(self) -> None:
        assert read_excerpt(b"queued as job 12/7\r\n\xff", secrets=()).startswith("queued as job 12/7")
        assert read_excerpt(b"") == ""

    @pytest.mark.parametrize(
        "body",
        [
            json.dumps({"id": 1, "echo": PROMPT}),
            json.dumps({"id": 1, "echo": PROMPT}, ensure_ascii=False),
            json.dumps({"id": 1, "echo": f"you said: {PROMPT}!"}),
            json.dumps({"id": 1, "echo": PROMPT[:40]}),
            json.dumps({"id": 1, "message": json.dumps({"echo": PROMPT})}),
            json.dumps({"id": 1, "message": "got " + json.dumps({"echo": PROMPT}) + " from you"}),
            json.dumps({"id": 1, "message": json.dumps({"echo": PROMPT})})[:-1],  # broken off: no JSON any more
            json.dumps({"id": 1, PROMPT: 1}),
            json.dumps({"id": 1, "prompt": "a cat, told in other words"}),
            json.dumps({"id": 1, "properties": {"input": "a cat, told in other words"}}),
            f"broken JSON: {{'echo': '{PROMPT}'",
            f"<p>{escape(PROMPT)}</p>",
            f"prompt={quote(PROMPT, safe='')}",
            json.dumps({"id": 1, "key": API_KEY, "at": f"Authorization: Bearer {API_KEY}"}),
            json.dumps({"id": 1, "x": "sk-abcdef0123456789", "y": "Bearer abcdef0123456789"}),
            json.dumps({"id": 1, "url": "https://cdn.example/cat/walks.mp4?Signature=abcdef0123456789"}),
            json.dumps({"id": 1, "url": "https:\\/\\/cdn.example\\/cat\\/walks.mp4"}),
            "see https://user:abcdef0123456789@cdn.example/cat/walks.mp4",
            json.dumps({"id": 1, "image": "data:image/png;base64,YWJjZGVmMDEyMzQ1Njc4OQ=="}),
        ],
    )
    def test_no_secret_comes_back(self, body: str) -> None:
        shown = read_excerpt(body.encode(), secrets=(API_KEY, PROMPT))
        for secret in ("cat", "walks", "own-key", "abcdef", "YWJj", "cdn.example", "\\u732b", "猫"):
            assert secret not in shown

    def test_short_prompts_too(self) -> None:
        shown = read_excerpt(json.dumps({"id": 1, "echo": "a cat"}).encode(), secrets=("a cat",))
        assert "cat" not in shown
        assert '"id": 1' in shown

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_anything_at_all(self, body: bytes) -> None:
        assert len(read_excerpt(body)) <= 500

    @pytest.mark.parametrize("body", [b"[" * 90_000, b'{"a":' * 90, json.dumps(["x" * 900] * 900).encode()])
    def test_it_is_short(self, body: bytes) -> None:
        shown = read_excerpt(body)
        assert len(shown) <= 500
        assert shown.isprintable()


class TestRetryAfter:
    NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("value", "wait"),
        [
            ("7", timedelta(seconds=7)),
            ("1.5", timedelta(seconds=1.5)),
            ("86400", MAX_RETRY_AFTER),
            ("Wed, 01 Jul 2026 12:01:00 GMT", timedelta(minutes=1)),
            ("Wed, 01 Jul 2026 12:01:00 -0000", timedelta(minutes=1)),
            ("Fri, 01 Jan 2100 00:00:00 GMT", MAX_RETRY_AFTER),
            ("Wed, 01 Jul 2020 12:01:00 GMT", None),
            ("0", None),
            ("-3", None),
            ("soon", None),
            ("", None),
            ("9" * 5000, None),
        ],
    )
    def test_seconds_or_date(self, value: str, wait: timedelta | None) -> None:
        assert read_retry_after({"Retry-After": value}, now=self.NOW) == wait

    @given(st.text())
    def test_any_text(self, value: str) -> None:
        wait = read_retry_after({"retry-after": value})
        assert wait is None or timedelta(0) < wait <= MAX_RETRY_AFTER


# Any JSON that Python can hold, with the texts and numbers that break readers.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 524, 0, 1777175740000])
    | st.floats()
    | st.text()
    | st.sampled_from(
        ["\ud800", "\x00", "SUCCESS", "FAILURE", "failed", "extend_failed", "https://h/v?s=1", "{", "[{}]"]
    )
)
KEYS = st.text(max_size=8) | st.sampled_from(
    [
        "status",
        "data",
        "error",
        "code",
        "message",
        "task_id",
        "id",
        "progress",
        "video_url",
        "fail_reason",
        "properties",
    ]
)
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=20
)


def check_reads_or_refuses(body: object) -> None:
    """The promise: a record that survives the store and Temporal, or a typed error that can be shown."""
    shown = ""
    try:
        record = read(body)
    except (InvalidResponse, TaskNotFound) as error:
        shown = str(error)
    else:
        assert GatewayRecord.from_json(record.to_json()) == record
        assert len(record.without_links().model_dump_json()) < 8000
    try:
        shown += read_submission(body, status=200, request_id=None)
    except InvalidResponse as error:
        shown += str(error)
    assert len(shown.encode()) < 4000
    assert shown.isprintable()


class TestAnythingAtAll:
    @given(ANY_JSON)
    def test_any_json(self, body: object) -> None:
        check_reads_or_refuses(body)

    @given(st.data())
    def test_mutated_examples(self, data: st.DataObject) -> None:
        body = copy.deepcopy(EXAMPLES[data.draw(st.sampled_from(sorted(EXAMPLES)))])
        for _ in range(data.draw(st.integers(1, 4))):
            layer = body["data"] if isinstance(body.get("data"), dict) and data.draw(st.booleans()) else body
            field = data.draw(st.sampled_from(sorted(layer)) if layer else KEYS)
            if data.draw(st.booleans()):
                layer[field] = data.draw(ANY_JSON)
            else:
                layer.pop(field, None)
        check_reads_or_refuses(body)

    def test_deep_nesting(self) -> None:
        body: object = "end"
        for _ in range(50_000):
            body = {"data": body}
        check_reads_or_refuses(body)
        while isinstance(body, dict):  # taken apart by hand: freeing it at once would recurse in the interpreter
            body = body.pop("data")

    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>", b"[" * 100_000, b'{"data":' * 100_000, b"9" * 5000, b"\xff\xfe\x00", b'{"a": 1} x'],
        ids=["empty", "html", "deep list", "deep object", "huge number", "not UTF-8", "trailing"],
    )
    def test_bytes_that_are_no_json(self, body: bytes) -> None:
        with pytest.raises(ValueError, match=r"not JSON|nested too deep"):
            read_json(body)

    @given(st.binary() | ANY_JSON.map(lambda body: json.dumps(body).encode()), st.integers(100, 599))
    @example(b'{"code": NaN, "message": {"a": 1}}', 500)
    def test_any_error_body(self, body: bytes, status: int) -> None:
        facts = read_error(status, {"content-type": "text/html"}, body)
        for text in (facts.code, facts.message, facts.type):
            assert text is None or 0 < len(text) <= 300


@pytest.mark.parametrize("length", [1, 255, 256])
def test_an_id_ends_where_search_attributes_and_decisions_do(length: int) -> None:
    """An id that Temporal's stores cannot show, or a person cannot adopt, is none."""
    task_id = "t" * length
    assert is_task_id(task_id) is (length <= 255)
    if length <= 255:
        assert read_submission({"task_id": task_id}, status=200, request_id=None) == task_id
        return
    with pytest.raises(InvalidResponse):
        read_submission({"task_id": task_id}, status=200, request_id=None)
