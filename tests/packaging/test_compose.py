"""docker-compose.yml, as far as it can be shown without a container engine.

Compose itself judges the file; the set-up script, the worker and the simulator run as the file says, on this machine.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from longtake.settings import Settings, variable_names
from tests.end_to_end.processes import free_port
from tests.packaging.services import BARE, BIN, ROOT, SIMULATOR, compose, ended, read_services
from worker import DRAIN_MARGIN

DEPLOY = ROOT / "deploy/temporal"

JOBS = {"temporal-schema", "temporal-namespace", "setup"}
OURS = {"setup", "worker", "worker-submission", "simulator", "codec-server"}
METRICS = {"prometheus", "grafana"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services with the values of `.env.example` filled in."""
    return read_services()


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The file with its variables still in it."""
    told = compose("--no-interpolate", "--no-env-resolution", "--format", "json")
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def example(*, comments: bool) -> dict[str, str]:
    """The variables of `.env.example`, with or without those that are commented out."""
    pattern = r"^(?:# )?([A-Z][A-Z0-9_]+)=(.*)$" if comments else r"^([A-Z][A-Z0-9_]+)=(.*)$"
    return dict(re.findall(pattern, (ROOT / ".env.example").read_text(), re.MULTILINE))


# --- The file ---------------------------------------------------------------------------------------------------------


def test_compose_accepts_the_file() -> None:
    told = compose("--quiet")
    assert (told.returncode, told.stderr) == (0, "")


def test_the_file_fits_the_specification() -> None:
    told = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize(
    "secret", ["POSTGRES_PASSWORD", "GRAFANA_PASSWORD", "LONGTAKE_GATEWAY_API_KEY", "LONGTAKE_GATEWAY_URL"]
)
def test_nothing_starts_without(secret: str) -> None:
    others = {name: value for name, value in example(comments=False).items() if name != secret}
    told = compose("--quiet", env_files=[os.devnull], **others)
    assert told.returncode != 0
    assert f"required variable {secret} is missing a value: copy .env.example to .env" in told.stderr


def test_every_variable_is_in_the_example_file(plain: dict[str, Any]) -> None:
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", json.dumps(plain)))
    used |= {
        name
        for service in plain["services"].values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    assert used == set(example(comments=True))


def test_the_example_values_say_that_they_are_examples() -> None:
    values = example(comments=False)
    assert (ROOT / ".env.example").read_text().startswith("# EXAMPLE VALUES")
    assert all(
        "example" in values[name] for name in ("POSTGRES_PASSWORD", "GRAFANA_PASSWORD", "LONGTAKE_GATEWAY_API_KEY")
    )
    assert not {name for name, value in example(comments=True).items() if "SECRET" in name and value}


def test_the_defaults_named_in_the_example_file_are_the_defaults() -> None:
    shown = example(comments=True)
    named = {
        name: value
        for name, value in shown.items()
        if name.startswith("LONGTAKE_") and name not in example(comments=False)
    }
    defaults = {f"LONGTAKE_{name.upper()}": field.default for name, field in Settings.model_fields.items()}
    assert named
    for name, value in named.items():
        default = defaults[name]
        if value:
            assert TypeAdapter(type(default)).validate_strings(value) == default, name
        else:  # a variable that is set to nothing is not set
            assert not default, name


def test_only_the_simulators_file_allows_private_addresses() -> None:
    private, gateway = "LONGTAKE_ALLOW_PRIVATE_ADDRESSES", "LONGTAKE_GATEWAY_URL"
    read = {}
    for files in ((".env.example",), (".env.example", SIMULATOR)):
        told = compose("--format", "json", env_files=files, profile=None)
        assert told.returncode == 0, told.stderr
        read[files] = json.loads(told.stdout)["services"]
    alone, with_simulator = read.values()
    assert alone["worker"]["environment"].get(private) is None
    assert "simulator" not in alone
    assert with_simulator["worker"]["environment"][private] == "true"
    assert with_simulator["worker"]["environment"][gateway] == "http://simulator:8090"
    assert "simulator" in with_simulator


def test_the_worker_can_be_given_every_setting(services: dict[str, Any], plain: dict[str, Any]) -> None:
    embedded_only = {"LONGTAKE_DATA_DIR", "LONGTAKE_TEMPORAL_BINARY", "LONGTAKE_TEMPORAL_BINARY_CHECKSUM"}
    codec_server_only = {"LONGTAKE_CODEC_SERVER", "LONGTAKE_CODEC_ORIGINS", "LONGTAKE_CODEC_TOKEN"}
    handed_over = {name for name in plain["services"]["worker"]["environment"] if name.startswith("LONGTAKE_")}
    assert handed_over == set(variable_names()) - embedded_only - codec_server_only
    assert services["worker"]["environment"]["LONGTAKE_STORE_URL"].startswith("file:///var/lib/longtake/")
    assert [volume["target"] for volume in services["worker"]["volumes"]] == ["/var/lib/longtake"]


def test_all_images_are_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name in OURS:
            assert f"longtake-{service['build']['target']}" == service["image"]
        else:
            assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+[\w.-]*", service["image"]), service["image"]


def test_every_image_can_be_held_by_its_digest() -> None:
    names = [name for name in example(comments=True) if name.endswith("_DIGEST")]
    digests = {name: f"@sha256:{number:064x}" for number, name in enumerate(names, 1)}
    told = compose("--format", "json", **digests)
    assert told.returncode == 0, told.stderr
    used = set()
    for service in json.loads(told.stdout)["services"].values():
        if "build" in service:
            used.add(service["build"]["args"]["PYTHON_DIGEST"])
        else:
            tag, at, digest = service["image"].partition("@")
            assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+[\w.-]*", tag)
            used.add(at + digest)
    assert used == set(digests.values())


def test_every_service_is_limited_restarted_and_has_no_new_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits["cpus"], name
        assert limits["memory"], name
        assert service["restart"] == ("on-failure:5" if name in JOBS else "unless-stopped"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert ("healthcheck" in service) == (name not in JOBS), name


def test_no_service_runs_as_root(services: dict[str, Any]) -> None:
    """Those of our own images as `longtake`: tests/packaging/test_dockerfile.py."""
    for name, service in services.items():
        user = service.get("user", "longtake" if name in OURS else "")
        assert user.split(":")[0] not in {"", "0", "root"}, name


def test_our_containers_and_those_of_the_metrics_can_write_to_their_volume_only(services: dict[str, Any]) -> None:
    for name in OURS | METRICS:
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name


def test_ports_are_open_to_this_machine_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_no_other_service_reaches_the_one_that_decrypts(services: dict[str, Any]) -> None:
    own = set(services["codec-server"]["networks"])
    assert own.isdisjoint(
        name for service, it in services.items() if service != "codec-server" for name in it["networks"]
    )


def test_nothing_waits_for_what_only_a_profile_starts(services: dict[str, Any]) -> None:
    for service in services.values():
        assert not [other for other in service.get("depends_on", {}) if services[other].get("profiles")]


def test_stopping_waits_until_a_submission_has_ended(services: dict[str, Any]) -> None:
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", services["worker"]["stop_grace_period"]).groups()  # type: ignore[union-attr]
    grace = timedelta(minutes=int(minutes or 0), seconds=int(seconds))
    assert grace > timedelta(seconds=Settings.model_fields["submit_timeout_seconds"].default) + DRAIN_MARGIN


def test_every_mounted_file_exists(services: dict[str, Any]) -> None:
    mounts = [
        volume for service in services.values() for volume in service.get("volumes", ()) if volume["type"] == "bind"
    ]
    assert mounts
    for mount in mounts:
        assert Path(mount["source"]).exists()
        assert mount["read_only"]


# --- The scripts ------------------------------------------------------------------------------------------------------


def run_schema(folder: Path, tool: str) -> subprocess.CompletedProcess[str]:
    """`temporal-sql-tool` is in no package: one of ours stands in, so only order and error handling are shown."""
    stand_in = folder / "temporal-sql-tool"
    stand_in.write_text(f"#!/bin/sh\n{tool}\n")
    stand_in.chmod(0o755)
    return subprocess.run(
        ["sh", DEPLOY / "schema.sh"],
        capture_output=True,
        text=True,
        check=False,
        env=BARE | {"PATH": f"{folder}:{BARE['PATH']}"},
    )


def test_the_schema_job_makes_both_databases(tmp_path: Path) -> None:
    ended = run_schema(tmp_path, 'echo "$@"')
    assert ended.returncode == 0
    schema = "/etc/temporal/schema/postgresql/v12"
    assert ended.stdout.splitlines() == [
        "--db temporal create-database",
        "--db temporal setup-schema --version 0.0",
        f"--db temporal update-schema --schema-dir {schema}/temporal/versioned",
        "--db temporal_visibility create-database",
        "--db temporal_visibility setup-schema --version 0.0",
        f"--db temporal_visibility update-schema --schema-dir {schema}/visibility/versioned",
    ]


def test_the_schema_job_stops_at_an_error(tmp_path: Path) -> None:
    ended = run_schema(tmp_path, 'echo "$@"; case $* in *setup-schema*) exit 1;; esac')
    assert ended.returncode != 0
    assert len(ended.stdout.splitlines()) == 2


# --- The programs, as the file starts them ----------------------------------------------------------------------------


@pytest.fixture
async def temporal_address() -> AsyncIterator[str]:
    """A Temporal server as `temporal` is after its schema job: without longtake's namespace and search attributes."""
    address = f"127.0.0.1:{(port := free_port())}"
    server = await asyncio.create_subprocess_exec(
        *(BIN / "temporal", "server", "start-dev", "--headless", "--log-level", "never", "--port", str(port)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        await ended(server)


async def run_job(*command: str | Path, environment: dict[str, str], cwd: Path = ROOT) -> str:
    """What a job says that ends well."""
    job = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=BARE | {"PATH": f"{BIN}:{BARE['PATH']}"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await job.communicate()
    assert job.returncode == 0, told.decode()
    return told.decode()


@pytest.mark.system
async def test_the_jobs_and_the_workers(services: dict[str, Any], temporal_address: str, tmp_path: Path) -> None:
    """From our code alone, with the commands and environments of the file; only addresses and folders differ."""
    image = tmp_path / "image"
    image.mkdir()
    for source in ("longtake", "activities", "workflows", "cli", "worker.py", "starter.py"):
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, image / source)

    here = {"TEMPORAL_ADDRESS": temporal_address, "TEMPORAL_NAMESPACE": "video"}
    jobs = services["temporal-namespace"], services["setup"]
    assert all(here.keys() <= job["environment"].keys() for job in jobs)
    for _ in range(2):  # every start of the containers runs them again
        await run_job("sh", DEPLOY / "namespace.sh", environment=here)
    said = [await run_job(*services["setup"]["command"], environment=here, cwd=image) for _ in range(2)]
    assert said[0].startswith("registered: VideoModel, ")
    assert said[1].startswith("all search attributes are registered already\n")
    for name in ("worker", "worker-submission"):
        await run_worker(services[name], image, here)


async def run_worker(service: dict[str, Any], image: Path, here: dict[str, str]) -> None:
    """Run a service's command until it is ready, and drain it."""
    ready = image / "ready"
    ready.unlink(missing_ok=True)
    command = [sys.executable if word == "python" else word for word in service["command"]]
    environment = {name: value for name, value in service["environment"].items() if value is not None}
    environment |= here | {
        "LONGTAKE_STORE_URL": (image.parent / "store").as_uri(),
        "LONGTAKE_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    assert command[-2] == "--ready-file"
    assert service["healthcheck"]["test"] == ["CMD", "test", "-f", command[-1]]
    worker = await asyncio.create_subprocess_exec(
        *(*command[:-1], str(ready)),
        cwd=image,
        env=BARE | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(30):
            while not ready.exists() and worker.returncode is None:  # noqa: ASYNC110 - a file of another process
                await asyncio.sleep(0.05)
    finally:
        code = await ended(worker)
    assert worker.stdout
    assert code == 0, (await worker.stdout.read()).decode()
    assert ready.exists()


async def test_the_simulator(services: dict[str, Any], tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.mkdir()
    shutil.copytree(ROOT / "simulator", image / "simulator")
    elsewhere = {
        "python": sys.executable,
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=8090": "--port=0",
        "--cdn-port=8091": "--cdn-port=0",
        "--data-dir=/var/lib/longtake": f"--data-dir={tmp_path}/data",
    }
    command = services["simulator"]["command"]
    assert set(elsewhere) <= set(command)
    assert services["worker"]["environment"]["LONGTAKE_GATEWAY_URL"] == "http://simulator:8090"

    simulator = await asyncio.create_subprocess_exec(
        *(elsewhere.get(word, word) for word in command),
        cwd=image,
        env=BARE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert simulator.stdout
        async with asyncio.timeout(30):
            told = (await simulator.stdout.readline()).decode()
        port = re.fullmatch(r"simulator ready http://127\.0\.0\.1:(\d+)\n", told)
        assert port, told
        # The health check, with the port that it got.
        check = [
            elsewhere.get(word, word).replace("8090", port[1])
            for word in services["simulator"]["healthcheck"]["test"][1:]
        ]
        assert await (await asyncio.create_subprocess_exec(*check)).wait() == 0
    finally:
        code = await ended(simulator)
    assert code == 0
