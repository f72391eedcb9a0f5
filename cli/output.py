"""What every command prints, and its exit codes. Light to import, because `--help` imports it."""

import os
import shlex
import sys
from datetime import UTC, datetime
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from longtake.display import json_document, line, lines

if TYPE_CHECKING:  # these cost most of the time that --help may take
    from longtake.models import FailureDetails, Problem


class Exit(IntEnum):
    """The exit codes; `EXIT_CODES` says what each means."""

    DELIVERED = 0
    FAILED = 1
    USAGE = 2
    FALLBACK = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


EXIT_CODES = {
    Exit.DELIVERED: "success: the video is delivered, or the command did what it was asked",
    Exit.FAILED: "the generation failed, or `doctor` found a problem",
    Exit.USAGE: "bad usage, invalid request or invalid settings (the API key too), or `--output` could not be written",
    Exit.FALLBACK: "with `--strict`: only the 8 s clip is delivered",
    Exit.UNREACHABLE: "Temporal or the gateway cannot be reached",
    Exit.INTERRUPTED: "interrupted, by Ctrl-C or SIGTERM; the generation goes on",
}
_MULTILINE_KINDS = frozenset({"InvalidSettings", "Usage"})
"""Errors about what the user typed or set: their line ends are ours."""


class CommandProblem(Exception):
    """Why a command did not do what it was asked.

    Attributes:
        code: The exit code.
        kind: The error's type, as the JSON document names it.
        details: What is known about the failure, if anything.
        ids: The generation's key, workflow id and run id, as far as they are known.
        multiline: Whether the line ends in the message are ours; otherwise they are escaped.
    """

    def __init__(
        self,
        code: Exit,
        kind: str,
        message: str,
        details: "FailureDetails | None" = None,
        ids: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.message = message
        self.details = details
        self.ids = ids or {}
        self.multiline = kind in _MULTILINE_KINDS


def invalid(problems: "tuple[Problem, ...]") -> CommandProblem:
    """The request breaks these rules."""
    from longtake.models import FailureDetails, Paid  # noqa: PLC0415 - `--help` does without it

    message = "the request is invalid; nothing was paid:\n" + "\n".join(
        line(f"  {problem.field}: {problem.rule}") for problem in problems
    )
    problem = CommandProblem(Exit.USAGE, "InvalidRequest", message, FailureDetails(problems=problems, paid=Paid.NO))
    problem.multiline = True
    return problem


def interrupted(key: str | None, *, found: bool) -> CommandProblem:
    """Ctrl-C or SIGTERM; `found` says whether the command knows that the generation exists."""
    if key and found:
        message = f"stopped waiting; continue with: {next_command('watch', key)}"
    elif key:
        message = f"stopped; see whether {key} was started: {next_command('status', key)}"
    else:
        message = "stopped"
    return CommandProblem(Exit.INTERRUPTED, "Interrupted", message, ids={"key": key} if key else None)


def next_command(command: str, key: str) -> str:
    """A command to copy, with the `--data-dir` of this one: another folder does not know the key."""
    given = sys.argv[1:]
    folder = next((after for word, after in pairwise([*given, ""]) if word == "--data-dir"), "")
    folder = folder or next((word.partition("=")[2] for word in given if word.startswith("--data-dir=")), "")
    if folder:  # absolute, because the user may type the next command in another folder
        folder = str(Path(folder).expanduser().absolute())
    return shlex.join(["starter.py", command, key, *(["--data-dir", folder] if folder else [])])


def print_json(document: object) -> None:
    """Write the one JSON document to standard output."""
    sys.stdout.write(json_document(document) + "\n")


def write(text: object) -> None:
    """Write one line of the result to standard output."""
    sys.stdout.write(line(text) + "\n")


def say(text: object) -> None:
    """Write one line for people, with the time (UTC), to standard error."""
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {line(text)}\n")


def complain(problem: CommandProblem, *, as_json: bool) -> None:
    """Report why the command failed: as JSON to standard output, or as text to standard error."""
    if as_json:
        print_json(error_document(problem))
        return
    advice = problem.details.advice if problem.details else ""
    sys.stderr.write(error_text(problem) + "\n" + (f"{line(advice)}\n" if advice else ""))


def error_text(problem: CommandProblem) -> str:
    """The error for people; line ends that are not ours are escaped."""
    return f"{problem.kind}: {lines(problem.message) if problem.multiline else line(problem.message)}"


def error_document(problem: CommandProblem) -> dict[str, Any]:
    """The error as JSON: type, message, details, and the known ids both inside and beside it."""
    details = problem.details.model_dump(mode="json", exclude_none=True) if problem.details else {}
    details = {name: value for name, value in details.items() if value not in ("", [], ())}
    return {"error": {"type": problem.kind, "message": problem.message, **details, **problem.ids}, **problem.ids}


def leave(code: int) -> NoReturn:
    """End the process at once: the SDK's native threads sometimes abort a short-lived interpreter at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
