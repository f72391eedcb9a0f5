"""How the tests run under `make mutants`: some thousand times, so every second counts.

Nothing here makes them weaker: none of these tests asks what a disk keeps at a power loss, and one that hangs fails.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder that is made there carries this process's number
_DURATIONS = Path("mutmut-stats.json")


def _no_fsync(fd: object) -> None:
    """Only a power loss could tell."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests' files in memory, in a folder of this process: two of them run at once."""
    os.fsync = _no_fsync
    if _MEMORY.is_dir() and not config.option.basetemp:
        config.option.basetemp = str(_MEMORY / f"longtake-mutants-{os.getpid()}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take that folder away: mutmut ends this process without what it would do at its end."""
    if config.option.basetemp:
        shutil.rmtree(config.option.basetemp, ignore_errors=True)


def _with_failures(setup: Callable[[], Any]) -> Callable[[], Any]:
    """A defect in a workflow fails it at once. Else its task would be tried again until the test's patience is over."""
    return lambda: {**setup(), "workflow_failure_exception_types": [Exception]}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the fast ones speak first, since the first that fails ends it."""
    rig: Any = sys.modules.get("tests.workflows.rig")
    if rig is not None:
        rig.workflow_setup = _with_failures(rig.workflow_setup)
    durations = json.loads(_DURATIONS.read_text())["duration_by_test"] if _DURATIONS.exists() else {}
    items.sort(key=lambda item: (durations.get(item.nodeid, 0.0), item.nodeid))
