"""Prompts that lie in the store: read before anything is paid, sent as they are, never shown."""

import hashlib
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.log_context import LogContext
from longtake.gateway.errors import ResponseLost
from longtake.models import (
    AwaitKeyInput,
    DeliverInput,
    DeliveryKind,
    ExtensionInput,
    GenerateVideoInput,
    OnKeyRefused,
    Paid,
    PollInput,
    PrepareInput,
    ReconcileInput,
    ResolveInput,
    SubmitInput,
    TaskState,
)
from longtake.observability.logs import TextFormatter
from longtake.request.prompts import store_prompts
from longtake.request.rules import prompt_path
from longtake.storage import Store
from simulator import Simulator
from simulator.wire import Origin
from tests.activities.conftest import Hire, Worker
from tests.activities.failing import failure_of

KEY = "order-1"
MARK = "a pangolin on the moon"
Request = Callable[..., GenerateVideoInput]


@pytest.fixture
async def hidden(store: Store, request_for: Request) -> GenerateVideoInput:
    return await store_prompts(store, request_for(prompt=f"{MARK} [sim:ok]", prompt_extend=f"{MARK} leaves"))


async def test_the_gateway_gets_the_texts_and_the_order_has_none(
    worker: Worker, sim: Simulator, hidden: GenerateVideoInput
) -> None:
    input = SubmitInput(key=KEY, request=hidden)
    assert MARK not in input.model_dump_json()
    await worker.run(worker.submission.prepare_generation, PrepareInput(key=KEY, request=hidden))
    await worker.run(worker.submission.submit_generation, input)
    (entry,) = sim.ledger.submissions()
    assert (entry["prompt"], entry["prompt_extend"]) == (f"{MARK} [sim:ok]", f"{MARK} leaves")
    again = await worker.run(worker.submission.submit_generation, input)
    assert again.attached


async def test_a_paid_extension_gets_its_text_too(worker: Worker, sim: Simulator, request_for: Request) -> None:
    hidden = await store_prompts(worker.store, request_for("extend_failed,remix", prompt_extend=f"{MARK} leaves"))
    receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=KEY, request=hidden))
    look = await worker.run(worker.polling.query_generation, PollInput(key=KEY, task_id=receipt.task_id))
    retry = SubmitInput(key=KEY, request=hidden, extension=ExtensionInput(remix_id=look.remix_id, number=1))
    await worker.run(worker.submission.submit_extension, retry)
    assert [entry["prompt"] for entry in sim.ledger.submissions()][-1] == f"{MARK} leaves"


async def absent(_: Store, __: GenerateVideoInput) -> str:
    return prompt_path("never stored")


async def changed(store: Store, request: GenerateVideoInput) -> str:
    await store.put(request.prompt, f"{MARK}, but another one".encode())
    return request.prompt


async def named(store: Store, content: bytes) -> str:
    path = f"prompts/{hashlib.sha256(content).hexdigest()}.txt"
    await store.put(path, content)
    return path


async def too_long(store: Store, _: GenerateVideoInput) -> str:
    return await named(store, MARK.encode() * 1_000)


async def much_too_long(store: Store, _: GenerateVideoInput) -> str:
    return await named(store, MARK.encode() * 10_000)


async def blank(store: Store, _: GenerateVideoInput) -> str:
    return await named(store, b"  ")


async def no_text(store: Store, _: GenerateVideoInput) -> str:
    return await named(store, b"\xff\xfe")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (absent, "is not in the store"),
        (changed, "is not what its name says"),
        (too_long, "at most 10,000 characters"),
        (much_too_long, "at most 10,000 characters"),
        (blank, "it is empty"),
        (no_text, "UTF-8"),
    ],
)
async def test_what_is_wrong_with_a_stored_prompt_is_reported_and_nothing_is_sent(
    worker: Worker, sim: Simulator, hidden: GenerateVideoInput, spoil: Callable[..., Any], says: str
) -> None:
    request = hidden.model_copy(update={"prompt": await spoil(worker.store, hidden)})
    for activity, input in (
        (worker.submission.prepare_generation, PrepareInput(key=KEY, request=request)),
        (worker.submission.submit_generation, SubmitInput(key=KEY, request=request)),
    ):
        failure = await failure_of(worker.run(activity, input))
        assert (failure.type, failure.retried, failure.details.paid) == ("InvalidRequest", False, Paid.NO)
        assert [problem.field for problem in failure.details.problems] == ["prompt"]
        assert says in failure.message
        assert MARK not in failure.message
    assert sim.ledger.submissions() == []
    assert await worker.ledger.is_untouched(KEY)


async def test_what_was_paid_is_collected_without_the_prompts(worker: Worker, hidden: GenerateVideoInput) -> None:
    input = SubmitInput(key=KEY, request=hidden)
    paid = await worker.run(worker.submission.submit_generation, input)
    await worker.store.delete(hidden.prompt)
    await worker.run(worker.submission.prepare_generation, PrepareInput(key=KEY, request=hidden))
    assert (await worker.run(worker.submission.submit_generation, input)).task_id == paid.task_id


ECHOES = {
    "whole": f"{MARK} [sim:ok]",
    "white space": "a\n  pangolin\t on the   moon",
    "fragment": "…the words PANGOLIN and moon are not allowed",
    "spelt out": "p-a-n-g-o-l-i-n",
}


@pytest.fixture(params=[*ECHOES.values()], ids=[*ECHOES])
async def echoing(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[int], Awaitable[str]]]:
    """Opens a gateway that answers every request with a status and what it was asked for, in its own way."""
    words = f"violates the rules: {request.param} (E-1005)"
    sites: list[Origin] = []

    async def open_it(status: int) -> str:
        def answer(_: HttpRequest) -> JSONResponse:
            if status != 200:
                return JSONResponse({"error": {"message": words, "code": words}}, status_code=status)
            record = {"id": "v1", "status": "failed", "error": {"code": "generate_failed", "message": words}}
            return JSONResponse({"task_id": "task_1", "status": "FAILURE", "fail_reason": words, "data": record})

        sites.append(Origin(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])))
        await sites[0].open("127.0.0.1")
        return sites[0].url

    yield open_it
    for site in sites:
        await site.close()


def shows_the_prompt(told: str) -> bool:
    letters = "".join(char for char in told.lower() if char.isalpha())
    return "pangolin" in letters or "E-1005" in told


def kept_words(store_folder: Path) -> str:
    return "".join(path.read_text() for path in (store_folder / "words").rglob("*.txt"))


@pytest.mark.parametrize("lost", [False, True], ids=["prompts-there", "prompts-gone"])
@pytest.mark.parametrize("status", [200, 403, 404, 500], ids=["verdict", "refused", "not found", "trouble"])
async def test_a_gateway_that_repeats_the_prompt_is_not_repeated(  # noqa: PLR0917 - fixtures
    hire: Hire,
    hidden: GenerateVideoInput,
    store: Store,
    tmp_path: Path,
    echoing: Callable[[int], Awaitable[str]],
    status: int,
    *,
    lost: bool,
) -> None:
    if lost:
        await store.delete(hidden.prompt)
    worker = hire(url=await echoing(status))
    look = worker.run(worker.polling.query_generation, PollInput(key=KEY, task_id="task_1", hide_words=True))
    if status == 200:
        record = await look
        assert (record.state, record.error_code) == (TaskState.GENERATE_FAILED, "generate_failed")
        told = record.model_dump_json()
    else:
        failure = await failure_of(look)
        assert failure.details.http_status == status
        told = failure.message + failure.details.model_dump_json()
    assert not shows_the_prompt(told)
    assert "E-1005" in kept_words(tmp_path / "store"), "a person finds them"
    (kept,) = (tmp_path / "store" / "words").rglob("*.txt")
    assert str(kept.relative_to(tmp_path / "store")) in told


@pytest.mark.parametrize("status", [400, 403, 429, 502])
async def test_a_refused_submission_does_not_repeat_it_either(
    hire: Hire, hidden: GenerateVideoInput, tmp_path: Path, echoing: Callable[[int], Awaitable[str]], status: int
) -> None:
    worker = hire(url=await echoing(status))
    input = SubmitInput(key=KEY, request=hidden)
    failure = await failure_of(worker.run(worker.submission.submit_generation, input))
    assert failure.details.http_status == status
    assert not shows_the_prompt(failure.message + failure.details.model_dump_json() + repr(worker.heartbeats))
    assert "E-1005" in kept_words(tmp_path / "store")


async def test_a_prompt_that_is_not_hidden_hides_no_words(
    hire: Hire, tmp_path: Path, echoing: Callable[[int], Awaitable[str]]
) -> None:
    worker = hire(url=await echoing(200))
    record = await worker.run(worker.polling.query_generation, PollInput(key=KEY, task_id="task_1"))
    assert "E-1005" in record.error_message
    assert not (tmp_path / "store" / "words").exists()


# --- What the worker's log says --------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that a worker's log gets, as it is written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(TextFormatter())
    root, of_activities = logging.getLogger(), logging.getLogger("temporalio.activity")
    levels = [(logger, logger.level) for logger in (root, of_activities)]
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    of_activities.setLevel(logging.NOTSET)  # tests of the workflow silence it, in the same process
    yield written
    root.removeHandler(handler)
    for logger, level in levels:
        logger.setLevel(level)


class _Inner(ActivityInboundInterceptor):
    """What comes after all interceptors: the activity, and what the SDK logs of its failure."""

    def __init__(self) -> None:
        """There is no next one."""

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        return await input.fn(*input.args)


async def run_as_a_worker_does(worker: Worker, activity: Callable[..., Any], input: object) -> Any:
    async def run(input: object) -> Any:
        noting = LogContext().intercept_activity(_Inner())
        given = ExecuteActivityInput(fn=activity, args=[input], executor=None, headers={})
        try:
            return await noting.execute_activity(given)
        except Exception as error:
            logging.getLogger("temporalio.activity").warning("Completing activity as failed", exc_info=error)
            raise

    return await worker.run(run, input)


def orders(worker: Worker, request: GenerateVideoInput, *, hidden: bool) -> Iterator[tuple[Callable[..., Any], object]]:
    """Every step that asks the gateway something."""
    task = {"key": KEY, "task_id": "task_1", "hide_words": hidden}
    yield worker.submission.prepare_generation, PrepareInput(key=KEY, request=request)
    yield worker.submission.submit_generation, SubmitInput(key=KEY, request=request)
    adopting = SubmitInput(key="order-2", request=request.model_copy(update={"task_id": "task_1"}))
    yield worker.submission.submit_generation, adopting
    retry = SubmitInput(key=KEY, request=request, extension=ExtensionInput(remix_id="video_1", number=1))
    yield worker.submission.submit_extension, retry
    yield worker.submission.await_api_key, AwaitKeyInput(key=KEY, hide_words=hidden)
    reconciled = ReconcileInput(key=KEY, slot=1, model=request.model, hide_words=hidden)
    yield worker.submission.reconcile_submission, reconciled
    yield worker.submission.resolve_submission, ResolveInput(key=KEY, slot=1, task_id="task_1", digest="")
    yield worker.polling.query_generation, PollInput.model_validate(task)
    yield worker.delivery.deliver_video, DeliverInput.model_validate({**task, "kind": DeliveryKind.FULL})


@pytest.mark.parametrize("echoing", [ECHOES["spelt out"]], indirect=True)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
async def test_no_step_of_a_generation_with_hidden_prompts_logs_the_gateways_words(
    hire: Hire, hidden: GenerateVideoInput, log: io.StringIO, echoing: Callable[[int], Awaitable[str]], status: int
) -> None:
    worker = hire(url=await echoing(status))
    for activity, input in orders(worker, hidden, hidden=True):
        told = ""
        try:
            told = repr(await run_as_a_worker_does(worker, activity, input))
        except ApplicationError as error:
            told = f"{error} {error.details}"
        assert not shows_the_prompt(told), activity.__name__
    assert "Completing activity as failed" in log.getvalue()
    assert not shows_the_prompt(log.getvalue())


async def test_where_the_other_route_fails_the_log_has_no_words_but_says_what_failed(
    hire: Hire, log: io.StringIO, request_for: Request
) -> None:
    """The one place where a step goes on although the gateway refused it something: nothing but the log tells."""
    worker = hire()
    receipt = await worker.run(worker.submission.submit_generation, SubmitInput(key=KEY, request=request_for()))
    query = worker.gateway.query

    async def echo_on_the_other_route(task_id: str, *, second_path: bool = False) -> Any:
        if second_path:
            raise ResponseLost(f"the gateway failed: {MARK}", status=502, request_id="r1")
        return await query(task_id)

    with mock.patch.object(worker.gateway, "query", echo_on_the_other_route):
        for hidden in (False, True):
            log.truncate(0)
            input = PollInput(key=KEY, task_id=receipt.task_id, hide_words=hidden)
            await run_as_a_worker_does(worker, worker.polling.query_generation, input)
            assert (MARK in log.getvalue()) is not hidden
            assert "error_type=ResponseLost" in log.getvalue()
            assert "request_id=r1" in log.getvalue()


@pytest.mark.parametrize("echoing", [ECHOES["spelt out"]], indirect=True)
async def test_words_about_one_generation_are_not_remembered_for_another(
    hire: Hire, hidden: GenerateVideoInput, request_for: Request, echoing: Callable[[int], Awaitable[str]]
) -> None:
    """The API key's refusal is: every generation that waits for the key is told of it."""
    worker = hire(url=await echoing(403))
    waiting = {"on_key_refused": OnKeyRefused.WAIT}
    first = SubmitInput(key=KEY, request=hidden.model_copy(update=waiting))
    await failure_of(worker.run(worker.submission.submit_generation, first))
    second = SubmitInput(key="order-2", request=request_for(**waiting))
    for activity, input in (
        (worker.submission.submit_generation, second),
        (worker.submission.await_api_key, AwaitKeyInput(key="order-2")),
    ):
        failure = await failure_of(worker.run(activity, input))
        assert failure.details.http_status == 403
        assert not shows_the_prompt(failure.message + failure.details.model_dump_json())
