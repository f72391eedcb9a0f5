"""Operators, stopped workers and lost answers around the paid POST: it is made once, and its end is visible."""

import asyncio
import contextlib
import re
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from longtake.client import GenerationFailure, NoWorker, VideoClient
from longtake.models import Decision, DecisionAction, Paid, Stage
from longtake.temporal.connection import connect
from longtake.temporal.names import workflow_id
from tests.end_to_end.processes import (
    MARK,
    ROOT,
    DevServer,
    Finished,
    SimulatorProcess,
    Site,
    Starter,
    WorkerProcess,
    decided_result,
    eventually,
    request,
    run_stories,
)
from tests.end_to_end.temporal_cli import TemporalCli

pytestmark = pytest.mark.system

INSTANTS = 14
"""How many generations are at different points of their submission when their worker is stopped."""
SHORT_EXCHANGE = {"LONGTAKE_SUBMIT_TIMEOUT_SECONDS": "4"}
LOST_SECONDS = 20
"""The heartbeat time-out: so long after its last sign a worker counts as lost."""


class Disturbed:
    """Each method is a story of its own; the operators' one shares a server and a worker with other tests."""

    def __init__(
        self, folder: Path, env: dict[str, str], simulator: SimulatorProcess, client: Starter, temporal: DevServer
    ) -> None:
        self._folder = folder
        self._env = env
        self._simulator = simulator
        self._client = client
        self._address = temporal.address
        self._cli = TemporalCli(temporal.address)
        self._closing = contextlib.ExitStack()

    def _site(self, name: str, **settings: str) -> Site:
        site = Site(self._folder / name, self._env | settings)
        self._closing.callback(site.stop)
        return site

    def close(self) -> None:
        self._closing.close()

    # --- Operators --------------------------------------------------------------------------------------------------

    async def operators_act_while_it_is_sent(self) -> None:
        """Whatever an operator does to an activity or a workflow that is just paying, it pays once and delivers."""
        acts = (
            self._resets_the_activity,
            self._resets_the_activity_and_its_heartbeat_details,
            self._pauses_and_unpauses_the_activity,
            self._resets_the_workflow,
            self._terminates_it_and_starts_the_key_again,
        )
        client = VideoClient(await connect(self._address))

        async def story(act: Callable[[str], Awaitable[None]]) -> None:
            key = act.__name__.strip("_").replace("_", "-")
            # The answer takes 10 s: longer than the interval of the heartbeats, by which a worker hears of such acts.
            prompt = f"{key} {MARK} [sim:submit_delay,delay=300,seconds=60,label={key}]"
            await client.start(key, request(prompt))
            await eventually(lambda: self._simulator.posts(prompt), f"the POST of {key}")
            await act(key)
            result = await asyncio.wait_for(client.result(key), 90)
            posts = self._simulator.posts(prompt)
            assert (key, len(posts), result.outcome, result.task_id) == (key, 1, "full", posts[0]["task_id"])

            # Once more when it has long been paid: back to before the submission.
            await self._cli.reset(key)
            again = await asyncio.wait_for(client.result(key), 60)
            assert (key, len(self._simulator.posts(prompt)), again.task_id) == (key, 1, result.task_id)
            assert again.video.sha256 == result.video.sha256

        await asyncio.gather(*map(story, acts))

    async def _resets_the_activity(self, key: str) -> None:
        await self._cli.activity("reset", key, await self._submission_of(key))

    async def _resets_the_activity_and_its_heartbeat_details(self, key: str) -> None:
        await self._cli.activity("reset", key, await self._submission_of(key), "--clear-heartbeat-details")

    async def _pauses_and_unpauses_the_activity(self, key: str) -> None:
        activity_id = await self._submission_of(key)
        await self._cli.activity("pause", key, activity_id)
        await asyncio.sleep(4.5)  # a heartbeat tells the worker
        await self._cli.activity("unpause", key, activity_id)

    async def _resets_the_workflow(self, key: str) -> None:
        await self._cli.reset(key)

    async def _terminates_it_and_starts_the_key_again(self, key: str) -> None:
        await self._cli.terminate(key)
        client = VideoClient(await connect(self._address))
        prompt = f"{key} {MARK} [sim:submit_delay,delay=300,seconds=60,label={key}]"
        _, started = await client.start(key, request(prompt))
        assert started

    async def _submission_of(self, key: str, address: str | None = None) -> str:
        """The id of the activity that is paying."""
        temporal = await connect(address or self._address)
        described = await temporal.get_workflow_handle(workflow_id(key)).describe()
        (pending,) = described.raw_description.pending_activities
        assert pending.activity_type.name == "submit_generation"
        return pending.activity_id

    # --- Stopped and continued --------------------------------------------------------------------------------------

    async def stopped_at_many_instants_and_continued(self) -> None:
        """A worker is stopped, another takes over, the first is continued: nothing it does then pays again."""
        # Longer than the worker is stopped: an answer that has come meanwhile is read once it goes on.
        settings = {"LONGTAKE_SUBMIT_TIMEOUT_SECONDS": "40", "LONGTAKE_SUBMIT_CONCURRENCY": str(INSTANTS)}
        site = self._site("stopped", **settings)
        client = await site.start()
        heir = WorkerProcess(self._folder / "heir", site.env)
        self._closing.callback(heir.stop)
        cli = TemporalCli(site.server.address)
        keys = [f"stopped-{number}" for number in range(INSTANTS)]
        prompts = {key: f"{key} {MARK} [sim:submit_delay,delay=24,seconds=60,label={key}]" for key in keys}

        async def start_all() -> None:
            for key in keys:
                await client.start(key, request(prompts[key]))
                await asyncio.sleep(0.08)

        def sent() -> list[str]:
            posted = self._simulator.posts_by_prompt()
            return [key for key in keys if prompts[key] in posted]

        starting = asyncio.create_task(start_all())
        await eventually(lambda: len(sent()) >= INSTANTS // 2, "half of the POSTs arrive")
        site.worker.signal(signal.SIGSTOP)
        await asyncio.sleep(0.2)  # what has left arrives
        before = sent()
        assert 0 < len(before) < INSTANTS, "stopped before the first POST or after the last: nothing was shown"
        await starting
        heir.start()
        # Two whose POST has left get an operator on top.
        await cli.terminate(before[-1])
        await client.start(before[-1], request(prompts[before[-1]]))
        await cli.reset(before[-2])
        await asyncio.sleep(LOST_SECONDS + 6)
        site.worker.signal(signal.SIGCONT)

        results = await asyncio.gather(
            *(decided_result(client, self._simulator, key, prompt) for key, prompt in prompts.items())
        )
        posted = self._simulator.posts_by_prompt()
        assert {key: posted[prompt] for key, prompt in prompts.items()} == dict.fromkeys(keys, 1)
        assert {result.outcome for result in results} == {"full"}

    # --- Answers that reach nobody ----------------------------------------------------------------------------------

    async def temporal_is_dead_while_the_gateway_answers(self) -> None:
        """The worker has the id, and dies before it can tell it; later another version takes over what is under way."""
        site = self._site("undelivered")
        client = await site.start()
        prompt = f"undelivered {MARK} [sim:submit_delay,delay=60,label=undelivered]"
        await client.start("undelivered", request(prompt))
        await eventually(lambda: self._simulator.posts(prompt), "the POST arrives")
        site.server.stop(signal.SIGKILL)
        await eventually(lambda: [*site.store.rglob("outcome")], "the answer is written down")
        await site.worker.kill()
        await site.start_server()
        await site.worker.restart()
        client = await site.client()
        result = await asyncio.wait_for(client.result("undelivered"), 90)
        assert (result.outcome, len(self._simulator.posts(prompt))) == ("full", 1)

        version = "99.0.1"
        newer = WorkerProcess(self._folder / "newer", site.env, root=tree_of_version(version, self._folder / "tree"))
        self._closing.callback(newer.stop)
        prompts = {
            "sent-by-the-old": f"sent {MARK} [sim:submit_delay,delay=120,label=sent]",
            "looked-at-by-both": f"made {MARK} [sim:ok,seconds=360,label=made]",
        }
        for key, prompt in prompts.items():
            await client.start(key, request(prompt))
            await eventually(partial(self._simulator.posts, prompt), f"the POST of {key} arrives")
        # From here on the old one only finishes what it sends.
        site.worker.signal(signal.SIGTERM)
        newer.start()
        assert await site.worker.ended() == 0
        for key, prompt in prompts.items():
            result = await asyncio.wait_for(client.result(key), 90)
            assert (key, result.outcome, len(self._simulator.posts(prompt))) == (key, "full", 1)
            assert f'"{version}"' in await TemporalCli(site.server.address).history(key)
        assert f'"version": "{version}"' in newer.log()

    # --- Without a worker -------------------------------------------------------------------------------------------

    async def cancelled_and_killed_while_it_is_sent(self) -> None:
        """No command claims that nothing was paid; and without a worker commands say so instead of hanging."""
        site = self._site("killed", **SHORT_EXCHANGE)
        client = await site.start()
        timed_out = f"timed out {MARK} [sim:submit_delay,delay=90,label=timed-out]"
        await client.start("timed-out", request(timed_out))
        await eventually(lambda: self._simulator.posts(timed_out), "the POST arrives")
        # As at the end of the hour in which it is tried: Temporal gives up while the worker still sends.
        cli, activity_id = TemporalCli(site.server.address), await self._submission_of("timed-out", site.server.address)
        await cli.activity("update-options", "timed-out", activity_id, "--schedule-to-close-timeout", "1s")
        await eventually(lambda: [*site.store.rglob("outcome")], "the answer comes")

        prompts = {
            "cancelled-first": f"first {MARK} [sim:submit_delay,delay=90,label=first]",
            "killed-first": f"second {MARK} [sim:submit_delay,delay=90,label=second]",
        }
        asking = f"asking {MARK} [sim:extend_failed,seconds=30,label=asking]"
        await client.start("asking", request(asking, on_extend_failed="ask"))
        await self._awaits_a_decision(client, "asking")
        for key, prompt in prompts.items():
            await client.start(key, request(prompt))
        await eventually(lambda: all(map(self._simulator.posts, prompts.values())), "the POSTs arrive")
        await client.cancel("cancelled-first")
        await asyncio.sleep(0.3)
        await site.worker.kill()

        starter = self._client.but(**site.env)
        decide, resume, cancel, another = await asyncio.gather(
            starter("decide", "asking", "accept", "--json"),
            starter("poll", "asking"),
            starter("cancel", "killed-first"),
            client.decide("asking", Decision(action=DecisionAction.ACCEPT)),
            return_exceptions=True,
        )
        assert isinstance(decide, Finished)
        assert isinstance(resume, Finished)
        assert isinstance(cancel, Finished)
        assert isinstance(another, NoWorker)
        error = decide.json()["error"]
        assert (decide.code, error["type"]) == (4, "NoWorker")
        assert (resume.code, resume.out, "no worker answers" in resume.err) == (4, "", True)
        # The server keeps a cancellation until a worker comes.
        assert (cancel.code, "worker" in cancel.out) == (0, True)

        await site.worker.restart()
        # They are kept by the server, and come together: one is taken. "Not taken" would have been wrong.
        assert (await asyncio.wait_for(client.result("asking"), 60)).outcome == "fallback"
        decided = Counter(re.findall('"name": "(decide|resume)"', await cli.history("asking")))
        assert decided["decide"] == 1, decided
        for key, prompt in prompts.items():
            with pytest.raises(GenerationFailure) as failure:
                await asyncio.wait_for(client.result(key), 60)
            assert failure.value.details.paid is Paid.UNKNOWN
            assert "nothing" not in failure.value.message
            # What was paid for is still collected by the same key.
            await client.start(key, request(prompt))
            result = await decided_result(client, self._simulator, key, prompt)
            assert (key, result.outcome, len(self._simulator.posts(prompt))) == (key, "full", 1)
        result = await asyncio.wait_for(client.result("timed-out"), 60)
        assert (result.outcome, len(self._simulator.posts(timed_out))) == ("full", 1)

    async def _awaits_a_decision(self, client: VideoClient, key: str) -> None:
        while True:
            status = (await client.snapshot(key)).status
            if status and status.stage is Stage.AWAITING_DECISION:
                return
            await asyncio.sleep(0.2)


def tree_of_version(version: str, folder: Path) -> Path:
    """A copy of what a worker needs, which says that it is another version."""
    for package in ("longtake", "activities", "workflows"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "worker.py", folder)
    (folder / "longtake/__init__.py").write_text(f'__version__ = "{version}"\n')
    return folder


STORIES = (
    "operators_act_while_it_is_sent",
    "stopped_at_many_instants_and_continued",
    "temporal_is_dead_while_the_gateway_answers",
    "cancelled_and_killed_while_it_is_sent",
)


@pytest.fixture(scope="module")
def ends(  # noqa: PLR0917 - one of each kind of process
    distributed: dict[str, str],
    simulator: SimulatorProcess,
    client: Starter,
    worker: WorkerProcess,
    temporal: DevServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, BaseException | None]]:
    disturbed = Disturbed(tmp_path_factory.mktemp("disturbed"), distributed, simulator, client, temporal)
    yield run_stories({name: getattr(disturbed, name) for name in STORIES}, at_once=len(STORIES))
    disturbed.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("story", STORIES)
def test_disturbed(story: str, ends: dict[str, BaseException | None]) -> None:
    if error := ends[story]:
        raise error
