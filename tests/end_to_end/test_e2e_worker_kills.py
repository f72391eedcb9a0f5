"""Workers and servers that die at any moment: nothing is paid twice, nothing is lost."""

import asyncio
import hashlib
import random
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from longtake.client import GenerationFailure, VideoClient
from longtake.models import Attention, GenerationStatus, Paid, Stage
from tests.end_to_end.processes import MARK, SimulatorProcess, Site, Starter, eventually, request

ROUNDS, AT_ONCE = 3, 3
LIFE_SECONDS = 5.5
"""From the start to the stored video."""


async def killed_in_rounds(site: Site, simulator: SimulatorProcess, name: str, chance: random.Random) -> None:
    """Kill the worker while several generations are of different ages; all of them end well."""
    client = await site.start()
    prompts = {}
    for round_ in range(ROUNDS):
        ages = sorted((chance.uniform(0.02, LIFE_SECONDS) for _ in range(AT_ONCE)), reverse=True)
        for number, (age, next_age) in enumerate(zip(ages, [*ages[1:], 0], strict=True)):
            key = f"{name}-{round_}-{number}"
            prompts[key] = f"killed {MARK} [sim:ok,label={key}]"
            await client.start(key, request(prompts[key]))
            await asyncio.sleep(age - next_age)
        await site.worker.kill()
        await site.worker.restart()
    results = await asyncio.gather(*map(client.result, prompts))
    for prompt, result in zip(prompts.values(), results, strict=True):
        content = Path(unquote(urlsplit(result.video.uri).path)).read_bytes()
        assert (result.outcome, simulator.paid(prompt)) == ("full", 1)
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (result.video.sha256, result.video.bytes)
    stored = [path for path in site.store.rglob("*.mp4")]
    assert len(stored) == len(results), "one file for each generation, and no half ones"


async def test_a_worker_killed_again_and_again(new_site: Callable[..., Site], simulator: SimulatorProcess) -> None:
    chance = random.Random(20_26)
    sites = {name: new_site(name) for name in ("one", "two", "three")}
    await asyncio.gather(*(killed_in_rounds(site, simulator, name, chance) for name, site in sites.items()))


async def asks(client: VideoClient, key: str) -> GenerationStatus:
    """Wait until a generation asks for a decision."""
    while True:
        status = (await client.snapshot(key)).status
        if status and status.stage is Stage.AWAITING_DECISION:
            return status
        assert status is None or status.stage is not Stage.FAILED
        await asyncio.sleep(0.3)


async def test_a_worker_killed_during_the_post_never_sends_again(
    new_site: Callable[..., Site], simulator: SimulatorProcess, client: Starter
) -> None:
    """The gateway answers nobody: the witnesses are heard, then a person, and it is never sent again by itself."""
    names = ("asked", "reconciled", "unknown")
    prompts = {name: f"{name} {MARK} [sim:submit_delay,delay=75,label={name}]" for name in names}
    witnessed = new_site("witnessed", LONGTAKE_CONSOLE_TOKEN="simulator-access-token", LONGTAKE_CONSOLE_USER="2")
    strict = new_site("strict", LONGTAKE_DECISION_DAYS="0")
    first, second = await asyncio.gather(witnessed.start(), strict.start())
    await asyncio.gather(
        first.start("asked", request(prompts["asked"])),
        # The only task of its model at this time, so that there is no doubt whose it is.
        first.start("reconciled", request(prompts["reconciled"], model="veo_3_1-remix")),
        second.start("unknown", request(prompts["unknown"])),
    )
    task_ids = {}
    for name in names:
        posts = await eventually(lambda name=name: simulator.posts(prompts[name]), f"the POST of {name} arrives")
        task_ids[name] = posts[0]["task_id"]
    await asyncio.gather(*(site.worker.kill() for site in (witnessed, strict)))
    await asyncio.gather(*(site.worker.restart() for site in (witnessed, strict)))

    async def ends_unknown() -> None:
        for _ in range(2):  # a second start with the same key does not send it either
            with pytest.raises(GenerationFailure) as failure:
                await second.result("unknown")
            assert (failure.value.kind, failure.value.details.paid) == ("SubmissionOutcomeUnknown", Paid.UNKNOWN)
            assert failure.value.details.sent_at is not None
            await second.start("unknown", request(prompts["unknown"]))

    async def asks_a_person() -> None:
        status = await asks(first, "asked")
        assert status.attention is Attention.NEEDS_DECISION
        assert task_ids["asked"] in status.candidates
        there = client.but(**witnessed.env)
        told = await there("status", "asked")
        assert "adopt" in told.out
        decided = await there("decide", "asked", "adopt", task_ids["asked"], "--json")
        assert decided.code == 0, decided
        result = await first.result("asked")
        assert (result.outcome, result.task_id) == ("full", task_ids["asked"])

    async def is_reconciled() -> None:
        result = await first.result("reconciled")
        assert (result.outcome, result.task_id) == ("full", task_ids["reconciled"])

    await asyncio.gather(ends_unknown(), asks_a_person(), is_reconciled())
    assert {name: len(simulator.posts(prompt)) for name, prompt in prompts.items()} == dict.fromkeys(names, 1)


async def test_draining_finishes_the_post_and_a_killed_server_goes_on(
    new_site: Callable[..., Site], simulator: SimulatorProcess
) -> None:
    site = new_site("site")
    client = await site.start()
    prompt = f"drained {MARK} [sim:submit_delay,delay=75,label=drained]"
    await client.start("drained", request(prompt))
    posts = await eventually(lambda: simulator.posts(prompt), "the POST arrives")
    site.worker.signal(signal.SIGTERM)
    assert await site.worker.ended() == 0
    outcomes = [path.read_text() for path in site.store.rglob("outcome")]
    assert [posts[0]["task_id"] in outcome and "accepted" in outcome for outcome in outcomes] == [True]

    # Temporal dies as well, and comes back on its file; then once more under a worker that is looking.
    site.server.stop(signal.SIGKILL)
    await site.start_server()
    await site.worker.restart()
    client = await site.client()
    while (await client.snapshot("drained")).execution.task_id is None:
        await asyncio.sleep(0.1)
    site.server.stop(signal.SIGKILL)
    await site.start_server()
    result = await (await site.client()).result("drained")
    assert (result.outcome, result.task_id, len(simulator.posts(prompt))) == ("full", posts[0]["task_id"], 1)
