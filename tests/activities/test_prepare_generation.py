import contextlib
import io
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from longtake.delivery.download import Fetcher
from longtake.delivery.task_records import load_request
from longtake.models import GenerateVideoInput, GenerationPolicy, Paid, PrepareInput, SubmitInput
from longtake.request import rules
from longtake.request.rules import request_digest
from longtake.storage import Store
from longtake.submission.ledger import Submission
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
    assert await worker.run(worker.submission.prepare_generation, PrepareInput(request=request)) == POLICY.model_copy(
        update={"ledger_id": await worker.ledger.identity()}
    )
    assert [entry["path"] for entry in sim.ledger.entries] == ["/v1/models"]
    assert sim.ledger.submissions() == []


async def test_the_gateway_is_asked_once_for_many_generations(
    worker: Worker, sim: Simulator, request_for: Request
) -> None:
    for _ in range(5):
        await worker.run(worker.submission.prepare_generation, PrepareInput(request=request_for()))
    assert len(sim.ledger.entries) == 1


async def test_nothing_is_ordered_that_could_not_be_downloaded(
    worker: Worker, sim: Simulator, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody listens there; the gateway's client is open already
    async with Fetcher(sim.url) as blocked:
        worker.submission._fetcher = blocked
        input = PrepareInput(request=request_for())
        failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("DownloadsBlocked", True, Paid.NO)
    assert "HTTP_PROXY" in failure.message


async def test_what_was_paid_for_is_collected_though_downloads_are_blocked_now(
    worker: Worker, sim: Simulator, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.run(worker.submission.submit_generation, SubmitInput(key="paid", request=request_for()))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with Fetcher(sim.url) as blocked:
        worker.submission._fetcher = blocked
        await worker.run(worker.submission.prepare_generation, PrepareInput(key="paid", request=request_for()))


async def test_a_task_to_take_over_is_polled_first(worker: Worker, request_for: Request) -> None:
    input = PrepareInput(key="theirs", request=request_for(task_id="task_mistyped"))
    failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("InvalidRequest", False, Paid.NO)
    assert [problem.field for problem in failure.details.problems] == ["task_id"]


async def test_a_task_to_take_over_that_is_there(worker: Worker, sim: Simulator, request_for: Request) -> None:
    paid = await worker.run(worker.submission.submit_generation, SubmitInput(key="ours", request=request_for()))
    input = PrepareInput(key="theirs", request=request_for(task_id=paid.task_id))
    await worker.run(worker.submission.prepare_generation, input)
    assert len(sim.ledger.submissions()) == 1


async def test_a_wrong_key_is_reported_before_anything_is_paid(
    hire: Hire, sim: Simulator, request_for: Request
) -> None:
    worker = hire(key="expired-key")
    failure = await failure_of(worker.run(worker.submission.prepare_generation, PrepareInput(request=request_for())))
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
        input = PrepareInput(request=request_for())
        failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
    finally:
        await site.close()
    assert (failure.type, failure.retried, failure.details.paid) == ("NotAGateway", False, Paid.NO)
    assert "LONGTAKE_GATEWAY_URL" in failure.details.advice
    assert "Welcome" in failure.message


async def test_a_gateway_that_cannot_be_reached_is_tried_again(hire: Hire, request_for: Request) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        worker = hire(url=f"http://127.0.0.1:{unused.getsockname()[1]}")
        input = PrepareInput(request=request_for())
        failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
    assert (failure.type, failure.retried, failure.details.paid) == ("GatewayUnreachable", True, Paid.NO)
    assert "LONGTAKE_GATEWAY_URL" in failure.message


async def test_an_outage_of_the_free_route_proves_nothing(worker: Worker, sim: Simulator, request_for: Request) -> None:
    await sim.outage(60)
    input = PrepareInput(request=request_for())
    assert await worker.run(worker.submission.prepare_generation, input) == POLICY.model_copy(
        update={"ledger_id": await worker.ledger.identity()}
    )


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ({"model": "veo_4", "prompt": " "}, {"model", "prompt"}),
        ({"images": [{"uri": "mine/missing.png"}]}, {"images[0].uri"}),
        ({"images": [{"uri": "mine/text.png"}]}, {"images[0].uri"}),
        ({"images": [{"uri": "mine/good.png"}, {"uri": "mine/cut.png"}]}, {"images[1].uri"}),
    ],
    ids=["broken rules", "an absent image", "no image at all", "a cut image"],
)
async def test_an_invalid_request_names_every_problem(
    worker: Worker, sim: Simulator, request_for: Request, fields: dict[str, Any], problems: set[str]
) -> None:
    await worker.store.put("mine/good.png", picture())
    await worker.store.put("mine/cut.png", picture()[:-40])
    await worker.store.put("mine/text.png", b"no picture")
    input = PrepareInput(request=request_for(**fields))
    failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
    assert (failure.type, failure.retried, failure.details.paid, failure.benign) == (
        "InvalidRequest",
        False,
        Paid.NO,
        True,
    )
    assert {problem.field for problem in failure.details.problems} == problems
    assert all(problem.rule for problem in failure.details.problems)
    assert sim.ledger.entries == []


async def test_a_store_that_is_gone_is_tried_again_and_nothing_is_asked(
    worker: Worker, sim: Simulator, request_for: Request, tmp_path: Path
) -> None:
    (tmp_path / "store").rename(tmp_path / "unmounted")
    input = PrepareInput(request=request_for())
    failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
    # Nothing is sent; but whether this key was paid before cannot be read either.
    assert (failure.type, failure.retried, failure.details.paid) == ("LedgerUnavailable", True, Paid.UNKNOWN)
    assert "LONGTAKE_STORE_URL" in failure.details.advice
    assert sim.ledger.entries == []


@pytest.mark.parametrize("fault", ["read-only", "no create-if-absent"])
async def test_a_store_that_cannot_hold_the_ledger_is_refused(
    hire: Hire, s3: S3Server, request_for: Request, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

    def spoil(environ: Environ) -> tuple[str, bytes] | None:
        if environ["REQUEST_METHOD"] != "PUT":
            return None
        if fault == "read-only":
            return "403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return None

    worker = hire(store=Store.open(s3.url(fault.replace(" ", "-"))))
    await worker.ledger.establish()
    monkeypatch.setattr(s3, "fault", spoil)
    input = PrepareInput(request=request_for())
    failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
    assert (failure.type, failure.details.paid) == ("StoreRefused", Paid.NO)
    # Nothing is paid yet: whoever asked is told at once, rather than after an hour of patience.
    assert not failure.retried
    assert ("permission" if fault == "read-only" else "If-None-Match") in failure.message


async def test_retries_of_the_extension_that_earlier_runs_sent_are_counted(
    worker: Worker, request_for: Request
) -> None:
    """What they paid for, or perhaps did, is collected before anything else; a key that is new has none."""
    input = PrepareInput(key="again", request=request_for())

    async def prepared() -> int:
        policy: GenerationPolicy = await worker.run(worker.submission.prepare_generation, input)
        return policy.extensions_sent

    async def paid(key: str, task_id: str) -> None:
        await worker.ledger.adopt(key, Submission(digest="d", writer="test", model="m"), task_id)

    assert await prepared() == 0
    await paid("again", "task_1")
    assert await prepared() == 0
    await paid("again#extend-1", "task_2")
    assert await prepared() == 1
    await paid("again#extend-2", "task_3")
    assert await prepared() == 2


async def test_a_full_disk_is_tried_again_and_works_once_there_is_room(
    hire: Hire, sim: Simulator, request_for: Request, tmp_path: Path
) -> None:
    """A really full file system: it used to end every new generation at its first attempt."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], check=False)  # noqa: ASYNC221 - it is quick; wherever the system has it
    if mounted.returncode:
        pytest.skip("mounting a small file system needs a privilege that this machine does not give")
    try:
        worker = hire(store=Store.open(str(folder)))
        await worker.ledger.establish()
        ballast = folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        input = PrepareInput(request=request_for(), key="order-1")
        failure = await failure_of(worker.run(worker.submission.prepare_generation, input))
        assert (failure.type, failure.retried, failure.details.paid) == ("StoreRefused", True, Paid.NO)
        submit = SubmitInput(request=request_for(), key="order-1")
        failure = await failure_of(worker.run(worker.submission.submit_generation, submit))
        assert (failure.type, failure.retried) == ("LedgerUnavailable", True)
        assert sim.ledger.submissions() == []
        ballast.unlink()
        await worker.run(worker.submission.prepare_generation, input)
        await worker.run(worker.submission.submit_generation, submit)
        assert sim.ledger.paid()["total"] == 1
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: ASYNC221 - likewise


async def test_the_request_is_kept_for_a_temporal_that_forgets_it(worker: Worker, request_for: Request) -> None:
    request = request_for(keep_first=True)
    await worker.run(worker.submission.prepare_generation, PrepareInput(key="order-1", request=request))
    assert await load_request(worker.store, "order-1", request_digest(request)) == request
    refused = request_for(images=[{"uri": "mine/absent.png"}])
    await failure_of(worker.run(worker.submission.prepare_generation, PrepareInput(key="order-1", request=refused)))
    assert await load_request(worker.store, "order-1", request_digest(refused)) is None


@pytest.mark.parametrize("field", ["model", "size"])
async def test_what_was_paid_is_attached_to_though_its_model_or_size_is_retired(
    worker: Worker, sim: Simulator, request_for: Request, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    request = request_for("ok", size="1280x720")
    input = SubmitInput(key="order-1", request=request)
    paid = await worker.run(worker.submission.submit_generation, input)
    table = {"model": "MODELS", "size": "SIZES"}[field]
    offered = {name: row for name, row in getattr(rules, table).items() if name != getattr(request, field)}
    monkeypatch.setattr(rules, table, offered)

    await worker.run(worker.submission.prepare_generation, PrepareInput(key="order-1", request=request))
    again = await worker.run(worker.submission.submit_generation, input)
    assert (again.task_id, again.attached) == (paid.task_id, True)

    for step, unpaid in (
        (worker.submission.prepare_generation, PrepareInput(key="order-2", request=request)),
        # A key that was in doubt while it was prepared: nothing was made, and nothing is sent now.
        (worker.submission.submit_generation, SubmitInput(key="order-2", request=request)),
    ):
        failure = await failure_of(worker.run(step, unpaid))
        assert (failure.type, failure.details.paid) == ("InvalidRequest", Paid.NO)
        assert [problem.field for problem in failure.details.problems] == [field]
    assert sim.ledger.paid()["total"] == 1
    assert await worker.ledger.is_untouched("order-2")


async def test_a_task_is_taken_over_without_the_images_that_its_model_needs(
    worker: Worker, hire: Hire, sim: Simulator, request_for: Request, tmp_path: Path
) -> None:
    made = await worker.run(worker.submission.submit_generation, SubmitInput(key="order-1", request=request_for("ok")))
    taking = hire(store=Store.open(str(tmp_path / "another-store")))
    request = request_for(model="veo_3_1-fl-remix", task_id=made.task_id)
    await taking.run(taking.submission.prepare_generation, PrepareInput(key="order-2", request=request))
    receipt = await taking.run(taking.submission.submit_generation, SubmitInput(key="order-2", request=request))
    assert (receipt.task_id, sim.ledger.paid()["total"]) == (made.task_id, 1)
