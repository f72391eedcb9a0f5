"""Tables in the documents that are made from the code: `python -m docs.generate --check`, or `--write`.

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in the README or a page of this folder. Reasons of
timeouts are the comments and docstrings that stand beside them in the code, so a timeout without one is an error here.
"""
# ruff: noqa: INP001 - this folder is for texts, and this its only program

import argparse
import ast
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from temporalio.common import RetryPolicy

from activities.failures import RULES, Rule
from docs import cli_reference
from longtake.gateway.errors import GatewayError
from longtake.models import GenerationPolicy
from longtake.observability.metrics import METRICS
from longtake.request.rules import MODELS
from longtake.settings import PREFIX, Settings
from longtake.submission.ledger import SubmissionInDoubt
from workflows import options

ROOT = Path(__file__).parents[1]

STEPS: Mapping[str, options.Options] = {
    "PREPARE": options.PREPARE,
    "submission": options.submission(GenerationPolicy()),
    "API_KEY": options.API_KEY,
    "RECORD": options.RECORD,
    "closing": options.closing(GenerationPolicy().submit_timeout + options.LEDGER_MARGIN),
    "reconciliation": options.reconciliation(GenerationPolicy()),
    "SETTLE": options.SETTLE,
    "POLL": options.POLL,
    "REFUND": options.REFUND,
    "delivery": options.delivery(GenerationPolicy().delivery_window),
}
"""What `workflows/options.py` holds, under its names there, in the order of a generation, with the default policy."""

ACTIVITIES: Mapping[str, tuple[str, ...]] = {
    "PREPARE": ("prepare_generation",),
    "submission": ("submit_generation", "submit_extension"),
    "API_KEY": ("await_api_key",),
    "RECORD": ("record_submission",),
    "closing": ("close_submission",),
    "reconciliation": ("reconcile_submission",),
    "SETTLE": ("resolve_submission",),
    "POLL": ("query_generation",),
    "REFUND": ("query_generation",),
    "delivery": ("deliver_video",),
}
"""Which activities run under them; a test holds it against the workflow."""

LIMITS: tuple[tuple[str, str, str], ...] = (
    # Module, name, and a reason where the code's own is not beside it.
    ("longtake.gateway.client", "_CONNECT_SECONDS", ""),
    ("longtake.gateway.client", "_REACH_SECONDS", ""),
    ("longtake.gateway.wire", "MAX_RETRY_AFTER", ""),
    ("longtake.gateway.preflight", "GOOD_FOR_SECONDS", ""),
    ("longtake.gateway.breaker", "TRIAL_PAUSE", ""),
    ("longtake.gateway.breaker", "MAX_TRIAL_PAUSE", ""),
    ("longtake.submission.ledger", "MARGIN", ""),
    ("longtake.submission.ledger", "_MAX_APPROACH_SECONDS", ""),
    ("longtake.submission.ledger", "_STALE_AFTER_SECONDS", ""),
    (
        "longtake.submission.ledger",
        "POLL_AGAIN",
        "A submission in doubt is looked at this often until its window is over.",
    ),
    ("longtake.submission.charges", "CLOCK_SKEW", ""),
    ("longtake.submission.charges", "LATE_ACCEPTANCE", ""),
    ("workflows.steps.resolve", "CONFIRM_NOT_CHARGED", ""),
    ("longtake.submission.ledger", "_RESPONSE_SECONDS", ""),
    ("longtake.submission.reconciliation", "REPORTING_DELAY", ""),
    ("longtake.submission.reconciliation", "LATEST_TASK", ""),
    (
        "longtake.submission.reconciliation",
        "_SOON",
        "While a task may still show, or another submission's outcome may still come.",
    ),
    (
        "longtake.submission.reconciliation",
        "_CONTRADICTED",
        "A list that contradicts itself is asked again after this.",
    ),
    ("longtake.gateway.account", "LOG_CALLS_WINDOW", "Field notes: the log may be asked 20 times in 20 minutes."),
    ("longtake.gateway.account", "LIST_CALLS_WINDOW", "The list is asked 60 times in it at most."),
    ("activities.clocks", "TOLERATED", "Of a worker's clock: beyond it the worker warns in its log."),
    (
        "longtake.submission.charges",
        "_UNTIL_THE_NEXT_CHARGE",
        "Until the log shows a charge later than a submission in doubt, it says nothing of it: asked again after this.",
    ),
    ("longtake.gateway.account", "CLOSED_FOR", ""),
    ("longtake.gateway.account", "_AFTER_TROUBLE", "A witness that failed is asked again after this."),
    ("longtake.gateway.account", "_AFTER_429", "A log that asked for patience and did not say how long."),
    ("longtake.gateway.account", "_LIST_AFTER_429", "The same of the list."),
    ("workflows.steps.resolve", "CHECK_ACCOUNT_AGAIN", ""),
    ("workflows.steps.resolve", "_SOONEST", ""),
    ("workflows.steps.resolve", "_AT_ONCE", ""),
    ("longtake.delivery.download", "_TIMEOUT", "Of a download: to connect, and for each silence."),
    ("longtake.delivery.download", "PROGRESS_TIME", ""),
    ("longtake.delivery.download", "STORE_TIME", ""),
    ("activities.delivery", "GONE_AFTER", ""),
    ("workflows.steps.deliver", "EXTRA_CLIP_WINDOW", ""),
    ("workflows.steps.deliver", "QUIET_WINDOW", ""),
    ("longtake.storage", "_CLIENT_OPTIONS", ""),
    ("longtake.storage", "_RETRY_CONFIG", ""),
    ("activities.heartbeats", "INTERVAL", "A fifth of what counts a worker as lost."),
    ("workflows.options", "HEARTBEAT", ""),
    ("workflows.options", "SUBMISSION_MARGIN", ""),
    ("workflows.options", "LEDGER_MARGIN", ""),
    ("longtake.observability.running_generations", "EVERY", ""),
    ("worker", "DRAIN_MARGIN", ""),
    ("worker", "CONNECT_PATIENCE", ""),
    ("worker", "HEARTBEAT_THROTTLE", ""),
    (
        "longtake.client",
        "_QUERY_TIMEOUT",
        "The query `status` needs a worker; without one the server's record is shown.",
    ),
    ("longtake.client", "PATIENCE", ""),
    ("longtake.client", "_UPDATE_TIMEOUT", "Without a worker an update is not taken, and whoever sends it is told."),
)

_REASONS_NOT_BESIDE_THE_CODE = {
    ("RECORD", "start_to_close_timeout"): "One small record into the store.",
}


def _parsed(source: str) -> ast.Module:
    """Parse; once more where CPython 3.11 miscounts its own recursion (gh-106905)."""
    try:
        return ast.parse(source)
    except SystemError:
        return ast.parse(source)


def failures() -> str:
    """Every rule of the taxonomy, one row each."""
    return _table(
        ("step", "cause", "type", "tried again", "when", "paid", "who acts", "what to do"),
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
        ("activity", "timeout", "by default", "why"),
        (
            (_activities(step), f"`{name}`", _spoken(value), _reason_of_option(step, name))
            for step, chosen in STEPS.items()
            for name, value in chosen.items()
            if name.endswith("_timeout")
        ),
    )


def retries() -> str:
    """How each activity is tried again."""
    return _table(
        ("activity", "first pause", "then", "longest pause", "attempts"),
        ((_activities(step), *_policy(chosen["retry_policy"])) for step, chosen in STEPS.items()),
    )


def limits() -> str:
    """The limits inside the steps, and of the worker."""
    return _table(
        ("where", "limit", "value", "why"),
        (
            (
                f"`{module}`",
                f"`{name}`",
                _spoken(getattr(importlib.import_module(module), name)),
                reason or _reason_beside(module, name),
            )
            for module, name, reason in LIMITS
        ),
    )


def settings() -> str:
    """Every variable of the environment."""
    return _table(
        ("variable", "default", "what it is"),
        (
            (f"`{PREFIX}{name.upper()}`", _default(field.default), field.description or _missing(name))
            for name, field in Settings.model_fields.items()
        ),
    )


def models() -> str:
    """The gateway's models and what each accepts."""
    return _table(
        ("model", "what it is", "images"),
        ((f"`{model.name}`", model.title, model.images_rule) for model in MODELS.values()),
    )


def metrics() -> str:
    """Every metric of ours, as Prometheus sees it."""
    return _table(
        ("metric", "type", "labels", "what it is"),
        (
            (f"`{metric.exposed}`", metric.kind, ", ".join(f"`{name}`" for name in metric.labels), metric.help)
            for metric in METRICS
        ),
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "failures": failures,
    "timeouts": timeouts,
    "retries": retries,
    "limits": limits,
    "settings": settings,
    "models": models,
    "metrics": metrics,
    "cli": cli_reference.commands,
    "exit-codes": cli_reference.exit_codes,
}


def renewed(text: str) -> str:
    """A page with its tables made anew; markers of other names are left alone."""

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
    """Check or write; 1 where a page is out of date."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description="Tables made from the code.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    mode.add_argument("--write", action="store_true", help="bring the pages up to date")
    write = parser.parse_args().write
    stale = {page: text for page in pages() if (text := renewed(page.read_text())) != page.read_text()}
    for page, text in stale.items():
        if write:
            page.write_text(text)
        sys.stdout.write(f"{page.relative_to(ROOT)} {'written' if write else 'is out of date: make it --write'}\n")
    return 1 if stale and not write else 0


def _when(rule: Rule) -> str:
    if not rule.retried:
        return ""
    if issubclass(rule.error, SubmissionInDoubt):
        return "every 5 s until the window is over"
    return "`Retry-After`, else by policy" if issubclass(rule.error, GatewayError) else "by policy"


def _activities(step: str) -> str:
    return ", ".join(f"`{name}`" for name in ACTIVITIES[step])


def _policy(policy: RetryPolicy) -> tuple[str, ...]:
    attempts = str(policy.maximum_attempts) if policy.maximum_attempts else "until the time is over"
    longest = _spoken(policy.maximum_interval) if policy.maximum_interval else "100 times the first"
    return _spoken(policy.initial_interval), f"times {policy.backoff_coefficient:g}", longest, attempts


def _default(value: object) -> str:
    if value is None or value == () or isinstance(value, SecretStr) or "Undefined" in type(value).__name__:
        return ""
    return f"`{json.dumps(value)}`" if isinstance(value, bool) else f"`{value}`"


def _spoken(value: Any) -> str:
    """A duration, or something made of durations, as people write it."""
    match value:
        case timedelta():
            said = _seconds(value.total_seconds())
        case float():
            said = _seconds(value)
        case httpx.Timeout():
            said = f"{value.connect} s to connect, {value.read} s of silence"
        case tuple():
            said = ", then ".join(map(_spoken, value))
        case Mapping():
            said = ", ".join(f"{name.replace('_', ' ')} {_spoken(part)}" for name, part in value.items())
        case _:
            said = str(value)
    return said


def _seconds(value: float) -> str:
    for unit, seconds in (("h", 3600), ("min", 60)):
        if value >= 2 * seconds or value == seconds:
            whole, rest = divmod(value, seconds)
            return f"{whole:g} {unit}" + (f" {rest:g} s" if rest else "")
    return f"{value:g} s"


def _reason_of_option(step: str, name: str) -> str:
    """What stands above a keyword in `workflows/options.py`, or beside the constant that it names."""
    lines, tree = _source("workflows.options")
    for node in tree.body:
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if getattr(node, "name", None) != step and step not in names:
            continue
        keyword = next(part for part in ast.walk(node) if isinstance(part, ast.keyword) and part.arg == name)
        above = _comment_above(lines, keyword.lineno)
        if not above and isinstance(keyword.value, ast.Name):
            above = _reason_beside("workflows.options", keyword.value.id)
        return above or _REASONS_NOT_BESIDE_THE_CODE.get((step, name)) or _missing(f"{step}.{name}")
    return _missing(step)


def _reason_beside(module: str, name: str) -> str:
    """The docstring below a constant, the comment behind it, or the one above it."""
    lines, tree = _source(module)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return " ".join(str(after.value.value).split())
        behind = re.search(r" {2}# (.+)$", lines[node.lineno - 1])
        return _sentence(behind[1]) if behind else _comment_above(lines, node.lineno) or _missing(f"{module}.{name}")
    return _missing(f"{module}.{name}")


def _comment_above(lines: list[str], number: int) -> str:
    return " ".join(reversed(list(_comments_upwards(lines, number - 2))))


def _comments_upwards(lines: list[str], index: int) -> Iterator[str]:
    while (line := lines[index].strip()).startswith("# "):
        yield line.removeprefix("# ")
        index -= 1


@cache
def _source(module: str) -> tuple[list[str], ast.Module]:
    path = ROOT / f"{module.replace('.', '/')}.py"
    text = path.read_text()
    return text.splitlines(), _parsed(text)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].removesuffix(".") + "."


def _missing(what: str) -> str:
    raise SystemExit(f"{what} has no reason beside it in the code: write one there")


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = ([str(cell).replace("|", r"\|") for cell in line] for line in lines)
    return (
        "".join("| " + " | ".join(line) + " |\n" for line in cells).replace("| --- ", "|---").replace("--- |", "---|")
    )


if __name__ == "__main__":
    sys.exit(main())
