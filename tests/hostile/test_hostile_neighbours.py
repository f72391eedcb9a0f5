"""What neighbours of the installation could reach or read: on its network, on its disk, in its collector."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

import worker
from cli.embedded import EmbeddedServer, temporal_binary, ui_origins
from longtake.storage import Store
from longtake.temporal.connection import TemporalProblem
from tests.end_to_end.processes import ROOT

KEY = "sk-neighbour-0123456789"


@pytest.mark.parametrize(("url", "warned"), [("https://8.8.8.8", True), ("http://127.0.0.1:1", False)])
async def test_a_worker_warns_of_private_addresses_beside_a_public_gateway(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], url: str, *, warned: bool
) -> None:
    async def not_there(_: str | None) -> None:
        raise TemporalProblem("it is not there")

    monkeypatch.setattr(worker, "_connect_patiently", not_there)
    for name, value in {"GATEWAY_URL": url, "GATEWAY_API_KEY": KEY, "ALLOW_PRIVATE_ADDRESSES": "true"}.items():
        monkeypatch.setenv(f"LONGTAKE_{name}", value)
    assert await worker.main(None, stop_with_parent=None, exit_when_idle=False) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "LONGTAKE_ALLOW_PRIVATE_ADDRESSES" in line]
    assert len(said) == warned


# --- The embedded server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as an earlier version left it: everybody can read it."""
    folder = tmp_path_factory.mktemp("data")
    for path in (folder / "embedded", folder / "store"):
        path.mkdir()
        path.chmod(0o755)
    return folder


_COMMAND = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from cli.embedded import EmbeddedProblem, embedded_server
folder, binary, sha256 = sys.argv[1], *(sys.argv[2:] or [None, None])
try:
    with embedded_server(Path(folder), binary=binary and Path(binary), sha256=sha256) as server:
        print(json.dumps(asdict(server)), flush=True)
        sys.stdin.read()
except EmbeddedProblem as problem:
    sys.exit(str(problem))
"""


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command of somebody whose environment holds secrets; it needs the server until the block ends."""
    secret = dict.fromkeys(("LONGTAKE_GATEWAY_API_KEY", "AWS_SECRET_ACCESS_KEY", "TEMPORAL_API_KEY"), KEY)
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments],
        cwd=ROOT,
        env=os.environ | secret,
        umask=0o022,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """The embedded server, as a command starts it."""
    with command(str(data_dir)) as process:
        assert process.stdout
        yield EmbeddedServer(**json.loads(process.stdout.readline()))


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_servers_environment_holds_no_secret(server: EmbeddedServer) -> None:
    for pid in (server.supervisor_pid, server.server_pid):
        given = environment_of(pid)
        assert given["PATH"] == os.environ["PATH"]
        assert KEY not in given.values()
        assert not [name for name in given if name.startswith(("LONGTAKE_", "AWS_", "TEMPORAL_", "OTEL_"))]


def listening(pid: int) -> set[tuple[str, int]]:
    """Every address where a process takes TCP connections."""
    inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in inodes:
                address, port = local.split(":")
                raw = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
                found.add((socket.inet_ntop(family, raw), int(port, 16)))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has more than one loopback address")
def test_no_page_can_reach_the_server_by_a_name_of_its_own(data_dir: Path, server: EmbeddedServer) -> None:
    """DNS rebinding: its own name in `Host`, resolved to 127.0.0.1, whatever the port."""
    ui = urlsplit(server.ui_url)
    assert ui.hostname is not None
    assert ui.port is not None
    assert ui_origins(data_dir) == (server.ui_url,)
    deadline = time.monotonic() + 30
    while (ui.hostname, ui.port) not in (everywhere := listening(server.server_pid)):
        assert time.monotonic() < deadline, everywhere
        time.sleep(0.1)  # it is up before its pages are
    known = {port for host, port in everywhere if host == "127.0.0.1"}
    assert everywhere == {("127.0.0.1", port) for port in known} | {(ui.hostname, ui.port)}
    assert not ui.hostname.startswith("127.0.")
    with httpx.Client(timeout=3, trust_env=False) as browser:
        own_page = f"{server.ui_url}/api/v1/namespaces"
        deadline = time.monotonic() + 30
        while browser.get(own_page).status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)  # it listens before it is well
        assert "namespaceInfo" in browser.get(own_page).text, "its own pages work"
        for port in (*known, ui.port):
            for path in ("/api/v1/namespaces", "/api/v1/namespaces/default/workflows", "/"):
                try:
                    answer = browser.get(f"http://127.0.0.1:{port}{path}", headers={"Host": f"evil.example:{port}"})
                except httpx.HTTPError:
                    continue
                assert "namespaceInfo" not in answer.text, (port, path)
                assert "executions" not in answer.text, (port, path)


def test_the_servers_address_stays(data_dir: Path, server: EmbeddedServer) -> None:
    known = json.loads((data_dir / "embedded" / "ports.json").read_text())
    assert server.ui_url == f"http://{known['ui_host']}:{known['ui_port']}"


def modes_below(folder: Path) -> dict[str, str]:
    """What others may do with anything there."""
    return {str(path): oct(path.stat().st_mode) for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077}


def test_nobody_else_can_read_what_the_server_writes(data_dir: Path, server: EmbeddedServer) -> None:
    assert (data_dir / "temporal.sqlite").exists()
    assert server.server_pid
    # What this test's own process made is left out: its umask is the tests'.
    ours = {str(data_dir / "embedded" / name) for name in ("users", "start", "server.log")}
    assert {path: mode for path, mode in modes_below(data_dir).items() if path not in ours} == {}
    assert str(data_dir / "store") in (data_dir / "embedded" / "server.log").read_text()


@pytest.mark.parametrize("right", [True, False])
def test_another_program_than_the_one_whose_checksum_is_named_is_not_started(tmp_path: Path, *, right: bool) -> None:
    program = Path(temporal_binary())
    checksum = hashlib.sha256(program.read_bytes()).hexdigest()
    if right:
        with command(str(tmp_path), str(program), checksum.upper()) as process:
            assert process.stdout
            assert json.loads(process.stdout.readline())["address"]
        return
    wrong = tmp_path / "temporal"
    wrong.write_text(f"#!/bin/sh\ntouch {tmp_path}/it-ran\n")
    wrong.chmod(0o700)
    with command(str(tmp_path), str(wrong), checksum) as process:
        assert "LONGTAKE_TEMPORAL_BINARY_CHECKSUM" in process.communicate()[1]
    assert not (tmp_path / "it-ran").exists()


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kept"), [(0o022, 0o077), (0o027, 0o027)])
@pytest.mark.parametrize("program", ["starter.py", "worker.py"])
def test_programs_write_for_their_owner_only(tmp_path: Path, program: str, given: int, kept: int) -> None:
    """A umask that shuts others out already is an operator's choice."""
    note = tmp_path / "umask"
    code = (
        "import os, runpy, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        f"def told():\n    mask = os.umask(0); open({str(note)!r}, 'w').write(str(mask)); os._exit(0)\n"
        "import argparse, cli.app\n"
        "cli.app.main = told\n"
        "argparse.ArgumentParser.parse_args = lambda *_: told()\n"
        f"runpy.run_path({program!r}, run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, umask=given, check=True, capture_output=True)
    assert int(note.read_text()) == kept


async def test_a_new_store_is_its_owners(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Store.open((tmp_path / "store").as_uri())
    finally:
        os.umask(before)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


# --- Traces -----------------------------------------------------------------------------------------------------------

_FAILING_SPAN = """
from opentelemetry.trace import get_tracer, get_tracer_provider
from temporalio.exceptions import ApplicationError
from temporalio.contrib.opentelemetry._otel_interceptor import _maybe_span
from opentelemetry.trace import SpanKind
from longtake.temporal.tracing import plugin
plugin()
try:
    with _maybe_span(
        get_tracer("t"), "RunActivity:x", add_temporal_spans=True, attributes={"kept": 1}, kind=SpanKind.SERVER
    ):
        try:
            raise ValueError("inner pangolin")
        except ValueError as error:
            raise ApplicationError("the gateway said pangolin", type="GatewayBusy") from error
except ApplicationError:
    pass
get_tracer_provider().force_flush()
"""


def test_no_failures_words_leave_in_a_span() -> None:
    """By the SDK's own span around an activity, and by our exporter."""
    told = subprocess.run(
        [sys.executable, "-c", _FAILING_SPAN],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "console"},
        capture_output=True,
        text=True,
        check=True,
    )
    (span, _) = json.JSONDecoder().raw_decode(told.stderr)
    assert (span["name"], span["kind"], span["attributes"]) == ("RunActivity:x", "SpanKind.SERVER", {"kept": 1})
    assert span["status"] == {"status_code": "ERROR"}
    (event,) = span["events"]
    assert event["attributes"] == {
        "exception.type": "temporalio.exceptions.ApplicationError",
        "exception.escaped": "False",
    }
    assert "pangolin" not in told.stderr + told.stdout
