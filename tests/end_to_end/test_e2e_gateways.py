"""Delivery, money and doubt against every gateway that the simulator can be like."""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from longtake.client import DecisionRejected, GenerationFailure, VideoClient
from longtake.models import (
    Attention,
    Decision,
    DecisionAction,
    GenerateVideoResult,
    GenerationStatus,
    KeyProblem,
    Paid,
    Stage,
    StoredVideo,
)
from simulator.personalities import DOCUMENT, NEWAPI
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    SimulatorProcess,
    Site,
    Starter,
    chosen,
    environment,
    flags,
    request,
)

PRICE = 425_000
STORY_SECONDS = 100
"""What a story may take on busy cores; one that would wait for ever ends so."""


class Gateway:
    """Each method is a story of its own; all share one gateway, one Temporal, one worker and one store."""

    def __init__(self, folder: Path, like: str, png: bytes) -> None:
        self._like = like
        self._image = folder / "frame.png"
        folder.mkdir(parents=True, exist_ok=True)
        self._image.write_bytes(png)
        self.simulator = SimulatorProcess(folder / "simulator", folder.parent / "clips", like)
        self._folder = folder
        self._closing = contextlib.ExitStack()
        self._closing.callback(self.simulator.stop)
        self._site: Site
        self._client: VideoClient
        self._starter: Starter

    async def start(self) -> None:
        await asyncio.to_thread(self.simulator.wait_until_ready)
        env = environment(
            LONGTAKE_GATEWAY_URL=self.simulator.url,
            LONGTAKE_GATEWAY_API_KEY=API_KEY,
            LONGTAKE_DATA_DIR=str(self._folder / "not-used"),
            LONGTAKE_CONSOLE_TOKEN="simulator-access-token",
            LONGTAKE_CONSOLE_USER="2",
            LONGTAKE_SUBMIT_TIMEOUT_SECONDS="4",
        )
        self._site = Site(self._folder / "site", env)
        self._closing.callback(self._site.stop)
        self._client = await self._site.start()
        self._starter = Starter(self._site.env)
        self._closing.callback(self._starter.close)

    def close(self) -> None:
        self._closing.close()

    # --- Delivery ---------------------------------------------------------------------------------------------------

    async def the_full_video_is_delivered(self) -> None:
        result = await self._result("full", f"a {MARK} [sim:ok,label=full]")
        assert (result.outcome, round(result.video.duration_seconds)) == ("full", 15)
        _whole(result.video)

    async def the_short_clip_is_delivered_where_the_extension_failed(self) -> None:
        result = await self._result("short", f"a {MARK} [sim:extend_failed,label=short]")
        assert (result.outcome, round(result.video.duration_seconds)) == ("fallback", 8)
        _whole(result.video)

    async def the_gateways_own_route_serves_it_where_the_link_is_dead(self) -> None:
        result = await self._result("dead", f"a {MARK} [sim:links_expired,label=dead]")
        assert (result.outcome, round(result.video.duration_seconds)) == ("full", 15)

    async def the_link_serves_it_where_the_gateways_own_route_is_broken(self) -> None:
        result = await self._result("broken", f"a {MARK} [sim:content_502,label=broken]")
        assert (result.outcome, round(result.video.duration_seconds)) == ("full", 15)

    async def a_task_that_the_gateway_lost_is_found_on_its_other_route(self) -> None:
        result = await self._result("lost", f"a {MARK} [sim:task_lost,recovers,label=lost]")
        assert result.outcome == "full"

    async def a_local_image_is_sent_in_a_way_that_is_taken(self) -> None:
        prompt = f"a {MARK} [sim:ok,label=image]"
        run = await self._starter("generate", *flags(prompt), "--image", str(self._image), "--key", "image", "--json")
        assert (run.code, run.json().get("outcome")) == (0, "full"), run.out
        sent = self.simulator.posts(prompt)[-1]["images"]
        assert [image["sha256"] for image in sent] == [hashlib.sha256(self._image.read_bytes()).hexdigest()]

    # --- Money ------------------------------------------------------------------------------------------------------

    async def what_it_cost_is_known(self) -> None:
        assert (await self._result("cost", f"a {MARK} [sim:ok,label=cost]")).quota == PRICE

    async def what_was_refunded_cost_nothing(self) -> None:
        result = await self._result("refund", f"a {MARK} [sim:extend_failed,label=refund]")
        assert (result.quota, result.refunded) == (0, True)

    async def a_key_without_quota_pays_nothing(self) -> None:
        prompt = f"a {MARK} [sim:key_without_quota,label=empty]"
        await self._client.start("empty", request(prompt))
        with pytest.raises(GenerationFailure) as failure:
            await self._client.result("empty")
        assert (failure.value.kind, failure.value.details.paid) == ("SubmissionRefused", Paid.NO)
        assert failure.value.details.gateway_code == "pre_consume_token_quota_failed"
        assert failure.value.details.key_problem is KeyProblem.OUT_OF_QUOTA
        assert self.simulator.paid(prompt) == 0

    async def a_key_out_of_quota_is_waited_for_where_that_is_wanted(self) -> None:
        prompt = f"a {MARK} [sim:key_without_quota,times=1,label=wait]"
        await self._client.start("wait", request(prompt, on_key_refused="wait"))
        waited = []
        while status := await self._waits_for_key("wait"):
            waited.append(status)
            # The quota is there again. Asked twice, it may be on its way already.
            with contextlib.suppress(DecisionRejected):
                await self._client.poll_now("wait")
        assert waited
        assert {(one.attention, one.key_problem) for one in waited} == {
            (Attention.NEEDS_API_KEY, KeyProblem.OUT_OF_QUOTA)
        }
        assert Paid.YES not in {one.paid for one in waited}
        result = await self._client.result("wait")
        assert (result.outcome, self.simulator.paid(prompt)) == ("full", 1)

    # --- Doubt ------------------------------------------------------------------------------------------------------

    async def a_paid_task_whose_answer_was_lost_is_found_in_the_list(self) -> None:
        prompt = f"a {MARK} [sim:submit_reset,label=reset]"
        # The list counts once it shows a task that is known to be ours.
        await self._result("before", f"a {MARK} [sim:ok,label=before]")
        await self._client.start("reset", request(prompt, model="veo_3_1-remix"))
        # A person may decide at once; nobody needs to: it is adopted when the gateway must be done with it.
        result = await self._client.result("reset")
        (post,) = self.simulator.posts(prompt)
        assert (result.outcome, result.task_id) == ("full", post["task_id"])

    async def an_answered_error_is_sent_again_only_when_a_person_says_so(self) -> None:
        """Against the document's gateway the task was made, and is found; the other one gave the money back."""
        prompt = f"a {MARK} [sim:do_request_failed,times=1,label=error]"
        await self._client.start("error", request(prompt, model="veo_3_1-hd-remix"))
        await self._ends_paid_once("error", prompt, gave_back=self._like == NEWAPI)

    async def an_answered_error_names_its_request_to_whoever_decides(self) -> None:
        """The account's usage log can be searched for it."""
        prompt = f"a {MARK} [sim:new_api_panic,label=panic]"
        await self._client.start("panic", request(prompt, model="veo_3_1-fast-hd-remix"))
        status = await self._asks("panic")
        if self._like == DOCUMENT:
            assert status is None, "its task is in the list"
            return
        assert status is not None
        (post,) = self.simulator.posts(prompt)
        assert any(post["request_id"] in line for line in status.evidence), status.evidence

    async def a_submission_whose_client_left_is_paid_once(self) -> None:
        """The one gateway goes on and is paid, the other one gives it back."""
        prompt = f"a {MARK} [sim:submit_hang,times=1,label=hang]"
        await self._client.start("hang", request(prompt, model="veo_3_1-fl-remix", images=[_LINK]))
        await self._ends_paid_once("hang", prompt, gave_back=self._like == NEWAPI)

    async def an_empty_list_of_a_broken_database_is_no_evidence(self) -> None:
        """Alone: the whole list is broken meanwhile."""
        await self._set("account", {"tasks": "database_error"})
        prompt = f"a {MARK} [sim:submit_close,label=database]"
        await self._client.start("database", request(prompt, model="veo_3_1-hd-fl-remix", images=[_LINK]))
        status = await self._asks("database")
        assert status is not None
        assert status.paid is not Paid.NO
        assert len(self.simulator.posts(prompt)) == 1
        await self._set("account", {"tasks": ""})

    async def _ends_paid_once(self, key: str, prompt: str, *, gave_back: bool) -> None:
        """It ends full, paid once; where the money was given back, only after a person has been asked."""
        asked = await self._asks(key)
        assert len(self.simulator.posts(prompt)) == 1, "sent again unasked"
        if gave_back:
            assert asked is not None
            assert asked.paid is not Paid.YES
            assert self.simulator.paid(prompt) == 0
            await self._client.decide(key, Decision(action=DecisionAction.RESUBMIT))
        result = await self._client.result(key)
        assert (result.outcome, self.simulator.paid(prompt)) == ("full", 1)

    # --- Helpers ----------------------------------------------------------------------------------------------------

    async def _result(self, key: str, prompt: str) -> GenerateVideoResult:
        await self._client.start(key, request(prompt))
        result = await self._client.result(key)
        assert self.simulator.paid(prompt) == 1
        assert self.simulator.violations() == []
        return result

    async def _asks(self, key: str) -> GenerationStatus | None:
        """Wait until a generation asks for a decision; None where it knows its task without."""
        while True:
            snapshot = await self._client.snapshot(key)
            if snapshot.status and snapshot.status.stage is Stage.AWAITING_DECISION:
                return snapshot.status
            if not snapshot.running or (snapshot.status and snapshot.status.task_id):
                return None
            await asyncio.sleep(0.3)

    async def _waits_for_key(self, key: str) -> GenerationStatus | None:
        """Wait until a generation waits for the gateway's key; None where it knows its task."""
        while True:
            snapshot = await self._client.snapshot(key)
            if snapshot.status and snapshot.status.waiting_since:
                return snapshot.status
            if not snapshot.running or (snapshot.status and snapshot.status.task_id):
                return None
            await asyncio.sleep(0.3)

    async def _set(self, what: str, body: dict[str, Any]) -> None:
        async with httpx.AsyncClient() as http:
            (await http.post(f"{self.simulator.url}/_simulator/{what}", json=body)).raise_for_status()


_LINK = {"uri": "https://images.example/first.png"}


def _whole(video: StoredVideo) -> None:
    content = Path(unquote(urlsplit(video.uri).path)).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (video.sha256, video.bytes)


STORIES = [
    "the_full_video_is_delivered",
    "the_short_clip_is_delivered_where_the_extension_failed",
    "the_gateways_own_route_serves_it_where_the_link_is_dead",
    "the_link_serves_it_where_the_gateways_own_route_is_broken",
    "a_task_that_the_gateway_lost_is_found_on_its_other_route",
    "a_local_image_is_sent_in_a_way_that_is_taken",
    "what_it_cost_is_known",
    "what_was_refunded_cost_nothing",
    "a_key_without_quota_pays_nothing",
    "a_paid_task_whose_answer_was_lost_is_found_in_the_list",
    "an_answered_error_is_sent_again_only_when_a_person_says_so",
    "an_answered_error_names_its_request_to_whoever_decides",
    "a_submission_whose_client_left_is_paid_once",
]
ALONE = [
    # Another generation that is paid meanwhile shows that the key is good, and nobody would see this one wait.
    "a_key_out_of_quota_is_waited_for_where_that_is_wanted",
    "an_empty_list_of_a_broken_database_is_no_evidence",
]

Ends = dict[str, BaseException | None]


@pytest.fixture(scope="module")
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, png: bytes) -> Iterator[Ends]:
    gateway = Gateway(tmp_path_factory.mktemp("gateways") / request.param, request.param, png)
    found: Ends = {}

    async def one(story: str) -> None:
        try:
            async with asyncio.timeout(STORY_SECONDS):
                await getattr(gateway, story)()
        except BaseException as error:  # noqa: BLE001 - raised again by the story's test
            found[story] = error
        else:
            found[story] = None

    async def play() -> Ends:
        await gateway.start()
        await asyncio.gather(*(one(story) for story in chosen(request, STORIES)))
        for story in chosen(request, ALONE):
            await one(story)
        return found

    try:
        yield asyncio.run(play())
    finally:
        gateway.close()


# The stories run in the first one's time. What the document's gateway does, `test_e2e_distributed` shows in part.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ends", [NEWAPI, pytest.param(DOCUMENT, marks=pytest.mark.system)], indirect=True)
@pytest.mark.parametrize("story", [*STORIES, *ALONE])
def test_gateway(story: str, ends: Ends) -> None:
    if error := ends[story]:
        raise error
