"""Every instant of a delivery, struck one by one: the clip always comes home whole, and half of it is never seen."""

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from simulator import Simulator
from tests.crash_points.attempt import Attempt
from tests.crash_points.instants import Blow
from tests.crash_points.processes import attempt_of, end_of, instants_of, run, start, strike_all, until_stopped

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]


@pytest.mark.parametrize("blow", ["kill", "stop", "cut"])
async def test_no_instant_of_a_delivery_loses_the_clip_or_shows_half_of_it(
    sim: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str], blow: Blow
) -> None:
    # In a store of its own: to the ledger of the others the task is nobody's, so that each of them may have it.
    submitted = await run(attempt_of(sim, tmp_path, "paid", store=str(tmp_path / "another store")))
    assert submitted
    task_id = submitted.split()[1]
    delivered = await run(attempt_of(sim, tmp_path, "whole", task_id=task_id))
    assert delivered
    instants = await instants_of(attempt_of(sim, tmp_path, "undisturbed", task_id=task_id))
    wrong: list[str] = []

    def half_files(attempt: Attempt) -> list[str]:
        clips = Path(attempt.store, "videos", attempt.key).glob("*.mp4")
        return [clip.name for clip in clips if f"delivered {_sha256(clip)}" != delivered]

    async def strike(at: int) -> None:
        first = attempt_of(sim, tmp_path, f"{blow}-{at}", task_id=task_id, blow=blow, at=at)
        process = start(first)
        second = replace(first, blow="none", at=0, number=2, heartbeat_of=1)
        if blow == "stop":
            is_stopped = await until_stopped(process)
            half = half_files(first)
            end = await run(second)
            if is_stopped and process.pid:
                os.kill(process.pid, signal.SIGCONT)
            await end_of(process, first)
        else:
            await end_of(process, first)
            half = half_files(first)
            end = await run(second)
        later = await run(replace(second, number=3))
        half += half_files(first)
        if half or end != delivered or later != delivered:
            wrong.append(f"{instants[at - 1]}: {end}, then {later}; visible and not whole: {half}")

    chosen = list(_coarse(instants))
    await strike_all(strike, chosen)
    with capsys.disabled():
        print(f"\ndelivery, {blow}: {len(chosen)} of {len(instants)} instants")  # noqa: T201 - the figures count
    assert not wrong, "\n".join(wrong)


def _coarse(instants: list[str]) -> Iterator[int]:
    """All instants but those between the pieces of one stream, of which every eighth."""
    alike = 0
    for at, where in enumerate(instants, 1):
        alike = alike + 1 if "put_stream" in where else 0
        if alike % 8 in {0, 1}:
            yield at


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
