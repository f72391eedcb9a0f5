"""The checks of `doctor` that need no Temporal, each against a real server or folder that is well, and one that is not.

Those of Temporal: tests/end_to_end/test_e2e_doctor.py.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from temporalio.client import Client

from cli.codec_server import application
from cli.doctor import parts as check_parts
from cli.doctor import run as doctor
from cli.doctor import temporal as check_temporal
from cli.doctor.findings import Finding, Level, Site, ok
from cli.doctor.parts import judge_clock
from longtake.observability.metrics import WORKER_CLOCK_SKEW
from longtake.settings import Settings, SettingsProblem
from longtake.storage import Store
from longtake.submission.charges import CLOCK_SKEW
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.key_ring import KeyRing, new_key, parse_keys
from simulator import SimulatorSettings, serve
from simulator.wire import Origin

KEY, OTHER, TOKEN = "sk-doctor-0123456789", "sk-other-0123456789", "console-token-0123456789"
K1, K2, K3 = (new_key(name) for name in ("k1", "k2", "k3"))
OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("OTEL_TRACES_EXPORTER", *check_parts._OTLP_VARIABLES, "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


async def findings(check: Callable[[Site], AsyncIterator[Finding]], *, distributed: Any = True, **given: Any) -> Any:
    """What a check says with these settings: level and words, and what to do wherever it is not well."""
    found = [finding async for finding in check(Site(Settings.model_validate(given), distributed))]
    assert all(finding.advice for finding in found if finding.level is not OK), found
    said = repr(found)
    assert not [secret for secret in (KEY, OTHER, TOKEN, K1[3:], K2[3:], K3[3:]) if secret in said]
    return [(finding.level, finding.message) for finding in found]


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[str]:
    """An application on a port of this machine."""
    origin = Origin(app)
    await origin.open("127.0.0.1", 0)
    try:
        yield origin.url
    finally:
        await origin.close()


def saying(text: str, path: str, **options: Any) -> Starlette:
    async def answer(_: Request) -> Response:
        return PlainTextResponse(text, **options)

    return Starlette(routes=[Route(path, answer, methods=["GET", "POST"])])


async def unused() -> str:
    """An address where nothing listens."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    server.close()
    await server.wait_closed()
    return f"{host}:{port}"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Any]:
    settings = SimulatorSettings(tmp_path / "gateway", KEY, access_token=TOKEN, user_id=2)
    async with serve(settings) as simulator:
        yield SimpleNamespace(url=simulator.url, world=simulator.world, settings={"gateway_url": simulator.url})


# --- Settings, store, ledger, disk ------------------------------------------------------------------------------------


async def test_settings() -> None:
    both = {"gateway_url": "https://gateway.example", "gateway_api_key": KEY}
    check, store = check_parts.settings, {"store_url": "s3://bucket/prefix"}
    assert [level for level, _ in await findings(check, **both, **store)] == [OK]
    assert [level for level, _ in await findings(check, **store)] == [WARNING]
    assert [level for level, _ in await findings(check, distributed=False)] == [PROBLEM]
    (level, what), *_ = await findings(check, gateway_url="https://gateway.example", **store)
    assert (level, "LONGTAKE_GATEWAY_API_KEY" in what) == (PROBLEM, True)
    _, (level, what) = await findings(check, **both)
    assert (level, "LONGTAKE_STORE_URL" in what) == (WARNING, True)
    _, (level, what) = await findings(check, **both, **store, console_token=TOKEN)
    assert (level, "LONGTAKE_CONSOLE_USER" in what) == (PROBLEM, True)


@pytest.mark.parametrize(
    ("url", "allowed", "warned"),
    [
        ("https://8.8.8.8", "true", True),
        ("https://8.8.8.8", "false", False),
        ("http://10.1.2.3:8090", "true", False),
        ("http://127.0.0.1:8090", "true", False),
        ("https://[2606:4700::1111]", "true", True),
        ("https://name.invalid", "true", False),
    ],
)
async def test_private_addresses_beside_a_public_gateway(url: str, allowed: str, *, warned: bool) -> None:
    given = {"gateway_url": url, "gateway_api_key": KEY, "store_url": "s3://b", "allow_private_addresses": allowed}
    found = await findings(check_parts.settings, **given)
    assert [level for level, what in found if "LONGTAKE_ALLOW_PRIVATE_ADDRESSES" in what] == [WARNING] * warned


async def test_store_and_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    url = folder.as_uri()
    (store,) = await findings(check_parts.store, store_url=url)
    assert store[0] is OK
    (none,) = await findings(check_parts.ledger, store_url=url)
    assert none[0] is OK
    assert not (folder / "submit").exists(), "doctor makes no ledger"
    identity = await SubmissionLedger(Store.open(url), longest_exchange=timedelta(seconds=1)).establish()
    (there,) = await findings(check_parts.ledger, store_url=url)
    assert (there[0], identity in there[1]) == (OK, True)
    (folder / "submit/identity").write_text("{")
    (broken,) = await findings(check_parts.ledger, store_url=url)
    assert broken[0] is PROBLEM
    (refused,) = await findings(check_parts.store, store_url="ftp://x")
    assert refused[0] is PROBLEM


async def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mebibytes = {"free": 10_000}

    def usage(path: Path) -> SimpleNamespace:
        assert path.exists()
        return SimpleNamespace(free=mebibytes["free"] * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    here = {"data_dir": tmp_path / "not" / "yet", "max_video_mebibytes": 2048}
    well = [(OK, f"10,000 MiB are free for {tmp_path}/not/yet{part}") for part in ("", "/store")]
    assert await findings(check_parts.disk, distributed=False, **here) == well
    assert await findings(check_parts.disk, **here) == well[1:]
    mebibytes["free"] = 2047
    assert [level for level, _ in await findings(check_parts.disk, **here)] == [WARNING]
    mebibytes["free"] = 255
    assert [level for level, _ in await findings(check_parts.disk, **here)] == [PROBLEM]
    assert [level for level, _ in await findings(check_parts.disk, store_url="s3://bucket/prefix")] == [OK]


# --- Gateway ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where other users may go: pytest's own folders are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_folders_that_others_can_read(open_folder: Path) -> None:
    data, store = open_folder / "data", open_folder / "data" / "store"
    store.mkdir(parents=True)
    given = {"data_dir": str(data), "store_url": store.as_uri()}
    found = await findings(check_parts.permissions, distributed=False, **given)
    assert [level for level, _ in found] == [WARNING, WARNING]
    data.chmod(0o700)
    found = await findings(check_parts.permissions, distributed=False, **given)
    assert [level for level, _ in found] == [OK, OK], "a private folder keeps what is below it private"
    assert await findings(check_parts.permissions, data_dir=str(data), store_url="s3://bucket") == []


async def test_downloads(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check = check_parts.downloads
    assert await findings(check) == []
    assert [level for level, _ in await findings(check, **gateway.settings)] == [OK]
    monkeypatch.setenv("HTTP_PROXY", f"http://{await unused()}")
    (blocked,) = await findings(check, **gateway.settings)
    assert (blocked[0], "HTTP_PROXY" in blocked[1]) == (PROBLEM, True)
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    assert [level for level, _ in await findings(check, **gateway.settings)] == [PROBLEM]


async def test_every_key_is_tried(gateway: Any) -> None:
    found = await findings(check_parts.gateway, **gateway.settings, gateway_api_key=f"{KEY},{OTHER}")
    assert [level for level, _ in found] == [OK, PROBLEM]
    assert ["key 1 of 2" in found[0][1], "key 2 of 2" in found[1][1]] == [True, True]
    assert not list(gateway.world.tasks), "nothing is paid"


async def test_an_extension_gateway_is_tried_with_its_own_key(gateway: Any) -> None:
    check, there = check_parts.extension, {"extend_url": gateway.url}
    assert [level for level, _ in await findings(check)] == [OK]
    assert [level for level, _ in await findings(check, **there, extend_api_key=KEY)] == [OK]
    (refused,) = await findings(check, **there, extend_api_key=OTHER, gateway_api_key=KEY)
    assert (refused[0], "LONGTAKE_EXTEND_API_KEY" in refused[1], "GATEWAY" in refused[1]) == (PROBLEM, True, False)
    (path,) = await findings(check, **there, extend_api_key=KEY, extend_path="/remix")
    assert (path[0], "LONGTAKE_EXTEND_PATH" in path[1]) == (PROBLEM, True)


async def test_a_gateway_that_keeps_its_list_of_models_closed() -> None:
    closed = saying("<html>closed</html>", "/v1/models", status_code=404)
    no_task = '{"code": "task_not_exist", "message": "task_not_exist"}'
    closed.router.routes += saying(no_task, "/v1/videos/{task}", status_code=400).router.routes
    async with served(closed) as url:
        (found,) = await findings(check_parts.gateway, gateway_url=url, gateway_api_key=KEY)
    assert (found[0], "HTTP 404" in found[1]) == (OK, True)


@pytest.mark.parametrize(
    ("status", "body", "level"),
    [
        (401, '{"error": {"message": "无效的令牌", "code": ""}}', PROBLEM),
        (403, '{"error": {"message": "no quota", "code": "insufficient_user_quota"}}', PROBLEM),
        (403, "<html>closed</html>", WARNING),
        (404, "{}", PROBLEM),  # nor has it tasks
        (429, "{}", WARNING),
        (502, "{}", PROBLEM),
        (200, "<html>a page</html>", PROBLEM),
        (200, '{"data": [{"id": "veo_3_1"}]}', WARNING),
    ],
)
async def test_what_the_gateway_may_answer(status: int, body: str, level: Level) -> None:
    async with served(saying(body, "/v1/models", status_code=status)) as url:
        (found,) = await findings(check_parts.gateway, gateway_url=url, gateway_api_key=KEY)
    assert found[0] is level, found


async def test_a_gateway_that_is_not_there_is_reported_once() -> None:
    given = {"gateway_url": f"http://{await unused()}", "gateway_api_key": f"{KEY},{OTHER}"}
    (found,) = await findings(check_parts.gateway, **given)
    assert found[0] is PROBLEM
    assert [level for level, _ in await findings(check_parts.clock, **given)] == [WARNING]


async def test_account_records(gateway: Any) -> None:
    given = {**gateway.settings, "gateway_api_key": KEY}
    console = {"console_token": TOKEN, "console_user": "2"}
    assert [level for level, _ in await findings(check_parts.account_records, **given)] == [OK, OK]
    assert [level for level, _ in await findings(check_parts.account_records, **given, **console)] == [OK, OK]
    wrong = await findings(check_parts.account_records, **given, **console | {"console_user": "3"})
    assert [level for level, _ in wrong] == [PROBLEM, OK]
    gateway.world.account_open = False
    closed = await findings(check_parts.account_records, **given, **console)
    assert [level for level, _ in closed] == [PROBLEM, WARNING]


@pytest.mark.parametrize(
    ("ahead", "level"),
    [
        (timedelta(seconds=3), OK),
        (timedelta(seconds=30), WARNING),
        (-timedelta(seconds=30), WARNING),
        (-2 * CLOCK_SKEW, PROBLEM),
    ],
)
async def test_the_gateways_clock(ahead: timedelta, level: Level) -> None:
    said = format_datetime(datetime.now(UTC) + ahead, usegmt=True)
    async with served(saying("{}", "/v1/models", headers={"Date": said})) as url:
        (found,) = await findings(check_parts.clock, gateway_url=url, gateway_api_key=KEY)
    assert found[0] is level, found
    assert level is OK or ("ahead of" in found[1]) == (ahead > timedelta(0))


async def test_a_gateway_without_a_date_header_is_no_problem(gateway: Any) -> None:
    found = await findings(check_parts.clock, **gateway.settings, gateway_api_key=KEY)
    assert [level for level, _ in found] == [OK]
    assert judge_clock("Temporal", timedelta(0)).level is OK


@pytest.mark.parametrize(("minutes", "level"), [(-10, OK), (0, OK), (1, WARNING), (10, PROBLEM), (None, OK)])
async def test_temporals_clock_is_judged_by_what_can_be_compared(minutes: int | None, level: Level) -> None:
    """Only that this machine is behind can be seen; of workers on other machines nothing is claimed."""
    ahead = None if minutes is None else timedelta(minutes=minutes)
    found = check_temporal.judge_newest(ahead)
    assert found.level is level
    assert (WORKER_CLOCK_SKEW.exposed in found.message) == (level is OK)


# --- Encryption, metrics, traces --------------------------------------------------------------------------------------


async def test_encryption_and_its_codec_server() -> None:
    assert [level for level, _ in await findings(check_parts.encryption)] == [OK]
    ring = {"encryption_keys": f"{K2},{K1}"}
    assert await findings(check_parts.encryption, **ring) == [(OK, "on: the key 'k2' encrypts; 'k1' only decrypt")]
    absent = await findings(check_parts.encryption, **ring, codec_server=await unused())
    assert [level for level, _ in absent] == [OK, WARNING]
    both, one = (KeyRing(parse_keys(keys)) for keys in (f"{K2},{K1}", K2))
    for app, token, level in (
        (application(both), None, OK),
        (application(both, token=TOKEN), TOKEN, OK),
        (application(both, token=TOKEN), None, PROBLEM),
        (application(one), None, PROBLEM),
        (saying("{}", "/decode"), None, PROBLEM),
        (saying("[", "/decode"), None, PROBLEM),
    ):
        async with served(app) as url:
            asked = {**ring, "codec_server": url.removeprefix("http://"), "codec_token": token}
            _, found = await findings(check_parts.encryption, **asked)
        assert found[0] is level, found


async def test_metrics() -> None:
    check = check_parts.metrics
    assert [level for level, _ in await findings(check)] == [OK]
    assert [level for level, _ in await findings(check, metrics_address=await unused())] == [WARNING]
    for text, level in (("longtake_running 0", OK), ("node_load1 0", PROBLEM)):
        async with served(saying(text, "/metrics")) as url:
            port = url.rpartition(":")[2]
            assert [level for level, _ in await findings(check, metrics_address=f"0.0.0.0:{port}")] == [level]
            (embedded,) = await findings(check, distributed=False, metrics_address=f"127.0.0.1:{port}")
            assert embedded[0] is OK


async def test_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    check = check_parts.traces
    assert [level for level, _ in await findings(check)] == [OK]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:{TOKEN}@{await unused()}")
    ((level, what),) = await findings(check)
    assert (level, "127.0.0.1:" in what) == (WARNING, True)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert [level for level, _ in await findings(check)] == [OK]
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    async with served(saying("", "/")) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{url}/v1/traces")
        ((level, what),) = await findings(check)
    assert (level, url.removeprefix("http://") in what) == (OK, True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://:x")
    assert [level for level, _ in await findings(check)] == [PROBLEM]


@pytest.mark.parametrize(
    ("current", "builds", "level"),
    [
        ("", {""}, OK),
        ("b2", {"b2"}, OK),
        ("b2", {"b1", "b2"}, WARNING),
        ("b2", {"", "b2"}, WARNING),
        ("", {"", "b1"}, WARNING),
        ("", {"b1", "b2"}, PROBLEM),
        ("b2", {"b1"}, PROBLEM),
        ("b2", {""}, PROBLEM),
    ],
)
def test_what_it_means_which_builds_poll(current: str, builds: set[str], level: Level) -> None:
    finding = check_temporal._judge_builds(current, builds)
    assert (finding.level, bool(finding.advice)) == (level, level is not OK)


# --- The frame --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "collector"),
    [
        ({}, ""),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1"}, "http://a:1"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:1"},
            "http://b:1",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_TRACES_EXPORTER": "console, otlp"}, "http://a:1"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_SDK_DISABLED": "True"}, ""),
    ],
)
def test_where_spans_are_sent(variables: dict[str, str], collector: str) -> None:
    assert check_parts._collector(variables) == collector


async def test_a_check_that_fails_or_hangs_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_: Site) -> AsyncIterator[Finding]:
        yield ok("so far")
        raise RuntimeError(KEY)

    async def hangs(_: Site) -> AsyncIterator[Finding]:
        yield ok("so far")
        await asyncio.Event().wait()

    monkeypatch.setattr(doctor, "LIMIT_SECONDS", 0.05)
    site = Site(Settings(), distributed=True)
    for check, word in ((fails, "RuntimeError"), (hangs, str(doctor.LIMIT_SECONDS))):
        first, last = await doctor._findings("part", check, site)
        assert (first.check, first.message, last.level) == ("part", "so far", PROBLEM)
        assert word in last.message
        assert KEY not in last.message


async def test_without_a_connection_the_rest_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cannot() -> Client:
        raise SettingsProblem("traces: install the extra")

    monkeypatch.setattr(doctor, "connect", cannot)
    async with AsyncExitStack() as stack:
        first, *others = await doctor._temporal(Site(Settings(), distributed=True), stack)
    assert (first.check, first.level, first.message) == ("Temporal", PROBLEM, "traces: install the extra")
    assert [finding.check for finding in others] == [*doctor.TEMPORAL][1:]
    assert {finding.level for finding in others} == {WARNING}
