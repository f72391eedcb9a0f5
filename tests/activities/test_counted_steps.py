"""What activities count: the real ones, against the simulator."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities import measuring
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    InvalidResponse,
    KeyRefused,
    ResponseLost,
    TaskNotFound,
)
from longtake.models import (
    DeliverInput,
    DeliveryKind,
    GenerateVideoInput,
    PollInput,
    PrepareInput,
    SubmissionReceipt,
    SubmitInput,
)
from longtake.observability.metrics import OTHER
from longtake.temporal.connection import sdk_runtime
from tests.activities.conftest import Hire, Worker
from tests.end_to_end.processes import free_port
from tests.exposition import Exposition

Request = Callable[..., GenerateVideoInput]
ADDRESS = f"127.0.0.1:{free_port()}"


class Counting:
    """A worker's activities, and what they have counted."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._meter = sdk_runtime(ADDRESS).metric_meter
        self._before = Exposition.of(ADDRESS)

    async def run(self, activity: Callable[..., Any], input: object) -> Any:
        environment = self.worker.environment
        environment.metric_meter = self._meter
        environment.info = replace(environment.info, activity_type=activity.__name__)
        return await self.worker.run(activity, input)

    async def fail(self, activity: Callable[..., Any], input: object) -> ApplicationError:
        with pytest.raises(ApplicationError) as failure:
            await self.run(activity, input)
        return failure.value

    async def counted(self, name: str, label: str) -> dict[tuple[str, ...], float]:
        after = await asyncio.to_thread(Exposition.of, ADDRESS)
        return after.added(self._before, name, "activity_type", label)


@pytest.fixture
def counts(worker: Worker) -> Counting:
    return Counting(worker)


async def submitted(counts: Counting, request: GenerateVideoInput) -> SubmissionReceipt:
    input = SubmitInput(key="order-1", request=request)
    return SubmissionReceipt.model_validate(await counts.run(counts.worker.submission.submit_generation, input))


async def test_a_clip_is_counted_when_it_is_delivered_and_not_again(
    worker: Worker, counts: Counting, request_for: Request
) -> None:
    receipt = await submitted(counts, request_for())
    await counts.run(worker.polling.query_generation, PollInput(key="order-1", task_id=receipt.task_id))
    input = DeliverInput(key="order-1", task_id=receipt.task_id, kind=DeliveryKind.FULL)
    first = await counts.run(worker.delivery.deliver_video, input)
    second = await counts.run(worker.delivery.deliver_video, input)
    assert second.already_stored
    expected = {("deliver_video", "full"): first.video.bytes}
    assert await counts.counted("longtake_delivered_bytes_total", "clip") == expected


async def test_a_refused_key_is_counted_by_type_and_by_code(hire: Hire, request_for: Request) -> None:
    worker = hire(key="a-wrong-key")
    counts = Counting(worker)
    failure = await counts.fail(
        worker.submission.prepare_generation, PrepareInput(key="order-1", request=request_for())
    )
    assert failure.type == "SubmissionRefused"
    assert await counts.counted("longtake_step_failures_total", "type") == {("prepare_generation", failure.type): 1}
    assert await counts.counted("longtake_gateway_errors_total", "code") == {("prepare_generation", "http_401"): 1}


@pytest.mark.parametrize(
    ("tag", "kind", "code"),
    [
        ("no_channel", "GatewayBusy", "model_not_found"),
        ("insufficient_quota", "SubmissionRefused", "insufficient_user_quota"),
        ("rate_limited", "GatewayBusy", "http_429"),
        ("do_request_failed", "SubmissionOutcomeUnknown", "do_request_failed"),
        ("submit_502", "SubmissionOutcomeUnknown", "http_502"),
        ("submit_not_json", "SubmissionOutcomeUnknown", "unreadable"),
    ],
)
async def test_a_submission_that_fails_is_counted_by_the_gateways_code(
    counts: Counting, request_for: Request, tag: str, kind: str, code: str
) -> None:
    input = SubmitInput(key="order-1", request=request_for(tag))
    failure = await counts.fail(counts.worker.submission.submit_generation, input)
    assert failure.type == kind
    assert await counts.counted("longtake_step_failures_total", "type") == {("submit_generation", kind): 1}
    assert await counts.counted("longtake_gateway_errors_total", "code") == {("submit_generation", code): 1}


async def test_what_is_not_the_gateways_fault_is_no_gateway_error(
    worker: Worker, counts: Counting, request_for: Request
) -> None:
    request = request_for(images=[{"uri": "images/none.png"}])
    await counts.fail(worker.submission.prepare_generation, PrepareInput(key="order-1", request=request))
    assert await counts.counted("longtake_step_failures_total", "type") == {("prepare_generation", "InvalidRequest"): 1}
    assert await counts.counted("longtake_gateway_errors_total", "code") == {}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GatewayBusy("", status=503, code="model_not_found"), "model_not_found"),
        (GatewayBusy("", status=429), "http_429"),
        (KeyRefused("", status=403, code="a-code-that-nobody-knows"), "http_403"),
        (ResponseLost("", status=524), "http_524"),
        (ResponseLost(""), "no_answer"),
        (GatewayUnreachable(""), "unreachable"),
        (GatewayUnreachable("", status=521), "http_521"),
        (InvalidResponse("", status=200), "unreadable"),
        (InvalidResponse("", status=302), "unreadable"),
        (InvalidResponse("", status=404), "http_404"),
        (TaskNotFound("", status=400, code="task_not_exist"), "task_not_exist"),
        (TaskNotFound(""), OTHER),
        (GatewayBusy("", status=599), OTHER),
    ],
)
def test_the_codes_are_a_closed_set(error: GatewayError, code: str) -> None:
    assert measuring.gateway_code(error) == code


def test_outside_an_activity_nothing_is_counted() -> None:
    measuring.failed(GatewayBusy(""), "GatewayBusy")
