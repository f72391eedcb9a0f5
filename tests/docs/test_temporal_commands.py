"""Every command of Temporal's that a document names, held against the help of the program itself."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from cli.embedded import temporal_binary
from tests.docs.test_readme import PAGES, ROOT, code_spans, shell_lines


def temporal(lines: list[str]) -> list[list[str]]:
    """The command lines of this program, without its name."""
    words = [shlex.split(line, comments=True) for line in lines if "temporal " in line]
    return [line[1:] for line in words if line and Path(line[0]).name == "temporal" and line[1:]]


def subcommand(words: list[str]) -> tuple[str, ...]:
    """What stands before the first flag."""
    flags = [index for index, word in enumerate(words) if word.startswith("-")]
    return tuple(words[: flags[0] if flags else None])


@cache
def told_by(*arguments: str) -> str:
    return subprocess.run([temporal_binary(), *arguments], capture_output=True, text=True, check=True).stdout


def global_flags() -> set[str]:
    """What every command takes."""
    return set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", told_by("options"), re.MULTILINE))


def flags_of(subcommand: tuple[str, ...]) -> dict[str, str]:
    """The flags of a subcommand, with what its help says of each.

    Raises:
        AssertionError: There is no such subcommand: the help is that of the one above.
    """
    told = told_by(*subcommand, "--help")
    assert re.search(rf"^ +temporal {' '.join(subcommand)} \[flags\]$", told, re.MULTILINE), subcommand
    parts = re.split(r"^ +(?:-\w, )?(--[\w-]+)", told[told.index("\nFlags:") :], flags=re.MULTILINE)
    return {flag: re.sub(r"\s+", " ", text) for flag, text in zip(parts[1::2], parts[2::2], strict=True)}


NAMING = [page for page in PAGES if temporal([*shell_lines(page), *code_spans(page)])]


def test_the_documents_that_tell_what_to_type_are_among_these() -> None:
    assert {page.name for page in NAMING} >= {"README.md", "operations.md", "upgrading.md", "encryption.md"}


@pytest.mark.parametrize("page", NAMING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_temporals_is_taken(page: Path) -> None:
    for words in temporal([*shell_lines(page), *code_spans(page)]):
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= flags_of(subcommand(words)).keys() | global_flags(), words
    # What stands in the text may be a name only; what is to be copied must be whole.
    for words in temporal([*shell_lines(page)]):
        required = {flag for flag, text in flags_of(subcommand(words)).items() if "Required." in text}
        assert required <= {word.partition("=")[0] for word in words}, words
