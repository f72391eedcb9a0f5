"""Texts that others wrote, at every place where people read: no control, no bidi mark and no line of theirs."""

import contextlib
import io
import json
import logging
import re
import shlex
import unicodedata
from datetime import UTC, datetime
from typing import Any, Self

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from cli import session
from cli.commands import inspect
from cli.output import CommandProblem, Exit, error_text, invalid, print_json
from cli.progress import Lines, describe, live
from longtake.client import Execution, PendingStep, Snapshot, _details, _summary
from longtake.display import code, command, line, prose
from longtake.gateway import wire
from longtake.gateway.errors import InvalidResponse
from longtake.models import (
    Attention,
    FailureDetails,
    GenerateVideoInput,
    GenerationStatus,
    ImageInput,
    Paid,
    Problem,
    Stage,
    StoredVideo,
)
from longtake.observability.logs import JsonFormatter, TextFormatter
from workflows import status_text

NASTY = (
    "\x1b[2J\x1b[Hdone: full 15.0 s",
    "a\nb: done: full 15.0 s",
    "a\r\u2028\u2029\x85b",
    "\u202egpj.exe\u2066",
    "\x9b31m\x07\x00\x7f",
    "$(touch /tmp/owned)`touch /tmp/owned`",
    "``` [here](https://evil.example) <img src=x> ![](https://evil.example) | # *bold*",
    "[red]x[/red] [link=https://evil.example]here[/link]",
)
texts = st.text(max_size=60) | st.sampled_from(NASTY) | st.lists(st.sampled_from(NASTY), min_size=2).map("".join)
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def harmless(shown: str, *, most_lines: int = 1) -> None:
    assert shown.count("\n") + 1 <= most_lines
    assert [char for char in shown if char != "\n" and unicodedata.category(char) in _INVISIBLE] == []


@given(texts)
def test_a_text_is_one_line_in_a_terminal(text: str) -> None:
    harmless(line(text))
    if text.isprintable():
        assert line(text) == text


@given(texts)
def test_a_command_is_its_words_to_a_shell(text: str) -> None:
    shown = command("starter.py", "poll", text)
    harmless(shown)
    if text.isprintable():
        assert shlex.split(shown) == ["starter.py", "poll", text]


@given(texts)
def test_markdown_reads_nothing_into_a_text(text: str) -> None:
    harmless(prose(text))
    harmless(code(text))
    # Every character that means something to Markdown is escaped, or stands between fences longer than its own.
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[\]<>#|~&!$]", prose(text).replace("\\\\", ""))
    fence = re.match(r"`+", code(text))
    assert fence
    inner = code(text)[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall(r"`+", inner)


def status_of(text: str, **fields: Any) -> GenerationStatus:
    video = StoredVideo(uri=text, sha256="1" * 64, bytes=1, duration_seconds=8, width=1280, height=720, has_audio=True)
    known: dict[str, Any] = {"stage": Stage.AWAITING_DECISION, "attention": Attention.NEEDS_DECISION}
    known |= dict.fromkeys(("key", "model", "task_id", "request_id", "remix_id", "remix_id_extend", "outcome"), text)
    known |= dict.fromkeys(("extension_task_id", "last_problem"), text)
    known |= dict.fromkeys(("evidence", "candidates", "warnings"), (text, text))
    known |= {"decisions": ("adopt", "resubmit", "abandon"), "paid": Paid.YES, "polls": 3, "progress": 61}
    known |= {"video": video, "first_video": video, "has_link": True} | fields
    status = GenerationStatus.model_validate(known)
    return status_text.explained(status)


STATUSES: list[dict[str, Any]] = [
    {},
    {"stage": Stage.FAILED, "decisions": (), "attention": None},
    {"stage": Stage.DONE, "decisions": (), "attention": None},
    {"stage": Stage.FIRST_SEGMENT, "decisions": (), "attention": Attention.NEEDS_API_KEY},
    {"stage": Stage.DELIVERING, "decisions": (), "attention": Attention.DELIVERY_FAILING, "video": None},
]


@given(text=texts, fields=st.sampled_from(STATUSES))
@example(text=NASTY[1], fields=STATUSES[0])
def test_a_page_has_only_lines_of_ours(text: str, fields: dict[str, Any]) -> None:
    plain = status_text.markdown(status_of("plain", **fields))
    shown = status_text.markdown(status_of(text or "plain", **fields))
    harmless(shown, most_lines=plain.count("\n") + 1)
    assert shown.count("\n") == plain.count("\n")
    for found in re.findall(r"`+[^\n]*?starter\.py[^\n]*?`+", shown) if text.isprintable() and "`" not in text else ():
        words = shlex.split(found.strip("`"))
        assert words[0] == "starter.py"
        assert words[2] == (text or "plain")


@given(texts)
def test_the_title_and_details_of_a_start(text: str) -> None:
    def request(said: str) -> GenerateVideoInput:
        images = (ImageInput(uri=said),)
        return GenerateVideoInput(
            model="veo_3_1-fast-remix", prompt=said, prompt_extend=said, images=images, task_id=said or "x"
        )

    lines_of_ours = _details("plain", request("plain")).count("\n") + 1
    harmless(_details(text, request(text)), most_lines=lines_of_ours)
    harmless(_summary(request(text)))


def snapshot(text: str, *, running: bool = True) -> Snapshot:
    execution = Execution(
        key=text,
        run_id="r",
        state="RUNNING" if running else "FAILED",
        started_at=datetime.now(UTC),
        closed_at=None,
        stage=text,
        attention=text,
        outcome=text,
        paid=text,
        model=text,
        task_id=text,
        workflow_id=f"video-{text}",
    )
    steps = (PendingStep(name=text, attempt=2, problem=text, next_attempt_at=None),)
    return Snapshot(execution, status_of(text), steps)


@given(texts)
def test_what_watching_shows(text: str) -> None:
    harmless(describe(snapshot(text)))
    harmless(describe(Snapshot(snapshot(text).execution, None, ())))
    console = Console(record=True, width=400, force_terminal=False, file=io.StringIO())
    Lines(console, "key")(describe(snapshot(text)))
    harmless(console.export_text().rstrip("\n"))
    assert all(not getattr(column, "markup", False) for column in live(console).columns)


class _Listing:
    """A session of which the list alone is asked."""

    def __init__(self, text: str) -> None:
        self.client = self
        self._text = text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def generations(self, *_: object, **__: object) -> Any:
        yield snapshot(self._text).execution

    async def snapshot(self, _: str) -> Snapshot:
        return snapshot(self._text)


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("as_json", [False, True])
async def test_the_list_and_the_status_survive_every_row(
    text: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (inspect, session):
        monkeypatch.setattr(module, "open_session", lambda *_, **__: _Listing(text))
    assert await inspect.show_list("", 20, None, as_json=as_json) is Exit.DELIVERED
    shown = capsys.readouterr().out
    harmless(shown, most_lines=100)
    if as_json:
        assert json.loads(shown)[0]["workflow_id"] == f"video-{text}"
    else:
        assert shown.count("\n") < 40, "one row, wrapped at the most"
    assert await inspect.show_status("order-1", None, as_json=as_json) is Exit.DELIVERED
    shown = capsys.readouterr().out
    harmless(shown, most_lines=100)
    assert all(row.startswith(("order-1:", "  ")) for row in shown.splitlines()) or as_json


@given(texts)
def test_what_a_command_complains_of(text: str) -> None:
    details = FailureDetails(advice=text)
    for kind in ("GenerationFailed", "InvalidRequest"):  # as a generation of somebody else ended with it
        harmless(error_text(CommandProblem(Exit.FAILED, kind, text, details)))
    two = (Problem(field=text, rule=text), Problem(field="model", rule=text))
    harmless(error_text(invalid(two)), most_lines=3)


@given(texts)
def test_a_document_in_json_is_the_same_to_a_program(text: str) -> None:
    document = {"a": [text, {text: text}]}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_json(document)
    shown = out.getvalue().rstrip("\n")
    assert json.loads(shown) == document
    harmless(shown, most_lines=8)


@given(texts, st.sampled_from([JsonFormatter(), TextFormatter()]))
def test_a_line_of_the_log_is_one(text: str, formatter: logging.Formatter) -> None:
    record = logging.LogRecord("longtake", logging.INFO, "", 1, "%s", (text,), None)
    record.task_id = record.error = text
    harmless(formatter.format(record))


@pytest.mark.parametrize(
    "name", ["a b", "task\x1b[2J", "task`id`", "$(id)", "../../x", "..", "t" * 256, "ta/sk", "täsk"]
)
def test_what_is_no_id_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(InvalidResponse):
        wire.read_submission({"id": name, "task_id": name}, status=200, request_id=None)
    harmless(wire.read_excerpt(json.dumps({"id": name, "task_id": name}).encode()))
    assert wire.read_request_id({"x-id": name}, "x-id") is None


def test_ids_as_gateways_write_them_are_taken() -> None:
    for name in ("task_5f2c", "video_68d7512d07848190b3e4", "0190a1b2-7c3d", "ns:task.1", "t" * 255):
        assert wire.read_submission({"id": name}, status=200, request_id=None) == name
