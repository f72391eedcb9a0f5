"""The locks of the embedded server. A script that only listens stands in for Temporal: it starts at once."""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import embedded
from cli.embedded import EmbeddedProblem, EmbeddedServer, embedded_server

# The supervisor outlives the command that starts it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

TEMPORAL = """#!{python}
import socket, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
with socket.create_server(("127.0.0.1", port)):
    time.sleep(100)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    script = tmp_path / "temporal"
    script.write_text(TEMPORAL.format(python=sys.executable))
    script.chmod(0o755)
    yield script
    wait_until_stopped(tmp_path)


def wait_until_stopped(data_dir: Path) -> None:
    """Wait until the server's lock is free: the kernel releases it with the process."""
    with (data_dir / "embedded/server.pid").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def kill_supervisor(server: EmbeddedServer) -> None:
    os.kill(server.supervisor_pid, signal.SIGKILL)
    while Path(f"/proc/{server.supervisor_pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
        time.sleep(0.01)


def test_commands_share_one_server_that_stops_after_the_last(tmp_path: Path, program: Path) -> None:
    with embedded_server(tmp_path, binary=program) as first, embedded_server(tmp_path, binary=program) as second:
        assert first == second
        os.kill(first.server_pid, 0)
    wait_until_stopped(tmp_path)
    assert not (tmp_path / "embedded/server.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_whose_supervisor_was_killed_is_replaced_at_the_same_ports(tmp_path: Path, program: Path) -> None:
    with embedded_server(tmp_path, binary=program) as orphaned:
        kill_supervisor(orphaned)
        with embedded_server(tmp_path, binary=program) as server:
            assert server.server_pid != orphaned.server_pid
            assert (tmp_path / "embedded/server.pid").read_text() == str(server.server_pid)
            assert (server.address, server.ui_url) == (orphaned.address, orphaned.ui_url), (
                "links into the UI stay valid"
            )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_second_server_beside_one_that_nobody_can_identify(tmp_path: Path, program: Path) -> None:
    with embedded_server(tmp_path, binary=program) as unknown:
        kill_supervisor(unknown)
        (tmp_path / "embedded/server.pid").write_text("")
        with pytest.raises(EmbeddedProblem, match=r"temporal\.sqlite"), embedded_server(tmp_path, binary=program):
            pass
        os.kill(unknown.server_pid, signal.SIGKILL)
        with embedded_server(tmp_path, binary=program) as server:
            assert server.server_pid != unknown.server_pid


def test_a_stale_file_is_no_server(tmp_path: Path, program: Path) -> None:
    (tmp_path / "embedded").mkdir()
    stale = {"address": "127.0.0.1:9", "ui_url": "", "supervisor_pid": os.getpid(), "server_pid": os.getpid()}
    (tmp_path / "embedded/server.json").write_text(json.dumps(stale))
    (tmp_path / "embedded/server.pid").write_text(str(os.getpid()))
    with embedded_server(tmp_path, binary=program) as server:
        assert server.address != "127.0.0.1:9"


def test_whoever_deletes_the_folder_waits_for_its_server(tmp_path: Path, program: Path) -> None:
    assert embedded.wait_until_stopped(tmp_path), "there was none"
    with embedded_server(tmp_path, binary=program):
        assert not embedded.wait_until_stopped(tmp_path, seconds=0.2)
    assert embedded.wait_until_stopped(tmp_path)
    assert not (tmp_path / "embedded/server.json").exists()
