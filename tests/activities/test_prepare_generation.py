import io
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from longtake.models import GenerateVideoInput, Paid, PrepareOrder
from longtake.storage import Store
from simulator import Simulator
from simulator.wire import Origin
from tests.activities.conftest import POLICY, Hire, Worker
from tests.activities.failing import failure_of
from tests.longtake.s3_server import Environ, S3Server

Request = Callable[..., GenerateVideoInput]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 36), "navy").save(content, "PNG")
    return content.getvalue()


async def test_what_is_good_brings_the_policy_and_pays_nothing(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    await worker.store.put("mine/first.png", picture())
    request = request_for(images=[{"uri": "mine/first.png"}])
    assert await worker.run(worker.submission.prepare_generation, PrepareOrder(request=request)) == POLICY
    assert [entry["path"] for entry in sim.ledger.entries] == ["/v1/models"]
    assert sim.ledger.submissions() == []


async def test_the_gateway_is_asked_once_for_many_generations(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    for _ in range(5):
        await worker.run(worker.submission.prepare_generation, PrepareOrder(request=request_for()))
    assert len(sim.ledger.entries) == 1


async def test_a_wrong_key_is_told_before_anything_is_paid(hire: Hire, sim: Simulator, request_for: Request) -> None:
    worker = hire(key="expired-key")
    failure = await failure_of(worker.run(worker.submission.prepare_generation, PrepareOrder(request=request_for())))
    assert (failure.type, failure.retried, failure.details.paid) == ("SubmissionRefused", False, Paid.NO)
    assert failure.details.http_status == 401
    assert failure.details.request_id
    assert "LONGTAKE_GATEWAY_API_KEY" in failure.details.advice
    assert "expired-key" not in failure.message + failure.details.model_dump_json()
    assert sim.ledger.submissions() == []


async def test_a_web_page_is_no_gateway(hire: Hire, request_for: Request) -> None:
    site = Origin(Starlette(routes=[Route("/{path:path}", lambda _: HTMLResponse("<title>Welcome</title>"))]))
    await site.open("127.0.0.1")
    try:
        worker = hire(url=site.url)
        order = PrepareOrder(request=request_for())
        failure = await failure_of(worker.run(worker.submission.prepare_generation, order))
    finally:
        await site.close()
    assert (failure.type, failure.retried, failure.details.paid) == ("NotAGateway", False, Paid.NO)
    assert "LONGTAKE_GATEWAY_URL" in failure.details.advice
    assert "Welcome" in failure.message


async def test_a_gateway_that_cannot_be_reached_is_tried_again(hire: Hire, request_for: Request) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        worker = hire(url=f"http://127.0.0.1:{unused.getsockname()[1]}")
        order = PrepareOrder(request=request_for())
        failure = await failure_of(worker.run(worker.submission.prepare_generation, order))
    assert (failure.type, failure.retried, failure.details.paid) == ("GatewayUnreachable", True, Paid.NO)
    assert "LONGTAKE_GATEWAY_URL" in failure.message


@pytest.mark.parametrize("mode", ["503", "refuse"])
async def test_a_gateway_in_an_outage_is_not_concluded_from(
    worker: Worker, sim: Simulator, request_for: Request, mode: str
) -> None:
    """A 503 of the free route says nothing about submissions; a closed port does."""
    await sim.outage(60, mode)
    order = PrepareOrder(request=request_for())
    if mode == "503":
        assert await worker.run(worker.submission.prepare_generation, order) == POLICY
        return
    import asyncio  # noqa: PLC0415

    await asyncio.sleep(0.2)
    failure = await failure_of(worker.run(worker.submission.prepare_generation, order))
    assert (failure.type, failure.retried) == ("GatewayUnreachable", True)
