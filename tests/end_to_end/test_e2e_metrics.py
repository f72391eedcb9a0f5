"""Who serves metrics: workers with an address for them, and no other process."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded import EmbeddedServer
from cli.embedded_worker import EmbeddedWorker
from longtake.settings import Settings
from tests.end_to_end.processes import ROOT, DevServer, Starter, environment

pytestmark = pytest.mark.system


@pytest.fixture
def taken() -> Iterator[str]:
    """An address at which something listens already."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_worker_whose_address_is_taken_ends_with_one_clear_error(taken: str) -> None:
    ended = subprocess.run(
        [sys.executable, "worker.py"],
        cwd=ROOT,
        env=environment(LONGTAKE_METRICS_ADDRESS=taken, LONGTAKE_LOG_FORMAT="text"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"LONGTAKE_METRICS_ADDRESS: metrics cannot be served at {taken}" in line
    assert "LONGTAKE_METRICS_ADDRESS" in line


async def test_a_command_serves_nothing(client: Starter, temporal: DevServer, taken: str) -> None:
    assert temporal.address
    listed = await client.but(LONGTAKE_METRICS_ADDRESS=taken)("list", "--json")
    assert listed.code == 0, listed.err


def test_an_embedded_worker_is_not_told_to(taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_METRICS_ADDRESS", taken)
    settings = Settings(data_dir=tmp_path)
    assert settings.metrics_address == taken
    server = EmbeddedServer("127.0.0.1:7233", "http://127.0.0.1:8233", 1, 2)
    for name, value in EmbeddedWorker(settings, server)._environment().items():
        monkeypatch.setenv(name, value)
    assert Settings().metrics_address is None
