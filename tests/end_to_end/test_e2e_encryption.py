"""Encrypted generations: nothing readable is stored, the codec server shows it, keys may come, change and be lost."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.worker import Replayer

from cli.embedded import temporal_binary
from longtake.client import GenerationFailure, VideoClient
from longtake.models import Stage
from longtake.settings import Settings
from longtake.temporal.connection import DATA_CONVERTER, connect, data_converter
from longtake.temporal.key_ring import new_key
from longtake.temporal.names import workflow_id
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    SimulatorProcess,
    Site,
    Starter,
    WorkerProcess,
    accept,
    environment,
    eventually,
    flags,
    free_port,
    listens,
    request,
    request_json,
)
from tests.end_to_end.temporal_cli import TemporalCli
from tests.end_to_end.test_e2e_secrets import texts
from worker import workflow_setup

pytestmark = pytest.mark.system

K1, K2, OTHER = (new_key(name) for name in ("k1", "k2", "other"))
PLAIN_MARK = "okapi"
"""Stands in the prompts that were never encrypted: a search for words must find this one."""
UNREADABLE = (
    *(MARK, "E-1005", "谷歌", "safety"),  # prompts, and the gateway's message
    *("paid, at most once", "until look", "check images"),  # summaries
    *("file://", "remix_id", "sha256"),  # results
)


def keys(*given: str) -> dict[str, str]:
    return {"LONGTAKE_ENCRYPTION_KEYS": ",".join(given)}


@pytest.fixture(scope="module")
def site(simulator: SimulatorProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {"LONGTAKE_GATEWAY_URL": simulator.url, "LONGTAKE_GATEWAY_API_KEY": API_KEY}
    site = Site(tmp_path_factory.mktemp("encrypted"), environment(**settings))
    yield site
    site.stop()


@pytest.fixture
async def starter(site: Site) -> AsyncIterator[Starter]:
    starter = Starter(site.env | keys(K2, K1))
    yield starter
    starter.close()


async def ends(client: VideoClient, key: str) -> str:
    """Its outcome; or the type of its failure with the message, which comes with its details."""
    try:
        return (await client.result(key)).outcome
    except GenerationFailure as failure:
        return f"{failure.kind} {failure.details.task_id}: {failure.message}"


async def reaches(client: VideoClient, key: str, stage: Stage) -> None:
    while (snapshot := await client.snapshot(key)).execution.stage != stage:
        assert snapshot.running, snapshot
        await asyncio.sleep(0.1)


def prompt(name: str, scenario: str, mark: str = MARK) -> str:
    return f"a {mark} [sim:{scenario},label={name}]"


@pytest.mark.timeout(240)  # three workers, one after the other
async def test_encrypted_generations(  # noqa: PLR0915 - one story, whose parts build on each other
    site: Site, starter: Starter, simulator: SimulatorProcess
) -> None:
    prompts = {
        "before": prompt("before", "ok,seconds=150", PLAIN_MARK),
        "anybody": prompt("anybody", "ok,seconds=60", PLAIN_MARK),
        "locked": prompt("locked", "ok,seconds=60"),
        "failed": prompt("failed", "generate_failed,seconds=60"),
        "asks": prompt("asks", "extend_failed,seconds=60"),
        "rotated": prompt("rotated", "ok,seconds=60"),
    }
    plain = await site.start()
    raw = await connect(site.server.address, data_converter=DATA_CONVERTER)
    settings = Settings.model_validate({"encryption_keys": f"{K1},{K2}"})
    client = VideoClient(await connect(site.server.address, data_converter=data_converter(settings)))

    # 1. A worker without the key takes part in plain generations, and harms no encrypted one: it says what it lacks.
    before = request(prompts["before"]).model_copy(update={"prompt_extend": f"the {PLAIN_MARK} leaves"})
    await plain.start("before", before)
    await client.start("locked", request(prompts["locked"]))
    message = "encrypted with the key 'k1', which is not in LONGTAKE_ENCRYPTION_KEYS (it is not set)"
    await eventually(lambda: message in site.worker.log(), "the worker names the key")
    await reaches(plain, "before", Stage.FIRST_SEGMENT)
    site.worker.stop()

    # 2. With the key all of them go on: the plain ones too, and one of somebody who knows nothing of keys.
    first = site.another_worker(keys(K1))
    await first.restart()
    anybody = request_json(prompts["anybody"]) | {"prompt_extend": f"the {PLAIN_MARK} leaves"}
    await TemporalCli(site.server.address).start("anybody", anybody)
    await client.start("failed", request(prompts["failed"]))
    await client.start("asks", request(prompts["asks"], on_extend_failed="ask"))
    names = ("before", "anybody", "locked", "failed")
    ended = dict(zip(names, await asyncio.gather(*(ends(client, name) for name in names)), strict=True))
    failure = ended.pop("failed")
    assert ended == {"before": "full", "anybody": "full", "locked": "full"}
    assert failure.startswith("GenerationFailed task_")
    assert "E-1005" in failure
    await reaches(client, "asks", Stage.AWAITING_DECISION)
    first.stop()

    # 3. Rotation, in the middle of a generation; clients without the key get an error that names it.
    #    Nothing plain is left, so this worker takes nothing plain any more.
    second = site.another_worker(keys(K2, K1) | {"LONGTAKE_REQUIRE_ENCRYPTION": "true"})
    await second.restart()
    await accept(client, "asks")
    rotated, without, other = await asyncio.gather(
        starter("generate", *flags(prompts["rotated"]), "--key", "rotated", "--json"),
        starter.but(LONGTAKE_ENCRYPTION_KEYS=None)("result", "failed"),
        starter.but(**keys(OTHER))("result", "locked", "--json"),
    )
    assert (rotated.code, rotated.json()["outcome"]) == (0, "full"), rotated
    assert (without.code, "Traceback" in without.err) == (2, False), without
    assert "which is not in LONGTAKE_ENCRYPTION_KEYS (it is not set)" in without.err
    assert (other.code, other.json()["error"]["type"]) == (2, "PayloadUnreadable")
    assert await ends(client, "asks") == "fallback"
    await a_plain_start_is_refused(site, second, raw, anybody)
    assert {name: simulator.paid(text) for name, text in prompts.items()} == dict.fromkeys(prompts, 1)

    # 4. What an operator sees, without the codec server and through it.
    await the_codec_server_shows(site, starter, "failed")

    # 5. A replayer with the same converter reads them as the workers do.
    replayer = Replayer(**workflow_setup(), data_converter=data_converter(settings), namespace=raw.namespace)
    await replayer.replay_workflow(await raw.get_workflow_handle(workflow_id("rotated")).fetch_history())

    # 6. What is stored: read without any codec, and as the bytes of the server's own file.
    histories = {name: await history(raw, name) for name in prompts}
    for name in ("locked", "failed", "asks", "rotated"):
        assert b"binary/encrypted" in histories[name]
        assert [word for word in UNREADABLE if word.encode() in histories[name]] == [], name
    assert b"k1" in histories["asks"]
    assert b"k2" in histories["asks"]
    for name in ("before", "anybody"):
        assert PLAIN_MARK.encode() in histories[name], "otherwise the search finds nothing anywhere"
    site.stop()
    stored = b"".join(path.read_bytes() for path in (site.store.parent / "temporal").glob("temporal.sqlite*"))
    assert PLAIN_MARK.encode() in stored
    assert [word for word in (MARK, "E-1005", "谷歌") if word.encode() in stored] == []
    for secret in (K1, K2):
        assert secret.partition(":")[2] not in second.log()


async def a_plain_start_is_refused(site: Site, worker: WorkerProcess, raw: Client, request: dict[str, Any]) -> None:
    await TemporalCli(site.server.address).start("plain", request)
    await eventually(lambda: "LONGTAKE_REQUIRE_ENCRYPTION is set" in worker.log(), "a plain start is refused")
    await raw.get_workflow_handle(workflow_id("plain")).terminate()


async def the_codec_server_shows(site: Site, starter: Starter, key: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    starter.but(LONGTAKE_CODEC_SERVER=address, LONGTAKE_CODEC_TOKEN="a-token").start("codec-server")
    await eventually(lambda: listens(address), "the codec server listens")
    codec = ["--codec-endpoint", f"http://{address}", "--codec-auth", "Bearer a-token"]
    dark, bright = await show(site, key), await show(site, key, *codec)
    assert (MARK in dark, "E-1005" in dark) == (False, False)
    assert (MARK in bright, "E-1005" in bright, "paid, at most once" in bright) == (True, True, True)


async def history(raw: Client, key: str) -> bytes:
    """Every event of every run as it is stored."""
    handle = raw.get_workflow_handle(workflow_id(key))
    return b"".join([event.SerializeToString() async for event in handle.fetch_history_events()])


async def show(site: Site, key: str, *more: str) -> str:
    command = [temporal_binary(), "workflow", "show", "--workflow-id", workflow_id(key), "--output", "json", *more]
    ended = await asyncio.to_thread(
        subprocess.run, [*command, "--address", site.server.address], capture_output=True, text=True, check=False
    )
    return "\n".join(texts(json.loads(ended.stdout))) if ended.returncode == 0 else ended.stderr
