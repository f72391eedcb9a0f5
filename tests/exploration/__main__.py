"""Explore everything: `python -m tests.exploration`, `--deeper` for more of everything that can go wrong."""

import argparse
import sys

from tests.exploration.programs import frozen_world
from tests.exploration.scenarios import SCENARIOS, explore
from tests.exploration.search import Tally, Violation


def main() -> int:
    """Explore each scenario and say what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.exploration", description=__doc__)
    parser.add_argument(
        "--deeper",
        action="store_true",
        help="two crashes, an unanswered call, two jumps of the clock, and frozen anywhere: hours",
    )
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    arguments = parser.parse_args()
    total = Tally()
    with frozen_world():
        for scenario in SCENARIOS:
            if arguments.only not in scenario.name:
                continue
            try:
                tally = explore(scenario.deeper() if arguments.deeper else scenario)
            except Violation as violation:
                print(f"{scenario.name}: {violation}", flush=True)  # noqa: T201 - a command
                return 1
            print(f"{scenario.name}: {tally}", flush=True)  # noqa: T201 - a command
            total += tally
    print(f"together: {total}")  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
