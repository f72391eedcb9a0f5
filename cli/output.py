"""Exit codes, and the one place where an error becomes a message and a code."""

import os
import shlex
import sys
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from longtake.display import json_document, line

if TYPE_CHECKING:  # these cost most of the time that --help may take
    from longtake.models import FailureDetails, Problem


class Exit(IntEnum):
    """What the exit code says."""

    DELIVERED = 0
    FAILED = 1
    USAGE = 2
    FALLBACK = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class CommandProblem(Exception):
    """A command ends without what was asked for.

    Attributes:
        code: The exit code.
        kind: The error's type, as it stands in the JSON.
        details: Everything known, or None.
        known: The key and the ids of the generation, as they stand in every JSON document.
        own_lines: Whether the ends of lines in the message are ours, and no foreign text in it holds one.
    """

    def __init__(  # noqa: PLR0913 - each a fact of its own
        self,
        code: Exit,
        kind: str,
        message: str,
        details: "FailureDetails | None" = None,
        known: dict[str, Any] | None = None,
        *,
        own_lines: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.message = message
        self.details = details
        self.known = known or {}
        self.own_lines = own_lines


def invalid(problems: "tuple[Problem, ...]") -> CommandProblem:
    """A request that breaks rules."""
    from longtake.models import FailureDetails, Paid  # noqa: PLC0415

    message = "the request cannot be sent; nothing was paid:\n" + "\n".join(
        line(f"  {problem.field}: {problem.rule}") for problem in problems
    )
    details = FailureDetails(problems=problems, paid=Paid.NO)
    return CommandProblem(Exit.USAGE, "InvalidRequest", message, details, own_lines=True)


def typed(command: str, key: str) -> str:
    """What to type next, with the data folder that this command was given: elsewhere the key is not found."""
    given = sys.argv[1:]
    folder = next((after for word, after in pairwise([*given, ""]) if word == "--data-dir"), "")
    folder = folder or next((word.partition("=")[2] for word in given if word.startswith("--data-dir=")), "")
    if folder:  # what is typed next may be typed in another folder
        folder = str(Path(folder).expanduser().absolute())
    return shlex.join(["starter.py", command, key, *(["--data-dir", folder] if folder else [])])


def print_json(document: object) -> None:
    """Write the one JSON document to standard output."""
    sys.stdout.write(json_document(document) + "\n")


def write(text: object) -> None:
    """Write one line to standard output."""
    sys.stdout.write(line(text) + "\n")


def error_document(problem: CommandProblem, known: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a failure: the ids known stand beside the type and the message."""
    details = problem.details.model_dump(mode="json", exclude_none=True) if problem.details else {}
    details = {name: value for name, value in details.items() if value not in ("", [], ())}
    return {"error": {"type": problem.kind, "message": problem.message, **details, **known}, **known}


def leave(code: int) -> NoReturn:
    """End the process at once: the SDK's native threads abort a short-lived interpreter at exit now and then."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
