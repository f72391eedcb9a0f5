"""The commands of docker-compose.yml that `tests/packaging` cannot run: by Debian's programs, or with a server behind.

Debian's versions are not those of the images. `grafana` and Temporal's images have no command in the file, and Debian
has neither `temporal-sql-tool` nor the `nc` of Temporal's image.
"""

import asyncio
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from temporalio.api.common.v1 import Payload, Payloads

from longtake.temporal.codec import EncryptionCodec
from longtake.temporal.key_ring import KeyRing, new_key, parse_keys
from tests.end_to_end.processes import free_port
from tests.packaging.services import BARE, ROOT, ended, read_services

pytestmark = pytest.mark.system

PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'"a lighthouse"')


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return read_services()


def published(service: dict[str, Any]) -> str:
    """The port inside its container that the service opens."""
    (port,) = service["ports"]
    return str(port["target"])


@asynccontextmanager
async def running(*command: str, cwd: Path, environment: dict[str, str], log: Path) -> AsyncIterator[None]:
    """Run a service's command; it must still be there at the end."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=BARE | environment, stdout=file, stderr=file
        )
    try:
        yield
    finally:
        gone, code = process.returncode, await ended(process)
    assert gone is None, (gone, log.read_text())
    assert code in (0, -signal.SIGTERM), (code, log.read_text())  # uvicorn ends by the signal that it has obeyed


async def becomes_healthy(check: list[str], log: Path) -> None:
    """Run a health check until it is content, as the engine does.

    Raises:
        AssertionError: It is not within 30 s.
    """
    for _ in range(150):
        if await code_of(*check) == 0:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(log.read_text())


async def test_prometheus(services: dict[str, Any], tmp_path: Path) -> None:
    """With its own configuration: the names of the workers are not found here, which it must survive."""
    service = services["prometheus"]
    mounts = {volume["target"]: volume["source"] for volume in service["volumes"] if volume["type"] == "bind"}
    command = []
    for word in service["command"]:
        flag, _, value = word.partition("=")
        for target, source in mounts.items():
            value = re.sub(f"^{target}(?=/)", source, value)
        command.append(f"{flag}={tmp_path / 'data' if value == '/prometheus' else value}")
    assert len(set(command) - set(service["command"])) == 2, command

    address = f"127.0.0.1:{free_port()}"
    check = [word.replace(f"127.0.0.1:{published(service)}", address) for word in service["healthcheck"]["test"][1:]]
    assert address in " ".join(check)
    program, log = shutil.which("prometheus"), tmp_path / "log"
    assert program
    async with running(program, *command, f"--web.listen-address={address}", cwd=tmp_path, environment={}, log=log):
        await becomes_healthy(["busybox", *check], log)
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v1", trust_env=False) as client:
            flags = (await client.get("/status/flags")).json()["data"]
            groups = (await client.get("/rules")).json()["data"]["groups"]
    assert flags["storage.tsdb.retention.time"] == "30d"
    assert sum(len(group["rules"]) for group in groups) > 5


async def test_the_codec_server(services: dict[str, Any], tmp_path: Path) -> None:
    service = services["codec-server"]
    keys, origin = new_key("k1"), "http://127.0.0.1:8080"
    address = f"127.0.0.1:{free_port()}"
    environment = {name: value for name, value in service["environment"].items() if value is not None}
    assert environment.pop("LONGTAKE_CODEC_SERVER") == f"0.0.0.0:{published(service)}"
    environment |= {"LONGTAKE_CODEC_SERVER": address, "LONGTAKE_ENCRYPTION_KEYS": keys}

    def here(words: list[str]) -> list[str]:
        host, port = address.split(":")
        own = f"'{host}', {port}"
        return [sys.executable if word == "python" else word.replace("'127.0.0.1', 8081", own) for word in words]

    check = here(service["healthcheck"]["test"][1:])
    assert check[1:] != service["healthcheck"]["test"][2:]
    log = tmp_path / "log"
    async with running(*here(service["command"]), cwd=ROOT, environment=environment, log=log):
        await becomes_healthy(check, log)
        sealed = await EncryptionCodec(KeyRing(parse_keys(keys))).encode([PLAIN])
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.post(
                f"http://{address}/decode",
                json=MessageToDict(Payloads(payloads=sealed)),
                headers={"origin": origin},
            )
    assert answer.headers["access-control-allow-origin"] == origin
    assert list(ParseDict(answer.json(), Payloads()).payloads) == [PLAIN]


# --- Health checks of images that cannot be had -----------------------------------------------------------------------
# Those of Prometheus, Grafana and Temporal's UI have BusyBox's wget, not GNU's.

NO_RESPONSE, BAD_PARAMETERS = 2, 3
"""Of pg_isready."""


async def test_the_health_check_of_postgresql_can_be_parsed(services: dict[str, Any]) -> None:
    check = services["postgresql"]["healthcheck"]["test"][1:]
    assert await code_of(*check, f"--port={free_port()}") == NO_RESPONSE
    assert await code_of(*check, "--no-such-flag") == BAD_PARAMETERS


@pytest.mark.parametrize("name", ["grafana", "prometheus", "temporal-ui"])
async def test_the_health_checks_by_http_can_be_parsed(services: dict[str, Any], name: str) -> None:
    """Content with an answer of 200, not with 503, and not with none."""
    service = services[name]
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split()[1])
        writer.write(b"HTTP/1.1 " + (b"200 OK" if len(asked) == 1 else b"503 Busy") + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    there = f"http://127.0.0.1:{published(service)}/"
    check = [word.replace(there, f"http://127.0.0.1:{port}/") for word in service["healthcheck"]["test"][1:]]
    assert check != service["healthcheck"]["test"][1:]
    async with server:
        assert await code_of("busybox", *check) == 0
        assert await code_of("busybox", *check) != 0
    assert await code_of("busybox", *check) != 0
    assert asked == [check[-1].removeprefix(f"http://127.0.0.1:{port}")] * 2


async def code_of(*command: str) -> int:
    """The exit code of a command."""
    return await (await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)).wait()
