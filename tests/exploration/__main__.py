"""Explore everything: `python -m tests.exploration`, `--deeper` for more of everything that can go wrong."""

import argparse
import sys

from tests.exploration.programs import frozen_world
from tests.exploration.scenarios import SCENARIOS, explore
from tests.exploration.search import Limits, Tally, Violation


def main() -> int:
    """Explore each scenario and say what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.exploration", description=__doc__)
    parser.add_argument(
        "--deeper", action="store_true", help="two crashes, two unanswered calls, two jumps of the clock"
    )
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    arguments = parser.parse_args()
    limits = Limits(crashes=2, faults=2, jumps=2, jump_seconds=(10, 3600)) if arguments.deeper else None
    total = Tally()
    with frozen_world():
        for scenario in SCENARIOS:
            if arguments.only not in scenario.name:
                continue
            try:
                tally = explore(scenario, limits=limits)
            except Violation as violation:
                print(f"{scenario.name}: {violation}", flush=True)
                return 1
            print(f"{scenario.name}: {tally}", flush=True)
            total.interleavings += tally.interleavings
            total.states += tally.states
            total.seconds += tally.seconds
    print(f"together {total.interleavings:,} interleavings through {total.states:,} states in {total.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
