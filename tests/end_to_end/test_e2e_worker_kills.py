"""Workers and servers that die at any moment: nothing is paid twice, nothing is lost."""

import asyncio
import hashlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from longtake.client import GenerationFailure, VideoClient
from longtake.models import (
    Attention,
    GenerationStatus,
    Paid,
    Stage,
)
from tests.end_to_end.processes import (
    MARK,
    SimulatorProcess,
    Site,
    Starter,
    decided_result,
    eventually,
    request,
    run_stories,
)

pytestmark = pytest.mark.system

SITES, ROUNDS, AT_ONCE = 2, 4, 2
LIFE_SECONDS = 5.5
"""From the start to the stored video."""
SHORT_EXCHANGE = {"LONGTAKE_SUBMIT_TIMEOUT_SECONDS": "4"}
"""A submission without an answer is in doubt until its exchange must be over."""


class Kills:
    """Each method is a story of its own, with servers and workers of its own."""

    def __init__(self, folder: Path, env: dict[str, str], simulator: SimulatorProcess, client: Starter) -> None:
        self._folder = folder
        self._env = env
        self._simulator = simulator
        self._client = client
        self._sites: list[Site] = []

    def _site(self, name: str, **settings: str) -> Site:
        self._sites.append(Site(self._folder / name, self._env | settings))
        return self._sites[-1]

    def close(self) -> None:
        for site in self._sites:
            site.stop()

    async def killed_again_and_again(self) -> None:
        """Wherever a generation is when its worker dies, it ends `full`, paid once, with one whole file.

        Only one whose POST was under way just then may ask a person first.
        """
        chance = random.Random(20_26)  # noqa: S311 - moments, not secrets
        await asyncio.gather(*(self._killed_in_rounds(f"site{number}", chance) for number in range(SITES)))

    async def _killed_in_rounds(self, name: str, chance: random.Random) -> None:
        site = self._site(name, LONGTAKE_SUBMIT_TIMEOUT_SECONDS="8")
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
        results = await asyncio.gather(
            *(decided_result(client, self._simulator, key, prompt) for key, prompt in prompts.items())
        )
        for prompt, result in zip(prompts.values(), results, strict=True):
            content = Path(unquote(urlsplit(result.video.uri).path)).read_bytes()
            assert (result.outcome, self._simulator.paid(prompt)) == ("full", 1)
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (result.video.sha256, result.video.bytes)
        stored = [*site.store.rglob("*.mp4")]
        assert len(stored) == len(results), "one file for each generation, and no half ones"

    async def killed_during_the_post(self) -> None:
        """The response is lost: the account's records are checked, then a person decides. Never resubmits by itself."""
        names = ("asked", "reconciled", "unknown")
        prompts = {name: f"{name} {MARK} [sim:submit_delay,delay=75,label={name}]" for name in names}
        console = {"LONGTAKE_CONSOLE_TOKEN": "simulator-access-token", "LONGTAKE_CONSOLE_USER": "2"}
        witnessed = self._site("witnessed", **SHORT_EXCHANGE, **console)
        strict = self._site("strict", **SHORT_EXCHANGE, LONGTAKE_DECISION_DAYS="0")
        first, second = await asyncio.gather(witnessed.start(), strict.start())
        # The account's list counts only where it shows a task that is known to be ours.
        await first.start("earlier", request(f"earlier {MARK} [sim:ok,label=earlier]"))
        await first.result("earlier")
        await asyncio.gather(
            first.start("asked", request(prompts["asked"])),
            # The only task of its model at this time, so that there is no doubt whose it is.
            first.start("reconciled", request(prompts["reconciled"], model="veo_3_1-remix")),
            second.start("unknown", request(prompts["unknown"])),
        )
        task_ids = {name: await self._posted(prompt) for name, prompt in prompts.items()}
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
            status = await _asks(first, "asked")
            assert status.attention is Attention.NEEDS_DECISION
            assert task_ids["asked"] in status.candidates
            starter = self._client.but(**witnessed.env)
            shown = await starter("status", "asked")
            assert "starter.py decide asked adopt" in shown.out
            decided = await starter("decide", "asked", "adopt", task_ids["asked"], "--json")
            assert decided.code == 0, decided
            result = await first.result("asked")
            assert (result.outcome, result.task_id) == ("full", task_ids["asked"])

        async def is_reconciled() -> None:
            result = await first.result("reconciled")
            assert (result.outcome, result.task_id) == ("full", task_ids["reconciled"])

        await asyncio.gather(ends_unknown(), asks_a_person(), is_reconciled())
        assert {name: len(self._simulator.posts(prompt)) for name, prompt in prompts.items()} == dict.fromkeys(names, 1)

    async def drained_and_its_server_killed(self) -> None:
        """SIGTERM finishes the POST under way and records its id; a killed Temporal comes back on its file."""
        site = self._site("drained")
        client = await site.start()
        prompt = f"drained {MARK} [sim:submit_delay,delay=90,label=drained]"
        await client.start("drained", request(prompt))
        task_id = await self._posted(prompt)
        site.worker.signal(signal.SIGTERM)
        assert await site.worker.ended() == 0
        outcomes = [path.read_text() for path in site.store.rglob("outcome")]
        assert [task_id in outcome and "accepted" in outcome for outcome in outcomes] == [True]

        site.server.stop(signal.SIGKILL)
        await site.start_server()
        await site.worker.restart()
        client = await site.client()
        while (await client.snapshot("drained")).execution.task_id is None:  # noqa: ASYNC110 - a server is asked
            await asyncio.sleep(0.1)
        # Once more, now under a worker that is looking.
        site.server.stop(signal.SIGKILL)
        await site.start_server()
        result = await (await site.client()).result("drained")
        assert (result.outcome, result.task_id, len(self._simulator.posts(prompt))) == ("full", task_id, 1)

    async def _posted(self, prompt: str) -> str:
        """Wait for a submission to arrive; the id of its task."""
        posts = await eventually(lambda: self._simulator.posts(prompt), "the POST arrives")
        task_id: str = posts[0]["task_id"]
        return task_id


async def _asks(client: VideoClient, key: str) -> GenerationStatus:
    """Wait until a generation asks for a decision."""
    while True:
        status = (await client.snapshot(key)).status
        if status and status.stage is Stage.AWAITING_DECISION:
            return status
        assert status is None or status.stage is not Stage.FAILED
        await asyncio.sleep(0.3)


STORIES = ("killed_again_and_again", "killed_during_the_post", "drained_and_its_server_killed")


@pytest.fixture(scope="module")
def ends(
    distributed: dict[str, str],
    simulator: SimulatorProcess,
    client: Starter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, BaseException | None]]:
    kills = Kills(tmp_path_factory.mktemp("kills"), distributed, simulator, client)
    yield run_stories({name: getattr(kills, name) for name in STORIES})
    kills.close()


# The stories run in the first one's time; an activity whose worker was killed is given up after 90 s at the latest.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("story", STORIES)
def test_worker(story: str, ends: dict[str, BaseException | None]) -> None:
    if error := ends[story]:
        raise error
