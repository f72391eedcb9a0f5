"""The short form of `make chaos`: the same parts, kills and checks, without the scenarios that take minutes."""

from pathlib import Path

import pytest

from tests.chaos.__main__ import chaos

SEED = 2026


@pytest.mark.timeout(180)  # a run has its own, harder limit
async def test_chaos_in_short(tmp_path: Path) -> None:
    said: list[str] = []
    report = await chaos(seed=SEED, generations=16, seconds=65, folder=tmp_path, say=said.append)
    assert report.good, "\n".join([*said, report.text()])
