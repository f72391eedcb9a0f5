"""The services of docker-compose.yml as Compose reads them, and what it takes to run their commands on this machine."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BARE = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}


SIMULATOR = "deploy/simulator.env"


def compose(
    *arguments: str, env_files: Sequence[str] = (".env.example",), profile: str | None = "*", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Ask Compose what it makes of the file; without a profile, of what the files themselves switch on."""
    files = [word for file in env_files for word in ("--env-file", file)]
    profiles = ["--profile", profile] if profile else []
    return subprocess.run(
        [BIN / "docker-compose", *files, *profiles, "config", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=BARE | environment,
    )


def read_services() -> dict[str, Any]:
    """The services with the values of `.env.example` filled in, and those of the simulator."""
    told = compose("--format", "json", env_files=[".env.example", SIMULATOR])
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)["services"]
    return found


async def ended(process: asyncio.subprocess.Process) -> int:
    """Stop a process that a test has started."""
    if process.returncode is None:
        process.terminate()
    try:
        return await asyncio.wait_for(process.wait(), 30)
    except TimeoutError:
        process.kill()
        return await process.wait()
