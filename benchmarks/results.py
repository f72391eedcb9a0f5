"""Writes what a benchmark measured as JSON: `benchmarks/results/<name>.json`, one file for each benchmark.

A figure is a ratio or a count that means the same on another machine; the seconds it was made of are in the rows.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("temporalio", "httpx", "pydantic", "obstore")


@dataclass(frozen=True)
class Figure:
    """One figure with its goal.

    Attributes:
        figure: What it is, with its unit.
        value: As measured.
        goal: In words, such as "at most 10"; empty: none, it is only shown.
        met: Whether the goal is reached; None without one.
    """

    figure: str
    value: float
    goal: str = ""
    met: bool | None = None


def at_most(figure: str, value: float, limit: float) -> Figure:
    """A figure that should be small."""
    return Figure(figure, value, f"at most {limit:g}", value <= limit)


def at_least(figure: str, value: float, limit: float) -> Figure:
    """A figure that should be large."""
    return Figure(figure, value, f"at least {limit:g}", value >= limit)


def write(
    name: str,
    figures: Sequence[Figure],
    *,
    rows: Mapping[str, Any],
    seed: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """Write the result of one benchmark.

    Args:
        name: Of the benchmark, as in `python -m benchmarks.<name>`.
        figures: What counts.
        rows: Tables by name, as they were measured.
        seed: Of everything that was drawn by chance.
        parameters: What was chosen for this run, such as a shortened form.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
        "seed": seed,
        "parameters": parameters or {},
        "figures": [asdict(figure) for figure in figures],
        "tables": rows,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
