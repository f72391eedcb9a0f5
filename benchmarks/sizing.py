"""What one generation leaves behind, and what a worker takes: `python -m benchmarks.sizing`.

Real parts, as the tests run them: Temporal's dev server, the simulator, a worker. The simulator's clips are small, and
their generations short, so the figures of docs/operations.md name the looks that they belong to.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from longtake.temporal.connection import connect
from longtake.temporal.names import workflow_id
from tests.end_to_end.processes import API_KEY, SimulatorProcess, Site, environment, request


def resident_mebibytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1024


def objects(folder: Path) -> tuple[int, int]:
    """How many files, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


async def measure(site: Site, generations: int) -> None:
    client = await site.start()
    database = site.store.parent / "temporal" / "temporal.sqlite"
    before, idle = database.stat().st_size, resident_mebibytes(site.worker.pid)
    keys = [f"sizing-{number}" for number in range(generations)]
    for key in keys:
        await client.start(key, request(f"a boat [sim:ok,seconds=150,label={key}]"))
    ends = asyncio.gather(*map(client.result, keys))
    peak = idle
    while not ends.done():
        peak = max(peak, resident_mebibytes(site.worker.pid))
        await asyncio.wait([ends], timeout=0.2)
    temporal = await connect(site.server.address)
    for key, result in list(zip(keys, await ends, strict=True))[:5]:
        described = await temporal.get_workflow_handle(workflow_id(key)).describe()
        size = described.raw_description.workflow_execution_info.history_size_bytes
        print(f"history: {result.polls} looks, {described.history_length} events, {size:,} bytes")
    for name in ("submit", "records", "videos"):
        count, size = objects(site.store / name)
        print(f"store {name}/: {count} objects, {size:,} bytes, for {generations} generations")
    print(f"embedded server's file: {(database.stat().st_size - before) // generations:,} bytes each")
    print(f"worker: {idle} MiB idle, {peak} MiB at most with {generations} at once")


def main() -> None:
    parser = argparse.ArgumentParser(description="What one generation leaves behind, and what a worker takes.")
    parser.add_argument("--generations", type=int, default=12)
    generations = parser.parse_args().generations
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulator = SimulatorProcess(folder / "simulator", folder / "clips")
        site: Site | None = None
        try:
            simulator.wait_until_ready()
            settings = {"LONGTAKE_GATEWAY_URL": simulator.url, "LONGTAKE_GATEWAY_API_KEY": API_KEY}
            site = Site(folder / "site", environment(**settings, LONGTAKE_EXPECTED_SECONDS="5"))
            asyncio.run(measure(site, generations))
        finally:
            if site:
                site.stop()
            simulator.stop()


if __name__ == "__main__":
    main()
