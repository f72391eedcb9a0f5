"""The generated parts of the documents, and the page on failures, against the code."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate
from longtake.models import Attention, Paid
from longtake.observability.metrics import ACTIVITIES
from workflows import failures, options

ROOT = Path(__file__).parents[2]
FAILURES = (ROOT / "docs/failures.md").read_text()


def test_a_page_that_is_out_of_date_is_named_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- models:begin -->\nold\n<!-- models:end -->\n")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda: [page])
    for flag, code, said in (("--check", 1, "out of date"), ("--write", 0, "written"), ("--check", 0, "")):
        monkeypatch.setattr(sys, "argv", ["generate", flag])
        assert generate.main() == code
        assert said in capsys.readouterr().out
    assert "veo_3_1-remix" in page.read_text()


def test_a_table_that_is_out_of_date_is_seen_and_others_are_left_alone() -> None:
    page = "<!-- models:begin -->\nold\n<!-- models:end -->\n<!-- mine:begin -->\nkept\n<!-- mine:end -->\n"
    made = generate.renewed(page)
    assert "veo_3_1-fl-hd" not in made
    assert "| `veo_3_1-hd-fl-remix` |" in made
    assert "old" not in made
    assert "kept" in made
    assert generate.renewed(made) == made


def test_every_table_is_on_one_page() -> None:
    text = "".join(page.read_text() for page in generate.pages())
    assert {text.count(f"<!-- {name}:begin -->") for name in generate.TABLES} == {1}


# --- Timeouts ---------------------------------------------------------------------------------------------------------


def _sources(*patterns: str) -> Iterator[tuple[str, ast.Module]]:
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield module, ast.parse(path.read_text())


def test_every_option_of_the_workflow_is_in_the_table_with_its_activities() -> None:
    chosen = {name for name, value in vars(options).items() if isinstance(value, dict) and name.isupper()}
    chosen |= {
        name for name, one in inspect.getmembers(options, inspect.isfunction) if one.__module__ == options.__name__
    }
    assert set(generate.steps()) == chosen
    assert {name for step in generate.steps().values() for name in step.activities} == set(ACTIVITIES)


def test_every_timeout_has_a_reason() -> None:
    for make in (generate.timeouts, generate.limits):
        assert [row for row in make().splitlines() if generate.NO_REASON in row] == []


def test_what_nobody_explained_is_shown_as_such() -> None:
    assert generate._reason_beside("longtake.gateway.client", "_TOP_UP") == generate.NO_REASON


# --- Failures ---------------------------------------------------------------------------------------------------------


def _kinds_of_endings() -> set[str]:
    """What the workflow ends with: the literal types, and those that it hands on from an activity."""
    kinds = {
        call.args[0].value
        for _, tree in _sources("workflows/**/*.py")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "StepFailed"
        and isinstance(call.args[0], ast.Constant)
    }
    refusals = importlib.import_module("workflows.steps.resolve").REFUSALS
    return {str(kind) for kind in kinds} | set(refusals) | {"NotSubmitted"}


def test_every_type_that_a_generation_ends_with_is_explained() -> None:
    section = FAILURES.partition("## How a generation ends")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == _kinds_of_endings()


def test_the_benign_ones_are_named() -> None:
    sentence = re.search(r"^(`InvalidRequest`.*?) are marked \*benign\*", FAILURES, re.MULTILINE | re.DOTALL)
    assert sentence
    assert set(re.findall(r"`(\w+)`", sentence[1])) == failures.BENIGN


def test_everything_that_attention_can_say_is_named() -> None:
    assert {name for name in re.findall(r"`(\w+)`", FAILURES) if name in set(Attention)} == set(Attention)
    assert {name for name in re.findall(r"`(\w+)`", FAILURES) if name in set(Paid)} == set(Paid)
