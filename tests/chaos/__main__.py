"""`python -m tests.chaos`: hundreds of generations while everything around them breaks; prints what came of them."""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

from tests.chaos.plan import make_plan
from tests.chaos.report import Report, examine
from tests.chaos.run import Run, Say
from tests.chaos.site import Site
from tests.chaos.stores import BucketStore, FolderStore
from tests.chaos.summary import summary, summary_document

_OVERTIME_SECONDS = 180.0
"""For starting everything and for the examination; after that the run is broken off."""

_SEED_HELP = (
    "one or several, one after the other; a seed repeats the plan: scenarios, models, start times, callers, operators, "
    "kills, outages, clocks, and each proxy's dice. Which connection, activity or workflow task is under way at such "
    "an instant is not repeated: the timing of processes is their own"
)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def chaos(
    *,
    seed: int,
    generations: int,
    seconds: float,
    folder: Path,
    say: Say,
    s3: bool = False,
    same_clocks: bool = False,
) -> Report:
    """Play the plan of a seed and examine what came of it; all its processes are gone when this ends.

    Args:
        seed: See `make_plan`.
        generations: How many.
        seconds: How long it may take until the last one has ended. The hard limit is three minutes more.
        folder: Where everything lies; must exist.
        say: Told what happens meanwhile.
        s3: Whether the store is a bucket behind a faulty network, instead of a folder.
        same_clocks: Whether all workers have the right time.
    """
    plan = make_plan(seed, generations, seconds)
    if same_clocks:
        plan = replace(plan, clock_shifts=(0.0, 0.0))
    site = Site(folder, plan, BucketStore(seed) if s3 else FolderStore(folder / "store"))
    async with asyncio.timeout(seconds + _OVERTIME_SECONDS), site.running():
        run = Run(plan, site, say)
        await run.play()
        say(f"{run.journal.seconds:5.0f} s  {'all have ended' if run.journal.all_ended else 'the time is up'}")
        report = await examine(plan, site, run, folder)
    (folder / "report.txt").write_text(report.text() + "\n")
    (folder / "report.json").write_text(json.dumps(report.document(), indent=1) + "\n")
    return report


async def _one_of(seeds: list[int], seed: int, arguments: argparse.Namespace, folder: Path) -> Report | None:
    """One run of a list; None where it broke off, which must not cost the others."""
    run_folder = folder / f"seed-{seed}"
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir(parents=True)
    _say(f"seed {seed}, {arguments.generations} generations, at most {arguments.seconds:.0f} s, {run_folder}")
    try:
        report = await chaos(
            seed=seed,
            generations=arguments.generations,
            seconds=arguments.seconds,
            folder=run_folder,
            say=_say,
            s3=arguments.s3,
            same_clocks=arguments.same_clocks,
        )
    except Exception:
        if len(seeds) == 1:
            raise
        (run_folder / "broken-off.txt").write_text(traceback.format_exc())
        _say(traceback.format_exc())
        return None
    _say(report.text())
    if report.good and arguments.folder is None:
        # Only what is wrong needs its evidence.
        for path in run_folder.iterdir():
            if not path.name.startswith("report."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        _say(f"\n{'Everything' if report.good else 'NOT as it must be. Everything'} is kept in {run_folder}")
    return report


async def main() -> int:
    """Run as the arguments say.

    Returns:
        0, or 1 where a figure that must be 0 is not, or the run broke off.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--generations", type=int, default=300, metavar="N")
    parser.add_argument("--seconds", type=float, default=330, metavar="S", help="at most, until all have ended (330)")
    parser.add_argument("--seed", "--seeds", type=int, nargs="+", dest="seeds", metavar="SEED", help=_SEED_HELP)
    parser.add_argument("--folder", type=Path, help="where to keep everything (a temporary folder, kept on failure)")
    parser.add_argument("--s3", action="store_true", help="the store is a bucket behind a faulty network")
    parser.add_argument("--same-clocks", action="store_true", help="no worker's clock is wrong, to tell causes apart")
    arguments = parser.parse_args()
    seeds: list[int] = arguments.seeds or [random.SystemRandom().randrange(10**6)]
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="longtake-chaos-"))
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    reports = {seed: await _one_of(seeds, seed, arguments, folder) for seed in dict.fromkeys(seeds)}
    (folder / "summary.json").write_text(json.dumps(summary_document(reports), indent=1) + "\n")
    if len(reports) > 1:
        _say(f"\n{summary(reports)}\n\nAs JSON: {folder / 'summary.json'}")
    return 0 if all(report and report.good for report in reports.values()) else 1


if __name__ == "__main__":
    code = 1
    try:
        code = asyncio.run(main())
    except asyncio.CancelledError:
        _say("stopped")
    # The SDK's native threads abort a short-lived interpreter at exit now and then (sdk-python issue 300).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
