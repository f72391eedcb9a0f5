"""The worker beside a command, killed before it polls. A shell script stands in for it: that instant is too short."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from cli.embedded import EmbeddedServer
from cli.embedded_worker import EmbeddedWorker
from cli.output import CommandProblem
from longtake.settings import Settings

WORKER = """#!/bin/sh
lives="{folder}/lives"
echo life >> "$lives"
[ "$(wc -l < "$lives")" -gt {kills} ] || kill -9 $$
echo ready > "$3"
exec sleep 60
"""


def embedded_worker(folder: Path, monkeypatch: pytest.MonkeyPatch, kills: int) -> EmbeddedWorker:
    script = folder / "worker.sh"
    script.write_text(WORKER.format(folder=folder, kills=kills))
    script.chmod(0o755)
    monkeypatch.setattr("cli.embedded_worker.sys.executable", str(script))
    (folder / "embedded").mkdir()
    settings = Settings(data_dir=folder, gateway_url="http://127.0.0.1:9", gateway_api_key=(SecretStr("sk-test"),))
    return EmbeddedWorker(settings, EmbeddedServer("127.0.0.1:9", "http://127.0.0.1:9", 1, 2))


async def test_a_worker_killed_while_it_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with embedded_worker(tmp_path, monkeypatch, kills=2) as worker:
        assert worker.pid
    assert worker._process
    worker._process.wait(30)  # a command does not wait for it, a test leaves nothing behind
    assert (tmp_path / "lives").read_text().count("life") == 3
    assert capsys.readouterr().err.count("killed while it started; starting another") == 2


async def test_a_worker_that_is_always_killed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandProblem, match="killed 3 times while it started"):
        async with embedded_worker(tmp_path, monkeypatch, kills=99):
            pass
    assert (tmp_path / "lives").read_text().count("life") == 3
