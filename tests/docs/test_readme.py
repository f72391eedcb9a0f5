"""What the documents say, held against the code they speak of: links, commands, settings, examples."""

import ast
import importlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from cli.app import app
from longtake.request.rules import check_request
from longtake.settings import PREFIX, Settings, variable_names
from longtake.temporal.names import TASK_QUEUE, WORKFLOW_TYPE, workflow_id

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted(
    [
        *(README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
        *(ROOT / "deploy/README.md", ROOT / "simulator/README.md"),
        *(ROOT / "docs").rglob("*.md"),
    ]
)

GROUP: Any = typer.main.get_command(app)
"""The commands, without running any. `Any`: typer brings a click of its own in some versions."""
SHELL = {"sh", "console", "bash"}


class Block(NamedTuple):
    """A fenced block of code."""

    page: Path
    language: str
    text: str


def blocks(*languages: str, pages: list[Path] | None = None) -> list[Block]:
    """Every fenced block in one of these languages, also where it is indented in a list."""
    return [
        Block(page, language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for page in pages or PAGES
        for indent, language, text in re.findall(
            r"^( *)```(\w+)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL
        )
        if language in languages
    ]


def shell_lines(page: Path) -> Iterator[str]:
    """Each command of a page's shell blocks, continued lines joined."""
    for block in blocks(*SHELL, pages=[page]):
        yield from (line.removeprefix("$ ") for line in block.text.replace("\\\n", " ").splitlines() if line.strip())


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def table(text: str) -> list[list[str]]:
    """The cells of every row of Markdown tables, with their heads."""
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


# --- Links ------------------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text())
    return [link for link in found if not re.match(r"https?:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_leads_to_every_document() -> None:
    led_to = {(ROOT / link.partition("#")[0]).resolve() for link in links(README)}
    documents = {page for page in PAGES if page.parent != ROOT / "docs/adr"} - {README}
    assert documents | {ROOT / "docs/adr"} <= led_to


# --- Commands ---------------------------------------------------------------------------------------------------------


def named_commands() -> list[tuple[str, list[str]]]:
    """Every `starter.py …` in a shell block or in inline code, with its page."""
    found = []
    for page in PAGES:
        for text in [*shell_lines(page), *code_spans(page)]:
            words = shlex.split(text, comments=True) if "starter.py" in text else []
            names = [index for index, word in enumerate(words) if Path(word).name == "starter.py"]
            if names and words[names[0] + 1 :]:
                found.append((page.name, words[names[0] + 1 :]))
    return found


def options_of(command: str) -> set[str]:
    return {
        option
        for parameter in GROUP.commands[command].params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }


def test_every_command_and_flag_that_is_named_exists() -> None:
    named = named_commands()
    assert {"generate", "doctor", "setup"} <= {words[0] for _, words in named}
    for page, (command, *words) in named:
        if re.fullmatch(r"[A-Z]+|…", command):  # "starter.py COMMAND"
            continue
        assert command in GROUP.commands, f"{page}: starter.py {command}"
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= options_of(command) | {"--help"}, f"{page}: starter.py {command} {flags}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets
    said = [*shell_lines(page), *code_spans(page)]
    named = {match[1] for text in said if (match := re.match(r"make ([a-z][a-z-]*)", text))}
    assert named <= targets
    if page == README:
        assert {"demo", "test", "setup"} <= named


def test_shell_examples_are_shell() -> None:
    for page in PAGES:
        for block in blocks(*SHELL, pages=[page]):
            told = subprocess.run(["sh", "-n"], input=block.text, text=True, capture_output=True, check=False)
            assert told.returncode == 0, f"{page.name}: {told.stderr}"


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_the_configuration_names_every_setting_and_its_default() -> None:
    rows = {row[0].strip("`"): row[1].strip("`") for row in table((ROOT / "docs/configuration.md").read_text())}
    assert set(variable_names()) <= rows.keys()
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, bool | int | float | str):
            assert json.loads(json.dumps(rows[f"{PREFIX}{name.upper()}"])) == str(field.default).lower(), name


def test_no_document_names_a_setting_that_does_not_exist() -> None:
    named = {(page.name, name) for page in PAGES for name in re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", page.read_text())}
    assert ("README.md", f"{PREFIX}GATEWAY_URL") in named
    assert {name for _, name in named} <= set(variable_names())


# --- Examples ---------------------------------------------------------------------------------------------------------


def test_the_json_example_is_a_good_request() -> None:
    examples = blocks("json", pages=[README])
    assert examples
    for example in examples:
        check_request(json.loads(example.text))


def test_the_plain_start_uses_the_names_that_others_depend_on() -> None:
    starts = [shlex.split(line) for line in shell_lines(README) if "workflow start" in line]
    assert starts
    for words in starts:
        options = dict(pairwise(words))
        assert options["--type"] == WORKFLOW_TYPE
        assert options["--task-queue"] == TASK_QUEUE
        assert options["--workflow-id"] == workflow_id("order-19")


def test_the_python_examples_compile_and_import_what_exists() -> None:
    examples = blocks("python")
    assert any(example.page == README for example in examples)
    for example in examples:
        tree = ast.parse(example.text)
        compile(tree, str(example.page), "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_what_the_find_it_table_names_is_in_the_file_that_it_links() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Find it")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)` in \[[^\]]+\]\(([^)]+)\)", section)
    assert {"RULES"} <= {name for name, _ in named}
    for name, path in named:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), (name, path)
