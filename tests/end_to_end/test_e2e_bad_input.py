"""Bad input: each one gives one clear error that says what to do, its exit code, and nothing is paid."""

import asyncio
import contextlib
import http.server
import json
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longtake.client import Snapshot, VideoClient
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    Finished,
    SimulatorProcess,
    Site,
    Starter,
    WorkerProcess,
    flags,
    free_port,
    processes_of,
    request,
    secrets_in,
)

GOOD = flags(f"bad input {MARK}")


@contextlib.contextmanager
def web_site() -> Iterator[str]:
    """Something that answers every request with a web page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!DOCTYPE html><title>Welcome</title><p>Nothing to see")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def refused(run: Finished, code: int, kind: str, *mentions: str) -> None:
    """One clear error in one JSON document."""
    assert run.code == code, run
    error = run.json()["error"]
    assert error["type"] == kind, run
    for mention in mentions:
        assert mention in error["message"], run.out
    assert "Traceback" not in run.out + run.err
    assert secrets_in(run.out + run.err) == []


async def test_requests_that_cannot_be_sent(
    alone: Starter, simulator: SimulatorProcess, tmp_path: Path, png: bytes
) -> None:
    broken, text, huge, not_json, a_list = (
        tmp_path / name for name in ("broken.png", "text.png", "huge.png", "not.json", "list.json")
    )
    broken.write_bytes(png[: len(png) // 2])
    text.write_text("this is no picture")
    with huge.open("wb") as file:
        file.truncate(300 * 2**20)
    not_json.write_text(f'{{"prompt": "{MARK}"')
    a_list.write_text("[1, 2]")
    before = simulator.submissions()
    data = "data:image/png;base64,@@@"
    bad_images = [str(image) for image in (broken, text, huge, tmp_path, "/no/such.png", data)]
    cases: list[tuple[list[str], tuple[str, ...]]] = [
        (["--prompt", f"only {MARK}"], ("model", "prompt_extend")),
        # Everything that is wrong, at once.
        (
            ["--model", "veo", "--prompt", " ", "--prompt-extend", MARK, "--size", "1x1", "--image", "/no/such.png"],
            ("model", "veo_3_1-fast-remix", "prompt:", "size", "1280x720", "images[0]", "/no/such.png"),
        ),
        (
            [*GOOD, *(part for image in bad_images for part in ("--image", image))],
            (
                *(f"images[{number}]" for number in range(len(bad_images))),
                *("broken.png is damaged", "text.png is not a JPEG, PNG or WebP", "huge.png has 314,572,800", "20 MiB"),
                *("base64", "0 to 3 reference images"),
            ),
        ),
        ([*flags(f"{MARK} " * 12_500)], ("prompt", "10,000", "112,500")),
        ([*GOOD, "--key", "no spaces/or slashes"], ("--key",)),
        ([*GOOD, "--output", str(tmp_path / "no-such-folder" / "a.mp4")], ("--output", "no-such-folder")),
        ([*GOOD, "--on-extend-failed", "panic"], ("on_extend_failed", "fallback")),
        (["--from-file", str(not_json)], ("--from-file", "JSON")),
        (["--from-file", str(a_list)], ("--from-file", "JSON object")),
        (["--from-file", str(tmp_path / "none.json")], ("--from-file", "none.json")),
    ]
    runs = await asyncio.gather(*(alone("generate", *arguments, "--json") for arguments, _ in cases))
    for run, (_, mentions) in zip(runs, cases, strict=True):
        refused(run, 2, "InvalidRequest", *mentions)

    piped = json.dumps({"model": "veo_3_1-fast-remix", "prompt": MARK, "prompt_extend": MARK, "seconds": 60})
    unknown_field, plain, unknown_flag, nobody, no_decision = await asyncio.gather(
        alone("generate", "--from-file", "-", "--json", stdin=piped),
        alone("generate", "--model", "veo", *GOOD[2:]),
        alone("generate", *GOOD, "--duration", "60", "--json"),
        alone("status", "nobody", "--json"),
        alone("decide", "nobody", "panic", "--json"),
    )
    refused(unknown_field, 2, "InvalidRequest", "seconds", "is not a field")
    assert (plain.code, plain.out) == (2, "")
    assert "model: must be one of" in plain.err
    assert (unknown_flag.code, "--duration" in unknown_flag.err + unknown_flag.out) == (2, True)
    refused(nobody, 2, "GenerationNotFound", "nobody")
    refused(no_decision, 2, "InvalidRequest", "panic", "accept")
    assert simulator.submissions() == before


async def test_surroundings_that_cannot_work(alone: Starter, simulator: SimulatorProcess, tmp_path: Path) -> None:
    in_the_way = tmp_path / "in the way"
    in_the_way.write_text("a file")
    nowhere = f"http://127.0.0.1:{free_port()}"
    before = simulator.submissions()

    def generate(**changes: str | None) -> "asyncio.Future[Finished]":
        return asyncio.ensure_future(alone.but(**changes)("generate", *GOOD, "--json"))

    with web_site() as page:
        cases = [
            (generate(LONGTAKE_GATEWAY_API_KEY="sk-wrong"), 2, "SubmissionRefused", ("LONGTAKE_GATEWAY_API_KEY",)),
            (generate(LONGTAKE_GATEWAY_URL=nowhere), 4, "GatewayUnreachable", ("LONGTAKE_GATEWAY_URL", nowhere)),
            (generate(LONGTAKE_GATEWAY_URL=page), 4, "NotAGateway", ("LONGTAKE_GATEWAY_URL",)),
            (generate(LONGTAKE_GATEWAY_URL="gateway.example"), 2, "InvalidSettings", ("LONGTAKE_GATEWAY_URL",)),
            (generate(LONGTAKE_GATEWAY_API_KEY=None), 2, "InvalidSettings", ("LONGTAKE_GATEWAY_API_KEY",)),
            (generate(LONGTAKE_STORE_URL=f"{in_the_way}/store"), 2, "InvalidSettings", (str(in_the_way),)),
            (generate(LONGTAKE_STORE_URL="ftp://x/y"), 2, "InvalidSettings", ("s3://bucket/prefix",)),
            (generate(LONGTAKE_DATA_DIR=f"{in_the_way}/data"), 2, "InvalidSettings", (str(in_the_way),)),
            (
                generate(LONGTAKE_GATEWAY_API_KEI="x", LONGTAKE_EXPECTED_SECONDS="soon"),
                2,
                "InvalidSettings",
                ("did you mean LONGTAKE_GATEWAY_API_KEY?", "LONGTAKE_EXPECTED_SECONDS"),
            ),
            (
                generate(LONGTAKE_TEMPORAL_BINARY=str(in_the_way)),
                4,
                "TemporalUnreachable",
                ("LONGTAKE_TEMPORAL_BINARY", str(in_the_way)),
            ),
        ]
        for run, code, kind, mentions in cases:
            refused(await run, code, kind, *mentions)
    assert simulator.submissions() == before
    assert processes_of(tmp_path) == {}, "nothing was started that could not work"


async def test_a_worker_that_cannot_work_says_so(distributed: dict[str, str], tmp_path: Path) -> None:
    in_the_way = tmp_path / "in the way"
    in_the_way.write_text("a file")
    changes = [
        ({"LONGTAKE_STORE_URL": f"{in_the_way}/store"}, str(in_the_way)),
        ({"TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"}, "TEMPORAL_ADDRESS"),
        ({"LONGTAKE_GATEWAY_URL": ""}, "LONGTAKE_GATEWAY_URL"),
        ({"LONGTAKE_GATEWAY_URI": "x"}, "did you mean LONGTAKE_GATEWAY_URL?"),
    ]
    workers = [
        WorkerProcess(tmp_path / str(number), distributed | change) for number, (change, _) in enumerate(changes)
    ]
    for worker in workers:
        worker.start()
    # 1: somebody may start it again, Temporal may be back by then. 2: nobody need try.
    assert [await worker.ended() for worker in workers] == [2, 1, 2, 2]
    for worker, (_, mention) in zip(workers, changes, strict=True):
        lines = worker.log().strip().splitlines()
        assert mention in lines[-1]
        assert "Traceback" not in worker.log()
        assert API_KEY not in worker.log()


@pytest.fixture
def site(distributed: dict[str, str], tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, distributed)
    yield site
    site.stop()


@pytest.mark.system
async def test_a_disk_that_is_full(site: Site, simulator: SimulatorProcess) -> None:
    """No file may grow beyond a limit, which looks like a full disk: nothing is lost, and nothing is paid twice."""
    client = await site.start()
    prompt = f"full disk {MARK} [sim:ok,seconds=30,label=disk]"

    def room(limit: int) -> None:
        resource.prlimit(site.worker.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    room(0)
    await client.start("disk", request(prompt))
    before = await until(client, "disk", lambda snapshot: any(step.problem for step in snapshot.steps))
    assert before.steps[0].name == "prepare_generation"
    assert "store" in (before.steps[0].problem or "")
    assert simulator.posts(prompt) == []

    room(20_000)  # enough for the ledger, not for a video
    after = await until(
        client, "disk", lambda snapshot: any(s.name == "deliver_video" and s.problem for s in snapshot.steps)
    )
    assert "store" in (after.steps[0].problem or "") or "write" in (after.steps[0].problem or "")
    assert [*site.store.rglob("*.mp4")] == []

    room(resource.RLIM_INFINITY)
    result = await client.result("disk")
    assert (result.outcome, simulator.paid(prompt)) == ("full", 1)
    assert [path.stat().st_size for path in site.store.rglob("*.mp4")] == [result.video.bytes]


async def until(client: VideoClient, key: str, holds: Callable[[Snapshot], bool]) -> Snapshot:
    async with asyncio.timeout(40):
        while not holds(snapshot := await client.snapshot(key)):
            assert snapshot.running, snapshot
            await asyncio.sleep(0.1)
    return snapshot
