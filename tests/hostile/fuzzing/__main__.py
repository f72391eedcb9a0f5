"""Coverage-guided fuzzing of every reader, one after the other: `make fuzz`. Needs `atheris` (the extra `fuzz`).

Each target runs in a process of its own, by libFuzzer, which mutates the corpus and keeps what reaches new code. An
input that breaks a rule is kept as a file; put it into `tests/hostile/corpus/<target>/` with the fix.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_CORPUS = Path(__file__).parents[1] / "corpus"
_TARGETS = sorted(path.name for path in _CORPUS.iterdir())
_HANG_SECONDS = 60
"""On the clock, for an input that never returns; what holds up the loop for less is the watchdog's to find."""
_MAX_INPUT_BYTES = 16_384


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="for all targets together")
    parser.add_argument("--only", nargs="+", choices=_TARGETS, default=_TARGETS, metavar="TARGET")
    parser.add_argument("--work", type=Path, default=Path(".fuzz"), help="where found inputs are kept")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--run", choices=_TARGETS, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.list:
        print(*_TARGETS, sep="\n")
        return 0
    if find_spec("atheris") is None:
        parser.exit(2, "atheris is not installed: `make fuzz` installs it, or pip install 'longtake[fuzz]'\n")
    if options.run:
        _fuzz(options.run, rest)
    return _fuzz_all(options.only, options.work, options.minutes * 60)


def _fuzz_all(targets: Sequence[str], work: Path, seconds: float) -> int:
    began = time.monotonic()
    rows: list[tuple[str, int, str]] = []
    for number, target in enumerate(targets):
        left = seconds - (time.monotonic() - began)
        share = max(1, round(left / (len(targets) - number)))
        inputs, found = _one(target, work, share)
        rows.append((target, inputs, found))
        print(f"{target:12} {inputs:>10,} inputs in {share:>4} s  {found or 'clean'}", flush=True)
    faulty = sum(bool(row[2]) for row in rows)
    took = (time.monotonic() - began) / 60
    print(f"{sum(row[1] for row in rows):,} inputs in {took:.1f} min; {faulty} of {len(rows)} targets found something")
    return 1 if faulty else 0


def _one(target: str, work: Path, seconds: int) -> tuple[int, str]:
    """How many inputs a target saw, and the first that broke a rule."""
    kept, broken = work / "corpus" / target, work / "found"
    kept.mkdir(parents=True, exist_ok=True)
    broken.mkdir(parents=True, exist_ok=True)
    log = work / f"{target}.log"
    with log.open("wb") as output:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "tests.hostile.fuzzing", "--run", target),
                *(f"-max_total_time={seconds}", f"-timeout={_HANG_SECONDS}", "-rss_limit_mb=0"),
                *(f"-max_len={_MAX_INPUT_BYTES}", f"-artifact_prefix={broken}/{target}-", "-print_final_stats=1"),
                *(str(kept), str(_CORPUS / target)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    text = log.read_text(errors="replace")
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", text) or re.findall(r"^#(\d+)", text, re.MULTILINE)
    inputs = int(executed[-1]) if executed else 0
    if ended.returncode == 0:
        return inputs, ""
    file = re.search(r"Test unit written to (\S+)", text)
    return inputs, f"FOUND {file[1] if file else 'no input'}, see {log}"


def _fuzz(target: str, options: list[str]) -> None:
    import atheris  # noqa: PLC0415 - an extra of its own

    with atheris.instrument_imports(include=["longtake"]):
        import pytest  # noqa: PLC0415 - after what is to be watched is being watched

        from tests.hostile.fuzzing.targets import Readers  # noqa: PLC0415 - the same
        from tests.hostile.fuzzing.watchdog import limited  # noqa: PLC0415 - the same

    loop = asyncio.new_event_loop()
    run = Readers(pytest.MonkeyPatch()).targets[target]

    def one(data: bytes) -> None:
        loop.run_until_complete(limited(run(data)))

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
