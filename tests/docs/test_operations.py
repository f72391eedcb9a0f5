"""The runbook: everything that may wake somebody has an entry, and what it tells them to type exists."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from activities.failures import RULES
from cli.doctor.temporal import RUNBOOK, filter_for
from longtake.models import Attention
from longtake.observability.metrics import OUTCOMES
from longtake.temporal.key_ring import PayloadUnreadable
from tests.docs.test_readme import GROUP, ROOT, code_spans, options_of, shell_lines

PAGE = ROOT / RUNBOOK
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules/longtake.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
FAILURES = sorted({rule.type for rule in RULES} | set(OUTCOMES) - {"full", "fallback"} | {PayloadUnreadable.__name__})
"""The last comes from what decrypts, before any rule is asked."""


def entries(page: Path = PAGE) -> dict[str, str]:
    """What stands below each heading of the third level."""
    parts = re.split(r"^(#{2,3}) (.+)$", page.read_text(), flags=re.MULTILINE)
    return {
        name: text.strip()
        for level, name, text in zip(*(parts[at::3] for at in (1, 2, 3)), strict=True)
        if level == "###"
    }


def lacking(names: list[str]) -> list[str]:
    """Those without an entry, or with one that says nothing."""
    return [name for name in names if not entries().get(name)]


def test_every_alert_failure_and_attention_has_an_entry() -> None:
    assert ALERTS
    assert lacking(ALERTS) == []
    assert lacking(FAILURES) == []
    assert lacking(list(Attention)) == []


def test_no_entry_is_of_something_that_does_not_exist() -> None:
    assert set(entries()) == {*ALERTS, *FAILURES, *Attention}


@pytest.mark.parametrize("name", [*Attention, *(failed for failed in OUTCOMES if failed in entries())])
def test_an_entry_about_a_generation_says_what_was_paid(name: str) -> None:
    assert "**" in entries()[name]
    assert re.search(r"\*\*(Paid|Was it paid)[:?]", entries()[name])


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands(program: str) -> list[list[str]]:
    """Every command line of a program in the runbook, without its name."""
    words = [shlex.split(text, comments=True) for text in [*shell_lines(PAGE), *code_spans(PAGE)]]
    return [line[1:] for line in words if line and Path(line[0]).name == program and line[1:]]


def test_every_command_of_ours_is_taken() -> None:
    given = commands("starter.py")
    assert {"doctor", "list", "status", "decide", "adopt", "poll", "generate"} <= {name for name, *_ in given}
    for name, *words in given:
        assert name in GROUP.commands, name
        flags = {word for word in words if word.startswith("--")}
        assert flags <= options_of(name), (name, words)
        with GROUP.commands[name].make_context(name, list(words)):
            pass  # it raises where an argument is missing or too many


def test_every_filter_names_what_can_be_filtered() -> None:
    lists = [words[1:] for words in commands("starter.py") if words[0] == "list"]
    filters = [words[0] for words in lists if words and not words[0].startswith("--")]
    assert filters
    known = {"ExecutionStatus", "VideoAttention", "VideoPaid", "VideoOutcome", "VideoStage"}
    for text in [*filters, *map(filter_for, Attention)]:
        names = set(re.findall(r"\b(\w+) (?:=|IN|IS)", text))
        assert names
        assert names <= known, text


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_type_or_leads_to_an_entry_that_does(name: str) -> None:
    known = {entry.lower().replace("_", "-") for entry in entries()} | {entry.lower() for entry in entries()}
    leads_on = set(re.findall(r"\]\(#([\w-]+)\)", entries()[name])) & known
    assert leads_on or re.search(r"`(starter\.py |python worker\.py|temporal )", entries()[name])
