"""What a check of `doctor` gets, and what it reports."""

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from temporalio.client import Client

from longtake.settings import Settings


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but you should look at it."""
    PROBLEM = "problem"
    """It does not work, or will fail when it is needed."""


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: How bad it is.
        message: What the check found.
        advice: How to fix it; empty if there is nothing to do.
        unreachable: Whether Temporal or the gateway cannot be reached: exit code 4.
        check: The name of the check; `run` fills it in.
    """

    level: Level
    message: str
    advice: str = ""
    unreachable: bool = False
    check: str = ""

    def document(self) -> dict[str, Any]:
        """The finding as JSON."""
        return asdict(self) | {"good": self.level is not Level.PROBLEM}


Findings = AsyncIterator[Finding]


def ok(message: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, message)


def warning(message: str, advice: str) -> Finding:
    """It works, but you should look at it."""
    return Finding(Level.WARNING, message, advice)


def problem(message: str, advice: str, *, unreachable: bool = False) -> Finding:
    """It must be fixed."""
    return Finding(Level.PROBLEM, message, advice, unreachable)


@dataclass(frozen=True)
class Site:
    """The installation to check.

    Attributes:
        settings: The environment, with `--data-dir`.
        distributed: Whether a Temporal is configured; otherwise each command uses the embedded one and its own worker.
    """

    settings: Settings
    distributed: bool


@dataclass(frozen=True)
class TemporalSite(Site):
    """The same, with the connection that all checks of Temporal share."""

    client: Client
