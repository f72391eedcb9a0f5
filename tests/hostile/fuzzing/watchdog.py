"""What an input may cost: 2 s of the event loop at a stretch, and 300 MB."""

import asyncio
import contextlib
import resource
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

MAX_STALL_SECONDS = 2.0
MAX_BYTES = 300 * 10**6

_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


class TooMuch(AssertionError):
    """An input cost more than it may."""


async def limited(work: Awaitable[None]) -> None:
    """Do the work of one input.

    What counts is the time that the loop's own thread computes: another process may take the processor away at any
    moment, and that is no reader's fault.

    Raises:
        TooMuch: It held up the loop, or took too much memory.
    """
    # Between two looks for what has come the loop does nothing but compute.
    selector: Any = vars(asyncio.get_running_loop())["_selector"]
    look = selector.select
    longest, before = 0.0, time.thread_time()

    def select(wait: float | None = None) -> Any:
        nonlocal longest, before
        longest = max(longest, time.thread_time() - before)
        found = look(wait)
        before = time.thread_time()
        return found

    start = _peak(reset=True)
    selector.select = select
    try:
        await work
    finally:
        del selector.select
    longest = max(longest, time.thread_time() - before)
    if longest > MAX_STALL_SECONDS:
        raise TooMuch(f"the event loop stood still for {longest:.1f} s")
    if (grown := _peak() - start) > MAX_BYTES:
        raise TooMuch(f"it took {grown / 1e6:.0f} MB")


def _peak(*, reset: bool = False) -> int:
    """The most memory that this process has held, in bytes; on Linux since the last reset, else since its start."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
