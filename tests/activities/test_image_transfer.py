"""A gateway whose channel takes no images as files: the same again as data URIs, a submission of its own."""

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from activities import exchange as exchange_module
from activities import submission as submission_module
from activities.submission import SubmissionActivities
from longtake.models import GenerateVideoInput, Paid, SubmissionReceipt, SubmitInput
from simulator import Simulator, SimulatorSettings, serve
from simulator.personalities import DOCUMENT, NEWAPI
from tests.activities.conftest import API_KEY, POLICY, Hire, Worker
from tests.activities.failing import failure_of

Request = Callable[..., GenerateVideoInput]


def picture(colour: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 36), colour).save(content, "PNG")
    return content.getvalue()


FIRST, SECOND = picture("navy"), picture("teal")


@pytest.fixture(params=[DOCUMENT, NEWAPI])
async def sim(request: pytest.FixtureRequest, tmp_path: Path, clips: Path) -> AsyncIterator[Simulator]:
    settings = SimulatorSettings(
        tmp_path / "simulator", API_KEY, cache_dir=clips, seconds=1e-6, like=request.param, image_files=False
    )
    async with serve(settings) as simulator:
        yield simulator


def transferring(worker: Worker, how: str) -> Worker:
    worker.submission = SubmissionActivities(
        gateway=worker.gateway,
        store=worker.store,
        ledger=worker.ledger,
        account_client=worker.account_client,
        policy=POLICY,
        image_transfer=how,
    )
    return worker


@pytest.fixture
async def frames(worker: Worker, request_for: Request) -> GenerateVideoInput:
    await worker.store.put("mine/first.png", FIRST)
    await worker.store.put("mine/last.png", SECOND)
    images = [{"uri": "mine/first.png"}, {"uri": "mine/last.png"}]
    return request_for(model="veo_3_1-fast-fl-remix", images=images)


async def submit(worker: Worker, request: GenerateVideoInput, key: str = "order-1") -> SubmissionReceipt:
    receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=key, request=request))
    assert isinstance(receipt, SubmissionReceipt)
    return receipt


async def test_they_are_sent_again_as_data_uris_in_their_order(
    worker: Worker, sim: Simulator, frames: GenerateVideoInput
) -> None:
    receipt = await submit(worker, frames)
    assert (receipt.slot, receipt.attached) == (2, False), "the ledger knows both submissions"
    assert await worker.ledger.outcome_of("order-1", 1) is None
    assert await worker.ledger.doubt("order-1", 1) is None, "the first made nothing, and says so"
    refused, taken = sim.ledger.submissions()
    assert (refused["paid"], taken["paid"]) == (False, True)
    wanted = [hashlib.sha256(image).hexdigest() for image in (FIRST, SECOND)]
    assert [image["sha256"] for image in taken["images"]] == wanted
    assert sim.ledger.paid()["total"] == 1


async def test_the_worker_remembers_it(worker: Worker, sim: Simulator, frames: GenerateVideoInput) -> None:
    await submit(worker, frames)
    assert (await submit(worker, frames, "order-2")).slot == 1
    assert len(sim.ledger.submissions()) == 3


async def test_a_second_start_finds_the_one_that_was_paid(
    hire: Hire, worker: Worker, sim: Simulator, frames: GenerateVideoInput
) -> None:
    receipt = await submit(worker, frames)
    found = await submit(hire(), frames)
    assert (found.task_id, found.attached) == (receipt.task_id, True)
    assert len(sim.ledger.submissions()) == 2


async def test_as_data_uris_from_the_start(worker: Worker, sim: Simulator, frames: GenerateVideoInput) -> None:
    assert (await submit(transferring(worker, "data_uri"), frames)).slot == 1
    assert len(sim.ledger.submissions()) == 1


async def test_as_files_only(worker: Worker, sim: Simulator, frames: GenerateVideoInput) -> None:
    failure = await failure_of(submit(transferring(worker, "file"), frames))
    assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionRefused", False, Paid.NO)
    assert failure.details.gateway_code == "invalid_media_input"
    assert len(sim.ledger.submissions()) == 1


async def test_links_are_not_sent_twice(worker: Worker, sim: Simulator, request_for: Request) -> None:
    """What is refused of them is no matter of files."""
    text = f"data:image/png;base64,{base64.b64encode(FIRST).decode()}"
    assert (await submit(worker, request_for(images=[{"uri": text}]))).slot == 1
    assert len(sim.ledger.submissions()) == 1


async def test_who_cancels_meanwhile_gets_no_second_submission(
    worker: Worker, sim: Simulator, frames: GenerateVideoInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange: Any = exchange_module.pay_once

    async def cancelled_meanwhile(*arguments: Any) -> Any:
        try:
            return await exchange(*arguments)
        finally:
            worker.environment.cancel()

    monkeypatch.setattr(submission_module, "pay_once", cancelled_meanwhile)
    with pytest.raises(asyncio.CancelledError):
        await submit(worker, frames)
    assert len(sim.ledger.submissions()) == 1
