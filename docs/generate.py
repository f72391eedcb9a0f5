"""The generated parts of the documents: `python -m docs.generate --check`, or `--write`.

A generated part stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in the README or a page of this folder;
`TABLES` has a function for each NAME. The reason of a timeout is the comment or docstring beside it in the code.
"""
# ruff: noqa: INP001 - this folder is for texts, and this its only program

import argparse
import ast
import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from pydantic import SecretStr
from temporalio.common import RetryPolicy

from activities.failures import RULES, Rule
from docs import cli_reference
from longtake.gateway.errors import GatewayError
from longtake.models import GenerationPolicy
from longtake.observability.metrics import ACTIVITIES, METRICS
from longtake.request.rules import MODELS
from longtake.settings import PREFIX, Settings, setting_groups
from workflows import options

ROOT = Path(__file__).parents[1]


class Step(NamedTuple):
    """What runs under one entry of `workflows/options.py`."""

    options: options.Options
    activities: Sequence[str]


ARGUMENTS: Mapping[str, timedelta] = {
    "closing": GenerationPolicy().submit_timeout + options.LEDGER_MARGIN,
    "delivery": GenerationPolicy().delivery_window,
}
"""What functions of `workflows/options.py` take that do not take a policy: here, the defaults."""

REASONS: Mapping[str, str] = {
    "workflows.options.RECORD.start_to_close_timeout": "One small record into the store.",
    "longtake.client._QUERY_TIMEOUT": "The query `status` needs a worker; without one, the server's record is shown.",
    "longtake.client._UPDATE_TIMEOUT": "Without a worker nobody accepts an update; the client reports that.",
    "longtake.client._RETRY_SECONDS": "Between two calls to a Temporal that is away.",
    "longtake.delivery.download._RECONNECT_PAUSE_SECONDS": "Between two attempts to resume a broken download.",
    "longtake.delivery.download._TIMEOUT": "Of a download: to connect, and for each silence.",
    "longtake.delivery.download._PREFLIGHT_SECONDS": "For the free request that shows that downloads are possible.",
    "longtake.delivery.download._PREFLIGHT_VALID_SECONDS": "How long its good answer counts.",
    "longtake.delivery.public_network._LOOKUP_SECONDS": "For a DNS lookup.",
    "longtake.gateway.account.LOG_CALLS_WINDOW": "The usage log allows 20 calls in it (field notes).",
    "longtake.gateway.account._AFTER_FAILURE": "Until the next call of a task list or usage log that failed.",
    "longtake.gateway.account._AFTER_429": "The same, of a usage log that answered 429 without `Retry-After`.",
    "longtake.gateway.account._LIST_AFTER_429": "The same, of a task list.",
    "longtake.gateway.poll_schedule._OVERDUE_POLL": "Poll interval of an overdue generation.",
    "longtake.storage._CREATE_PAUSE_SECONDS": "Between two attempts at an atomic create that the store left open.",
    "longtake.submission.charges._UNTIL_THE_NEXT_CHARGE": "Until the usage log shows a later charge, it proves nothing "
    "about a submission in doubt. Checked again after this.",
    "longtake.submission.ledger.POLL_AGAIN": "Poll interval for a submission in doubt, until its window is over.",
    "longtake.submission.ledger._MAX_WINDOW_SECONDS": "A record with a longer window counts as damaged.",
    "longtake.submission.reconciliation._SOON": "Until the next check, while the task may still appear.",
    "longtake.submission.reconciliation._CONTRADICTED": "Until the next check of a task list that contradicts itself.",
    "activities.heartbeats.INTERVAL": "A fifth of `HEARTBEAT`, so that four lost heartbeats do no harm.",
}
"""Reasons that do not stand beside the code. Write new ones there, not here."""

NO_REASON = "**no reason given**"
"""Shown where neither has one; a test then fails."""


def failures() -> str:
    """Every rule of the taxonomy, one row each."""
    return _table(
        "step, cause, type, retried, when, paid, who acts, what to do",
        (
            (
                ", ".join(rule.steps),
                f"`{rule.error.__name__}`" if rule.error is not Exception else "anything else",
                f"`{rule.type}`",
                "yes" if rule.retried else "no",
                _when(rule),
                rule.paid,
                rule.who_acts,
                rule.advice,
            )
            for rule in RULES
        ),
    )


def timeouts() -> str:
    """Every timeout of every activity, with its reason."""
    return _table(
        "activity, option, timeout, default, why",
        (
            (_names(step.activities), f"`{key}`", f"`{name}`", _spoken(value), _reason_of_option(key, name))
            for key, step in steps().items()
            for name, value in step.options.items()
            if name.endswith("_timeout")
        ),
    )


def retries() -> str:
    """The retry policy of each activity."""
    return _table(
        "activity, option, first interval, coefficient, maximum interval, maximum attempts",
        (
            (_names(step.activities), f"`{key}`", *_policy(step.options["retry_policy"]))
            for key, step in steps().items()
        ),
    )


def limits() -> str:
    """Every other duration in the code that something waits for, or that a decision depends on."""
    return _table(
        "where, limit, value, why",
        (
            (f"`{module}`", f"`{name}`", _spoken(value), _reason_beside(module, name))
            for module, name, value in _durations()
        ),
    )


def settings() -> str:
    """Every variable of the environment, a table for each group."""
    return "\n".join(
        f"## {title}\n\n{_table('variable, default, meaning', map(_setting, names))}"
        for title, names in setting_groups().items()
    )


def models() -> str:
    """The gateway's models and what each accepts."""
    return _table(
        "model, what it is, images",
        ((f"`{model.name}`", model.title, model.images_rule) for model in MODELS.values()),
    )


def metrics() -> str:
    """Every metric of ours, as Prometheus sees it."""
    return _table(
        "metric, type, labels, meaning",
        ((f"`{metric.exposed}`", metric.kind, _names(metric.labels), metric.help) for metric in METRICS),
    )


TABLES: Mapping[str, Callable[[], str]] = {
    make.__name__: make for make in (failures, timeouts, retries, limits, settings, models, metrics)
} | {"cli": cli_reference.commands, "exit-codes": cli_reference.exit_codes}


def renewed(text: str) -> str:
    """The page with its tables made anew. Leaves other markers alone."""

    def table(found: re.Match[str]) -> str:
        make = TABLES.get(found["name"])
        return f"{found['begin']}\n{make()}{found['end']}" if make else found[0]

    return re.sub(
        r"(?P<begin><!-- (?P<name>[\w-]+):begin -->)\n.*?(?P<end><!-- (?P=name):end -->)", table, text, flags=re.DOTALL
    )


def pages() -> list[Path]:
    """Every document that may hold a table."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    """Check or write the pages; the exit code is 1 if one is out of date."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description="Tables made from the code.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    mode.add_argument("--write", action="store_true", help="bring the pages up to date")
    write = parser.parse_args().write
    stale = {page: text for page in pages() if (text := renewed(page.read_text())) != page.read_text()}
    for page, text in stale.items():
        if write:
            page.write_text(text)
        done = "written" if write else "is out of date: run python -m docs.generate --write"
        sys.stdout.write(f"{page.relative_to(ROOT)} {done}\n")
    return 1 if stale and not write else 0


def _when(rule: Rule) -> str:
    if not rule.retried:
        return ""
    if rule.type == "SubmissionInDoubt":
        return "every 5 s until the window is over"
    return "`Retry-After`, else by policy" if issubclass(rule.error, GatewayError) else "by policy"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _policy(policy: RetryPolicy) -> tuple[str, ...]:
    attempts = str(policy.maximum_attempts or "until the timeout")
    longest = _spoken(policy.maximum_interval) if policy.maximum_interval else "100 times the first"
    return _spoken(policy.initial_interval), f"{policy.backoff_coefficient:g}", longest, attempts


def _setting(name: str) -> tuple[str, ...]:
    field = Settings.model_fields[name]
    return f"`{PREFIX}{name.upper()}`", _default(field.default), field.description or NO_REASON


def _default(value: object) -> str:
    if value is None or value == () or isinstance(value, SecretStr) or "Undefined" in type(value).__name__:
        return ""
    return f"`{json.dumps(value)}`" if isinstance(value, bool) else f"`{value}`"


def _spoken(value: Any) -> str:
    """A duration, or something made of durations, as people write it."""
    match value:
        case timedelta():
            said = _seconds(value.total_seconds())
        case int() | float():
            said = _seconds(value)
        case httpx.Timeout():
            said = f"{value.connect} s to connect, {value.read} s of silence"
        case tuple():
            said = ", then ".join(map(_spoken, value))
        case Mapping():
            said = ", ".join(
                f"{name.replace('_', ' ')} {part if isinstance(part, int) else _spoken(part)}"
                for name, part in value.items()
            )
        case _:
            said = str(value)
    return said


def _seconds(value: float) -> str:
    for unit, seconds in (("h", 3600), ("min", 60)):
        if value >= 2 * seconds or value == seconds:
            whole, rest = divmod(value, seconds)
            return f"{whole:g} {unit}" + (f" {rest:g} s" if rest else "")
    return f"{value:g} s"


@cache
def steps() -> Mapping[str, Step]:
    """What `workflows/options.py` has, by name, with the activities that the workflow runs under it."""
    running: dict[str, set[str]] = {}
    for module in _modules("workflows/**/*.py"):
        for call in (node for node in ast.walk(_source(module)[1]) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_activity_method"):
                called = {part.attr for part in ast.walk(call.args[0]) if isinstance(part, ast.Attribute)}
                for part in (part for keyword in call.keywords for part in ast.walk(keyword.value)):
                    if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "options":
                        running.setdefault(part.attr, set()).update(called & set(ACTIVITIES))
    return {
        name: Step(value(ARGUMENTS.get(name, GenerationPolicy())) if callable(value) else value, sorted(running[name]))
        for name, value in vars(options).items()
        if name in running
    }


def _modules(*patterns: str) -> Iterator[str]:
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _durations() -> Iterator[tuple[str, str, Any]]:
    """Module, name and value of every module-level constant that is a duration, or is made of durations."""
    for module in _modules("longtake/**/*.py", "activities/*.py", "workflows/**/*.py", "worker.py"):
        for name in (name for node in _source(module)[1].body for name in _assigned(node) if name.isupper()):
            value = getattr(importlib.import_module(module), name)
            if _is_duration(name, value) and not (module == options.__name__ and name in steps()):
                yield module, name, value


def _is_duration(name: str, value: object) -> bool:
    match value:
        case tuple():
            return any(_is_duration(name, part) for part in value)
        case Mapping():
            return any("timeout" in str(key) for key in value)
        case int() | float():
            return (
                name.endswith("_SECONDS")
                and not re.search("SLACK|TOLERANCE", name)
                and value < timedelta(days=30).total_seconds()
            )  # above: points in time
    return isinstance(value, timedelta | httpx.Timeout)


def _assigned(node: ast.stmt) -> list[str]:
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _reason_of_option(step: str, name: str) -> str:
    """The comment above a keyword in `workflows/options.py`, or the reason of the constant that it names."""
    lines, tree = _source("workflows.options")
    node = next(node for node in tree.body if getattr(node, "name", None) == step or step in _assigned(node))
    keyword = next(part for part in ast.walk(node) if isinstance(part, ast.keyword) and part.arg == name)
    reason = _comment_above(lines, keyword.lineno)
    if not reason and isinstance(keyword.value, ast.Name):
        reason = _reason_beside("workflows.options", keyword.value.id)
    return reason or REASONS.get(f"workflows.options.{step}.{name}", NO_REASON)


def _reason_beside(module: str, name: str) -> str:
    """The docstring below a constant, the comment behind it, or the one above it."""
    lines, tree = _source(module)
    at = next(index for index, node in enumerate(tree.body) if name in _assigned(node))
    after = tree.body[at + 1] if at + 1 < len(tree.body) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        return " ".join(str(after.value.value).split())
    line = tree.body[at].lineno
    behind = re.search(r" {2}# (.+)$", lines[line - 1])
    reason = f"{behind[1][0].upper()}{behind[1][1:].removesuffix('.')}." if behind else _comment_above(lines, line)
    return reason or REASONS.get(f"{module}.{name}", NO_REASON)


def _comment_above(lines: list[str], number: int) -> str:
    above = itertools.takewhile(lambda line: line.startswith("# "), (line.strip() for line in lines[number - 2 :: -1]))
    return " ".join(line.removeprefix("# ") for line in reversed(list(above)))


@cache
def _source(module: str) -> tuple[list[str], ast.Module]:
    path = ROOT / module.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    try:
        return text.splitlines(), ast.parse(text)
    except SystemError:  # CPython 3.11 sometimes miscounts its own recursion (gh-106905); the second time is good
        return text.splitlines(), ast.parse(text)


def _table(head: str, rows: Iterable[tuple[object, ...]]) -> str:
    titles = head.split(", ")
    cells = ([str(cell).replace("|", r"\|") for cell in row] for row in (titles, *rows))
    lines = [f"| {' | '.join(line)} |\n" for line in cells]
    return "".join((lines[0], "|---" * len(titles) + "|\n", *lines[1:]))


if __name__ == "__main__":
    sys.exit(main())
