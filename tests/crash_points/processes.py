"""Starts attempts as processes, strikes them, and sees how they end."""

import asyncio
import hashlib
import json
import multiprocessing
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from simulator import Simulator
from tests.crash_points.attempt import Attempt, main

# Forked from a process that has all modules loaded: a life then takes as long as the attempt, not as its imports.
PROCESSES = multiprocessing.get_context("forkserver")
_MAX_LIFE_SECONDS = 60
_AT_ONCE = 4


def attempt_of(sim: Simulator, root: Path, key: str, **more: Any) -> Attempt:
    """A first, undisturbed attempt."""
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    console = (sim.settings.access_token, str(sim.settings.user_id))
    attempt = Attempt(sim.url, console, str(root / "store"), key, folder)
    return replace(attempt, **more)


def start(attempt: Attempt) -> ForkServerProcess:
    """Begin an attempt."""
    process = PROCESSES.Process(target=main, args=(attempt,), daemon=True)
    process.start()
    return process


async def end_of(process: ForkServerProcess, attempt: Attempt) -> str | None:
    """How an attempt ended; None where it was killed."""
    await asyncio.to_thread(process.join, _MAX_LIFE_SECONDS)
    assert not process.is_alive(), f"{attempt} hangs"
    # Its exit code is not to be trusted: whoever starts another process asks for it in the same moment.
    if attempt.result.exists():
        return attempt.result.read_text()
    assert attempt.blow == "kill", f"{attempt} died by itself"
    return None


async def run(attempt: Attempt) -> str | None:
    """Make an attempt to its end."""
    return await end_of(start(attempt), attempt)


async def until_stopped(process: ForkServerProcess) -> bool:
    """Wait until it has stopped itself; False where it has ended before."""
    status = Path(f"/proc/{process.pid}/stat")
    while process.is_alive():
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "T":
                return True
        except OSError:
            return False
        await asyncio.sleep(0.01)  # a state of the kernel, which tells nobody
    return False


def _intents(attempt: Attempt) -> list[Path]:
    folder = hashlib.sha256(attempt.key.encode()).hexdigest()[:32]
    return list(Path(attempt.store, "submit", folder).glob("*/intent"))


def intents_of(attempt: Attempt) -> list[dict[str, Any]]:
    """Every record of somebody who was about to send, or who closed, for the key."""
    return [json.loads(path.read_text()) for path in _intents(attempt)]


def let_an_hour_pass(attempt: Attempt) -> None:
    """For the key's records: whoever sent must be over."""
    for path in _intents(attempt):
        record = json.loads(path.read_text())
        record["sent_at"] = (datetime.fromisoformat(record["sent_at"]) - timedelta(hours=1)).isoformat()
        unfinished = path.with_name("aged")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(path)


async def strike_all(strike: Callable[[int], Awaitable[None]], instants: Iterable[int]) -> None:
    """One case for each instant, a few at a time."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(at: int) -> None:
        async with gate:
            await strike(at)

    await asyncio.gather(*map(one, instants))


async def instants_of(attempt: Attempt) -> list[str]:
    """All instants of an undisturbed attempt; the longest of some lives, which differ a little."""
    lives = []
    for number in range(1, 4):
        life = replace(attempt, key=f"{attempt.key}-{number}", number=number)
        end = await run(life)
        assert end, "an undisturbed attempt was killed"
        assert not end.startswith("failed"), end
        lives.append(json.loads(life.instants.read_text()))
    return max(lives, key=len)
