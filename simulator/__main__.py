"""`python -m simulator`: runs the simulator as a separate process."""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from simulator.personalities import DOCUMENT, PERSONALITIES
from simulator.server import serve
from simulator.world import SimulatorSettings


def main() -> None:
    """Parse the command line and run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description="A stand-in for the video gateway.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free port")
    parser.add_argument("--cdn-port", type=int, default=0, help="port of the CDN's origin, likewise")
    parser.add_argument("--data-dir", type=Path, required=True, help="where the ledger and the tasks are kept")
    parser.add_argument("--cache-dir", type=Path, help="where rendered clips are kept (default: in the data directory)")
    parser.add_argument("--api-key", required=True, help="the first valid key")
    parser.add_argument("--speed", type=float, default=1.0, help="divides every simulated duration")
    parser.add_argument("--scenario", default="", help="the scenario of prompts without a tag")
    parser.add_argument("--like", default=DOCUMENT, choices=sorted(PERSONALITIES), help="which gateway it is like")
    parser.add_argument(
        "--server-address",
        default="http://localhost:3000",
        help="where newapi-2026-07 believes to be reached: all links of its flat records lead there",
    )
    parser.add_argument("--image-files", choices=("accept", "refuse"), help="images as file parts (as the gateway)")
    parser.add_argument("--remix", action="store_true", help="let /remix work for every task")
    parser.add_argument("--ready-file", type=Path, help="written when ready: a JSON object with url, cdn_url and pid")
    arguments = vars(parser.parse_args())
    ready_file = arguments.pop("ready_file")
    files = arguments.pop("image_files")
    arguments["image_files"] = None if files is None else files == "accept"
    asyncio.run(_run(SimulatorSettings(**arguments, warm=True), ready_file))


async def _run(settings: SimulatorSettings, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    if ready_file:
        ready_file.unlink(missing_ok=True)  # one left by an earlier run would mislead
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(settings) as simulator:
        if ready_file:
            _write(ready_file, {"url": simulator.url, "cdn_url": simulator.cdn_url, "pid": os.getpid()})
        sys.stdout.write(f"simulator ready {simulator.url}\n")
        sys.stdout.flush()
        await stop.wait()
    sys.stdout.flush()
    os._exit(0)  # asyncio.run would wait for a clip that is still being rendered in a thread


def _write(path: Path, content: dict[str, str | int]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(content, file)
    Path(name).replace(path)


main()
