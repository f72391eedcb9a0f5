"""A new version of the worker goes out while generations of the old one run: none is stuck, none is paid for twice."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded import temporal_binary
from longtake.client import VideoClient
from longtake.models import Stage
from longtake.temporal.names import DEPLOYMENT, workflow_id
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    ROOT,
    SimulatorProcess,
    Site,
    accept,
    environment,
    eventually,
    request,
    run_stories,
)

pytestmark = pytest.mark.system

FALLBACK = '        return outcome.completed(state, "fallback", clip)\n'
PATCHED = """\
        if workflow.patched("a-new-step"):
            await workflow.sleep(0.001)
            state.warn("made by the patched build")
"""
PREPARE = "                await prepare(state)\n"
UNPATCHED = """\
                await workflow.sleep(0.001)
                state.warn("made by the incompatible build")
"""
ASKS = "extend_failed,seconds=30"
"""A generation that waits for a person, however long the machine takes for the rest."""
RUNNING = 'WorkflowType = "GenerateVideo" AND ExecutionStatus = "Running"'
QUICK_DRAINAGE = (
    "matching.wv.VersionDrainageStatusVisibilityGracePeriod",
    "matching.wv.VersionDrainageStatusRefreshInterval",
)
"""Three minutes each by default: how soon, and how often, the server checks whether a version is still needed."""


def build(folder: Path, old: str, new: str) -> Path:
    """The worker's code in a folder of its own, with another `GenerateVideo`."""
    for source in ("longtake", "activities", "workflows", "worker.py"):
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        folder.mkdir(exist_ok=True)
        copy(ROOT / source, folder / source)
    changed = folder / "workflows" / "generate_video.py"
    text = changed.read_text()
    assert text.count(old) == 1, "the workflow has changed: fix this test"
    changed.write_text(text.replace(old, new))
    return folder


def patched_build(folder: Path) -> Path:
    return build(folder, FALLBACK, PATCHED + FALLBACK)


def incompatible_build(folder: Path) -> Path:
    return build(folder, PREPARE, UNPATCHED + PREPARE)


class Deployments:
    """Each method is a story of its own, with a server and workers of its own."""

    def __init__(self, folder: Path, env: dict[str, str], simulator: SimulatorProcess) -> None:
        self._folder = folder
        self._env = env
        self._simulator = simulator
        self._sites: list[Site] = []

    def close(self) -> None:
        for site in self._sites:
            site.stop()

    async def a_compatible_version(self) -> None:
        """Versioned, the change behind `patched`: what runs moves on to the new version, and the old one can go."""
        await self._compatible("versioned", "v1", "v2")

    async def a_compatible_build_without_versions(self) -> None:
        """The same with plain workers: one is replaced by the other."""
        await self._compatible("plain", None, None)

    async def _compatible(self, name: str, old_build: str | None, new_build: str | None) -> None:
        site, client = await self._site(name)
        prompts = self._prompts(name, {"polls": "ok,seconds=240", "waits": ASKS, "new": ASKS, "newer": ASKS})
        first = site.another_worker(build_id(old_build))
        await first.restart()
        if old_build:
            await deployment(site, "set-current-version", "--build-id", old_build, "--yes")
        await client.start("polls", request(prompts["polls"]))
        await client.start("waits", request(prompts["waits"], on_extend_failed="ask"))
        await reaches(client, "waits", Stage.AWAITING_DECISION)

        second = site.another_worker(build_id(new_build), patched_build(self._folder / f"{name}-patched"))
        await second.restart()
        if new_build:
            await deployment(site, "set-ramping-version", "--build-id", new_build, "--percentage", "50", "--yes")
            await client.start("new", request(prompts["new"]))  # on either of them
            await deployment(site, "set-current-version", "--build-id", new_build, "--yes")
            await drained(site, old_build)
        else:
            await client.start("new", request(prompts["new"]))
        first.stop()
        await client.start("newer", request(prompts["newer"]))

        await accept(client, "waits")
        results = {key: await client.result(key) for key in prompts}
        assert {key: result.outcome for key, result in results.items()} == {
            "polls": "full",
            "waits": "fallback",
            "new": "fallback",
            "newer": "fallback",
        }
        for key in ("waits", "newer"):
            assert "made by the patched build" in results[key].warnings, key
        self._paid_once(prompts)

    async def from_plain_workers_to_versions_and_back(self) -> None:
        site, client = await self._site("switched")
        prompts = self._prompts("switched", {"plain": ASKS, "versioned": ASKS})
        plain, versioned = site.another_worker({}), site.another_worker(build_id("v1"))
        await plain.restart()
        await client.start("plain", request(prompts["plain"], on_extend_failed="ask"))
        await reaches(client, "plain", Stage.AWAITING_DECISION)
        await versioned.restart()
        await deployment(site, "set-current-version", "--build-id", "v1", "--yes")
        plain.stop()
        await client.start("versioned", request(prompts["versioned"], on_extend_failed="ask"))
        await accept(client, "plain")
        assert (await client.result("plain")).outcome == "fallback"
        await reaches(client, "versioned", Stage.AWAITING_DECISION)
        await plain.restart()
        await deployment(site, "set-current-version", "--unversioned", "--yes")
        versioned.stop()
        await accept(client, "versioned")
        assert (await client.result("versioned")).outcome == "fallback"
        self._paid_once(prompts)

    async def an_incompatible_version(self) -> None:
        """A change that cannot be patched: what runs is pinned to the old version, which stays until it is drained."""
        site, client = await self._site("incompatible")
        prompts = self._prompts("incompatible", {"waits": ASKS, "late": "never_finishes", "new": ASKS})
        first = site.another_worker(build_id("v1"))
        await first.restart()
        await deployment(site, "set-current-version", "--build-id", "v1", "--yes")
        await client.start("waits", request(prompts["waits"], on_extend_failed="ask"))
        await reaches(client, "waits", Stage.AWAITING_DECISION)

        second = site.another_worker(build_id("v2"), incompatible_build(self._folder / "incompatible-build"))
        await second.restart()
        await pin(site, "v1", "--query", RUNNING, "--reason", "v2 cannot replay them", "--yes")
        await is_pinned(site, "waits")
        await client.start("late", request(prompts["late"]))
        await reaches(client, "late", Stage.FIRST_SEGMENT)
        await deployment(site, "set-current-version", "--build-id", "v2", "--yes")

        # Begun after the pinning: its tasks fail on the new version, until the old one is current again, and it pinned.
        await eventually(lambda: "Nondeterminism" in second.log(), "the new version fails on an old generation")
        await pin(site, "v1", "--workflow-id", workflow_id("late"))
        await deployment(site, "set-current-version", "--build-id", "v1", "--yes")
        await client.cancel("late")
        await reaches(client, "late", Stage.CANCELLED)
        await deployment(site, "set-current-version", "--build-id", "v2", "--yes")
        await client.start("new", request(prompts["new"]))

        assert await drainage(site, "v1") == "draining", "one generation still needs it"
        await accept(client, "waits")
        results = {key: await client.result(key) for key in ("waits", "new")}
        assert {result.outcome for result in results.values()} == {"fallback"}
        warned = {key: "made by the incompatible build" in result.warnings for key, result in results.items()}
        assert warned == {"waits": False, "new": True}
        await drained(site, "v1")
        self._paid_once(prompts)

    async def _site(self, name: str) -> tuple[Site, VideoClient]:
        site = Site(self._folder / name, self._env)
        self._sites.append(site)
        for setting in QUICK_DRAINAGE:
            site.server.flags += ["--dynamic-config-value", f'{setting}="1s"']
        await site.start_server()
        return site, await site.client()

    @staticmethod
    def _prompts(site: str, scenarios: dict[str, str]) -> dict[str, str]:
        return {key: f"a {MARK} [sim:{scenario},label={site}-{key}]" for key, scenario in scenarios.items()}

    def _paid_once(self, prompts: dict[str, str]) -> None:
        assert {key: self._simulator.paid(prompt) for key, prompt in prompts.items()} == dict.fromkeys(prompts, 1)


def build_id(name: str | None) -> dict[str, str]:
    return {"LONGTAKE_BUILD_ID": name} if name else {}


async def temporal(site: Site, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(temporal_binary(), *arguments, "--address", site.server.address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def deployment(site: Site, command: str, *arguments: str) -> str:
    """`temporal worker deployment …`; a version is known some moments after its workers have begun to poll."""
    for _ in range(100):
        try:
            return await temporal(site, "worker", "deployment", command, "--deployment-name", DEPLOYMENT, *arguments)
        except AssertionError as error:
            problem = error
            await asyncio.sleep(0.2)
    raise problem


async def drainage(site: Site, version: str) -> str:
    described = json.loads(await deployment(site, "describe-version", "--build-id", version, "--output", "json"))
    return str(described["drainageInfo"]["drainageStatus"])


async def drained(site: Site, version: str | None) -> None:
    while await drainage(site, version or "") != "drained":  # noqa: ASYNC110 - a server is asked
        await asyncio.sleep(0.5)


async def pin(site: Site, version: str, *which: str) -> None:
    override = ["--versioning-override-behavior", "pinned", "--versioning-override-deployment-name", DEPLOYMENT]
    override += ["--versioning-override-build-id", version]
    await temporal(site, "workflow", "update-options", *which, *override)


async def is_pinned(site: Site, key: str) -> None:
    """A batch works some moments later, and on what the list knows."""
    while "Pinned" not in await temporal(site, "workflow", "describe", "--workflow-id", workflow_id(key)):  # noqa: ASYNC110 - a server is asked
        await asyncio.sleep(0.3)


async def reaches(client: VideoClient, key: str, stage: Stage) -> None:
    while (snapshot := await client.snapshot(key)).execution.stage != stage:
        assert snapshot.running, snapshot
        await asyncio.sleep(0.1)


STORIES = (
    "a_compatible_version",
    "a_compatible_build_without_versions",
    "an_incompatible_version",
    "from_plain_workers_to_versions_and_back",
)


@pytest.fixture(scope="module")
def stories(
    simulator: SimulatorProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, BaseException | None]]:
    env = environment(LONGTAKE_GATEWAY_URL=simulator.url, LONGTAKE_GATEWAY_API_KEY=API_KEY)
    deployments = Deployments(tmp_path_factory.mktemp("versions"), env, simulator)
    try:
        yield run_stories({name: getattr(deployments, name) for name in STORIES})
    finally:
        deployments.close()


# The stories run in the first one's time.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("story", STORIES)
def test_versions(stories: dict[str, BaseException | None], story: str) -> None:
    if error := stories[story]:
        raise error
