"""One line an event, whatever is in it, and with everything that is known."""

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from temporalio.exceptions import ActivityError, ApplicationError, RetryState

from longtake.gateway.errors import GatewayBusy
from longtake.models import FailureDetails
from longtake.observability.logs import JsonFormatter, TextFormatter, note

PAIR = re.compile(r'(?P<key>[a-z_]+)=(?P<value>"(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)')
"""logfmt: what any reader of it takes."""


def record(message: str = "something happened", *arguments: object, **more: Any) -> logging.LogRecord:
    return logging.getLogger("longtake.test").makeRecord(
        "longtake.test", logging.WARNING, __file__, 1, message, arguments, more.pop("exc_info", None), extra=more
    )


def as_json(line: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(line)
    return event


def as_text(line: str) -> dict[str, Any]:
    pairs = list(PAIR.finditer(line))
    assert "".join(pair[0] for pair in pairs) == line, line
    return {pair["key"]: json.loads(pair["value"]) if pair["value"][0] == '"' else pair["value"] for pair in pairs}


Read = Callable[[logging.LogRecord], dict[str, Any]]


@pytest.fixture(params=["json", "text"])
def read(request: pytest.FixtureRequest) -> Read:
    """Write a record in this form and read the line again."""
    formatter = JsonFormatter() if request.param == "json" else TextFormatter()
    parse = as_json if request.param == "json" else as_text

    def through(record: logging.LogRecord) -> dict[str, Any]:
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert line.isprintable()
        return parse(line)

    return through


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - to have its traceback
        return (type(caught), caught, caught.__traceback__)


def test_every_line_says_when_how_bad_who_and_what(read: Read) -> None:
    event = read(record("%d looks", 3))
    assert list(event) == ["time", "level", "logger", "event"]
    assert event | {"time": ""} == {"time": "", "level": "warning", "logger": "longtake.test", "event": "3 looks"}


def test_json_has_the_date_and_the_terminal_the_time() -> None:
    now = record()
    assert as_json(JsonFormatter().format(now))["time"][11:23] == as_text(TextFormatter().format(now))["time"]
    assert as_json(JsonFormatter().format(now))["time"].endswith("+00:00")


@pytest.mark.parametrize(
    "nasty",
    [
        "two\nlines",
        "a=b c",
        'quo"te',
        "back\\slash",
        "",
        "nul\0 bell\a escape\x1b[31m",
        "\x85\u2028\u2029",
        "中文 ✓",
        "\ud800",
        " ",
        "a\tb\r\n",
    ],
)
def test_whatever_is_said_comes_back_as_it_was(read: Read, nasty: str) -> None:
    event = read(record("%s", nasty, reason=nasty))
    assert (event["event"], event["reason"]) == (nasty, nasty)


def test_what_is_too_long_is_cut(read: Read) -> None:
    assert len(read(record("x" * 100_000, reason="y" * 100_000))["event"]) < 3_000


def test_plain_values_stand_without_quotes() -> None:
    line = TextFormatter().format(record("ok", task_id="task_1", attached=False, seconds=0.25, nothing=None))
    assert line.endswith(" level=warning logger=longtake.test event=ok task_id=task_1 attached=false seconds=0.25")


def test_the_ids_stand_first_and_in_one_order(read: Read) -> None:
    shuffled: dict[str, Any] = {
        "attempt": 2,
        "zebra": 1,
        "stage": "extending",
        "request_id": "r",
        "workflow_id": "w",
        "task_id": "t",
    }
    event = read(record(**shuffled, run_id="x", activity="query_generation"))
    assert list(event)[4:] == [
        *("workflow_id", "run_id", "task_id", "stage", "request_id", "activity", "attempt"),
        "zebra",
    ]


def test_what_the_sdk_tells_of_its_activity_or_workflow(read: Read) -> None:
    known = {"workflow_id": "video-1", "workflow_run_id": "run-1", "activity_type": "deliver_video", "attempt": 2}
    event = read(record(temporal_activity=known | {"namespace": "default", "task_queue": "q"}))
    assert list(event)[4:] == ["workflow_id", "run_id", "activity", "attempt"]
    assert (event["run_id"], event["activity"]) == ("run-1", "deliver_video")
    event = read(record(temporal_workflow={"workflow_id": "video-1", "run_id": "run-1", "workflow_type": "X"}))
    assert (event["workflow_id"], event["run_id"]) == ("video-1", "run-1")


def test_what_the_sdks_core_tells(read: Read) -> None:
    event = read(record("gRPC call poll failed", temporal_log=SimpleNamespace(fields={"error": "status:\n gone"})))
    assert (event["event"], event["error"]) == ("gRPC call poll failed", "status:\n gone")


async def test_what_is_noted_stays_with_the_task_and_those_that_it_starts(read: Read) -> None:
    async def inner() -> dict[str, Any]:
        return read(record())

    async def one(number: int) -> dict[str, Any]:
        note(task_id=f"task_{number}", stage=None)
        await asyncio.sleep(0)
        return await asyncio.create_task(inner())

    first, second = await asyncio.gather(one(1), one(2))
    assert (first["task_id"], second["task_id"]) == ("task_1", "task_2")
    assert "stage" not in first
    assert "task_id" not in read(record())
    note(task_id="task_0")
    assert read(record(task_id="task_3"))["task_id"] == "task_3", "the call knows best"


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_an_error_is_its_innermost_cause_with_its_type_and_place(read: Read) -> None:
    try:
        try:
            try:
                raise KeyError("innermost\nof all")
            except KeyError as error:
                raise OSError("in between") from error
        except OSError as error:
            raise RuntimeError("outermost") from error
    except RuntimeError as error:
        event = read(record("it failed", exc_info=raised(error)))
    assert (event["error_type"], event["error"]) == ("KeyError", "'innermost\\nof all'")
    assert re.fullmatch(
        r"observability/test_logs\.py:\d+ test_an_error_is_its_innermost_cause_with_its_type_and_place", event["at"]
    )
    assert "outermost" not in str(event)


def test_an_unrelated_context_is_no_cause(read: Read) -> None:
    try:
        try:
            int("x")
        except ValueError:
            raise TypeError("clear words")  # noqa: B904 - that is the point
    except TypeError as error:
        event = read(record(exc_info=raised(error)))
    assert (event["error_type"], event["error"]) == ("TypeError", "clear words")


def test_a_group_shows_its_first_error_and_a_circle_ends(read: Read) -> None:
    group = ExceptionGroup("many", [ValueError("first"), TypeError("second")])
    assert read(record(exc_info=raised(group)))["error_type"] == "ValueError"
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert read(record(exc_info=(ValueError, one, None)))["error"] == "other"


def test_temporals_failures_show_the_type_that_others_match_on_and_the_ids(read: Read) -> None:
    details = FailureDetails(task_id="task_1", request_id="req-1", http_status=503, gateway_code="busy", advice="wait")
    inner = ApplicationError("the gateway\nis busy", details, type="GatewayBusy")
    outer = ActivityError(
        "Activity task failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="",
        activity_type="query_generation",
        activity_id="1",
        retry_state=RetryState.TIMEOUT,
    )
    outer.__cause__ = inner
    event = read(record(exc_info=raised(outer)))
    assert (event["error_type"], event["error"]) == ("GatewayBusy", "the gateway\nis busy")
    assert (event["task_id"], event["request_id"], event["gateway_code"]) == ("task_1", "req-1", "busy")
    assert str(event["http_status"]) == "503"


def test_the_gateways_errors_show_its_request_id(read: Read) -> None:
    error = GatewayBusy("later", status=429, request_id="req-2")
    assert read(record(exc_info=raised(error)))["request_id"] == "req-2"


def test_what_a_model_refuses_is_not_repeated(read: Read) -> None:
    class Request(BaseModel):
        prompt: int

    try:
        Request.model_validate({"prompt": "SECRET"})
    except ValueError as error:
        event = read(record("cannot be read", exc_info=raised(error)))
    assert event["error_type"] == "ValidationError"
    assert event["error"].startswith("prompt: ")
    assert "SECRET" not in str(event)


# --- A whole process --------------------------------------------------------------------------------------------------

PROCESS = """
import logging, threading, warnings
from longtake.observability.logs import configure_logging
configure_logging({form!r})
logging.getLogger("anybody").info("two\\nlines")
warnings.warn("careful\\nplease")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
logging.getLogger("httpx").info("GET https://cdn.example/?Signature=SECRET")
raise RuntimeError("at\\nlast")
"""


@pytest.mark.parametrize("form", ["json", "text", "auto"])
def test_every_line_of_a_process_is_an_event(form: str) -> None:
    code = PROCESS.format(form=form)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    events = [(as_text if form == "text" else as_json)(line) for line in ended.stderr.splitlines()]
    assert [event["logger"] for event in events] == ["anybody", "py.warnings", "longtake", "longtake"]
    assert "careful\nplease" in events[1]["event"]
    assert [event.get("error_type") for event in events[2:]] == ["ZeroDivisionError", "RuntimeError"]
    assert events[3]["error"] == "at\nlast"
