"""The services of docker-compose.yml as Compose reads them, and what it takes to run their commands on this machine."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BARE = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}


def compose(*arguments: str, env_file: str = ".env.example", **environment: str) -> subprocess.CompletedProcess[str]:
    """Ask Compose what it makes of the file."""
    return subprocess.run(
        [BIN / "docker-compose", "--env-file", env_file, "--profile", "*", "config", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=BARE | environment,
    )


def read_services() -> dict[str, Any]:
    """The services with the values of `.env.example` filled in."""
    told = compose("--format", "json")
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
