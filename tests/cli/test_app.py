"""The command line in process: which arguments reach the command, and what becomes of errors."""

import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import app as cli_app
from cli.commands import act, generate, inspect, recover, setup
from cli.output import EXIT_CODES, CommandProblem, Exit, error_document, next_command
from cli.results import ResultOptions
from cli.session import problem_of
from longtake.client import GenerationFailure, GenerationNotFound, NoWorker
from longtake.models import FailureDetails, Problem
from longtake.request.rules import InvalidRequest
from longtake.settings import SettingsProblem
from longtake.storage import StoreProblem
from longtake.submission.errors import LedgerUnavailable, WrongLedger, WrongSide
from longtake.temporal.connection import TemporalProblem

RUN = CliRunner()
Called = dict[str, Any]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """The arguments that reached the command; no command runs."""
    arguments: Called = {}

    def stand_in(name: str) -> Callable[..., Coroutine[Any, Any, Exit]]:
        async def command(*given: Any, **named: Any) -> Exit:
            arguments.update(name=name, given=given, **named)
            return Exit.DELIVERED

        return command

    for module, names in (
        (act, ("cancel", "poll", "decide")),
        (generate, ("generate", "dry_run")),
        (inspect, ("watch", "show_status", "show_list", "show_paid_without_video")),
        (recover, ("run",)),
        (setup, ("setup",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, stand_in(name))
    monkeypatch.setattr(cli_app, "leave", sys.exit)
    return arguments


def run(*arguments: str) -> None:
    outcome = RUN.invoke(cli_app.app, arguments)
    assert outcome.exit_code == 0, outcome.output


def test_generate(called: Called) -> None:
    flags = ["--model", "m", "--prompt", "p", "--keep-first", "--image", "a.png", "--image", "b.png", "--key", "k"]
    run("generate", *flags, "--no-wait", "--strict", "--json", "--output", "folder", "--data-dir", "data")
    arguments, data_dir = called["given"]
    assert (called["name"], data_dir) == ("generate", Path("data"))
    assert arguments == generate.GenerateArguments(
        flags={"model": "m", "prompt": "p", "keep_first": True},
        images=("a.png", "b.png"),
        key="k",
        wait=False,
        result=ResultOptions(Path("folder"), strict=True, as_json=True),
    )


def test_flags_that_are_not_given_do_not_override_the_file(called: Called) -> None:
    run("generate", "--from-file", "-", "--dry-run")
    assert called["name"] == "dry_run"
    assert called["given"][0] == generate.GenerateArguments(flags={}, from_file="-")


def test_adopt_is_a_generation_with_a_task_id(called: Called) -> None:
    run("adopt", "task_1", "--key", "k", "--on-extend-failed", "fail")
    arguments, _ = called["given"]
    assert (arguments.key, arguments.flags["task_id"], arguments.flags["on_extend_failed"]) == ("k", "task_1", "fail")


@pytest.mark.parametrize(
    ("arguments", "name", "named"),
    [
        (["status", "k", "--json"], "show_status", {"given": ("k", None), "as_json": True}),
        (["watch", "k", "--strict"], "watch", {"given": ("k", None, ResultOptions(strict=True))}),
        (["result", "k"], "watch", {"given": ("k", None, ResultOptions()), "quiet": True}),
        (["list", "--limit", "3"], "show_list", {"given": ("", 3, None), "as_json": False}),
        (
            ["list", "--paid-without-video", "--days", "3"],
            "show_paid_without_video",
            {"given": (3, None), "as_json": False},
        ),
        (["cancel", "k"], "cancel", {"given": ("k", None), "as_json": False}),
        (["poll", "k"], "poll", {"given": ("k", None), "as_json": False}),
        (["decide", "k", "adopt", "t"], "decide", {"given": ("k", ("adopt", "t"), None), "slot": None}),
        (["decide", "k", "abandon", "--slot", "2"], "decide", {"given": ("k", ("abandon", None), None), "slot": 2}),
        (["recover", "--days", "2"], "run", {"yes": False, "ended": False, "days": 2}),
        (["recover", "--ended"], "run", {"yes": False, "ended": True, "days": 7}),
        (["setup", "--new-ledger"], "setup", {"new_ledger": True}),
    ],
)
def test_a_command_gets_its_arguments(called: Called, arguments: list[str], name: str, named: Called) -> None:
    run(*arguments)
    assert called["name"] == name
    assert {key: called[key] for key in named} == named


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["decide", "k"],
        ["adopt", "t"],
        ["list", "--limit", "0"],
        ["list", "--paid-without-video", "VideoPaid = 'yes'"],
        ["recover", "--days", "0"],
        ["poll-now", "k"],
    ],
)
def test_wrong_usage(called: Called, arguments: list[str]) -> None:
    assert RUN.invoke(cli_app.app, arguments).exit_code == Exit.USAGE
    assert called == {}


def test_new_ledger_needs_a_confirmation_where_nobody_can_answer(called: Called) -> None:
    run("setup", "--new-ledger")
    assert not called["confirm"]("Continue?")
    run("setup", "--new-ledger", "--yes")
    assert called["confirm"]("Continue?")


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (SettingsProblem("x"), Exit.USAGE, "InvalidSettings"),
        (GenerationNotFound("x"), Exit.USAGE, "GenerationNotFound"),
        (WrongLedger("x", side=WrongSide.WORKER), Exit.USAGE, "WrongLedger"),
        (LedgerUnavailable("x"), Exit.UNREACHABLE, "LedgerUnavailable"),
        (StoreProblem("x", retryable=False), Exit.UNREACHABLE, "StoreUnavailable"),
        (NoWorker("x"), Exit.UNREACHABLE, "NoWorker"),
        (TemporalProblem("x"), Exit.UNREACHABLE, "TemporalUnreachable"),
        (InvalidRequest((Problem(field="size", rule="x"),)), Exit.USAGE, "InvalidRequest"),
        (GenerationFailure("NotSubmitted", "x", FailureDetails()), Exit.UNREACHABLE, "NotSubmitted"),
        (GenerationFailure("GenerationFailed", "x", FailureDetails()), Exit.FAILED, "GenerationFailed"),
    ],
)
def test_an_expected_error_has_an_exit_code(error: Exception, code: Exit, kind: str) -> None:
    ids = {"key": "k", "run_id": "r"}
    problem = problem_of(error, ids)
    assert problem is not None
    document = error_document(problem)
    assert (problem.code, document["error"]["type"], document["error"]["run_id"], document["key"]) == (
        code,
        kind,
        "r",
        "k",
    )


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem_of(KeyError("x"), {}) is None

    async def defect(*_: object, **__: object) -> Exit:
        raise KeyError("x")

    monkeypatch.setattr(act, "poll", defect)
    assert isinstance(RUN.invoke(cli_app.app, ["poll", "k"]).exception, KeyError)


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_reported_where_it_belongs(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails() -> Exit:
        raise CommandProblem(Exit.FAILED, "GenerationFailed", "two\nlines", FailureDetails(advice="do this"))

    monkeypatch.setattr(cli_app, "leave", sys.exit)
    with pytest.raises(SystemExit) as ended:
        cli_app._run(fails(), as_json=as_json, key="k")
    assert ended.value.code == Exit.FAILED
    out, err = capsys.readouterr()
    if as_json:
        assert (json.loads(out)["error"]["advice"], json.loads(out)["key"], err) == ("do this", "k", "")
    else:
        assert (out, len(err.splitlines()), "do this" in err) == ("", 2, True)


@pytest.mark.parametrize("given", [["--data-dir", "here"], ["--data-dir=here"]])
def test_the_next_command_finds_the_same_folder(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["starter.py", "watch", "k", *given])
    assert next_command("watch", "k") == f"starter.py watch k --data-dir {Path('here').absolute()}"


def test_every_exit_code_has_a_meaning() -> None:
    assert {*EXIT_CODES} == {*Exit}
