"""What the checks of `doctor` are given, and what they say."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from temporalio.client import Client

from longtake.settings import Settings


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and somebody should look at it."""
    PROBLEM = "problem"
    """Something does not work, or will not when it is needed."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    level: Level
    what: str
    to_do: str = ""
    unreachable: bool = False
    """Whether Temporal or the gateway cannot be reached: exit code 4."""
    part: str = ""
    """What was checked; its place in the table of checks says it."""

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return asdict(self) | {"good": self.level is not Level.PROBLEM}


def ok(what: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, what)


def warning(what: str, to_do: str) -> Finding:
    """Worth a look."""
    return Finding(Level.WARNING, what, to_do)


def problem(what: str, to_do: str, *, unreachable: bool = False) -> Finding:
    """To be mended."""
    return Finding(Level.PROBLEM, what, to_do, unreachable)


@dataclass(frozen=True)
class Site:
    """What is checked."""

    settings: Settings
    distributed: bool
    """Whether a Temporal is configured; otherwise each command has the embedded one, and a worker of its own."""


@dataclass(frozen=True)
class TemporalSite(Site):
    """The same, with the connection that all checks of Temporal share."""

    client: Client
