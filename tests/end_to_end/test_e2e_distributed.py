"""The command line against a Temporal and a worker that run elsewhere."""

import asyncio
import hashlib
import json
import signal
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from longtake.client import VideoClient
from longtake.temporal.connection import connect
from tests.end_to_end.processes import (
    MARK,
    MODEL,
    DevServer,
    Finished,
    SimulatorProcess,
    Starter,
    WorkerProcess,
    eventually,
    flags,
    free_port,
    request,
    request_json,
    run_stories,
)
from tests.end_to_end.temporal_cli import TemporalCli


def stored(video: dict[str, Any]) -> bytes:
    """The stored file that a result names, which must be what the result says."""
    content = Path(unquote(urlsplit(video["uri"]).path)).read_bytes()
    assert hashlib.sha256(content).hexdigest() == video["sha256"]
    assert len(content) == video["bytes"]
    return content


def error_of(run: Finished, code: int, kind: str) -> dict[str, Any]:
    """The error in the one JSON document of a command that failed."""
    assert (run.code, "Traceback" in run.err) == (code, False), run
    document: dict[str, Any] = run.json()
    error: dict[str, Any] = document["error"]
    assert error["type"] == kind, run.out
    assert error["message"]
    for name in ("key", "workflow_id", "run_id"):
        assert error[name] == document[name]
    return error


class Distributed:
    """Each method is a story of its own; all share one Temporal, one worker, one gateway and one store."""

    def __init__(self, folder: Path, starter: Starter, simulator: SimulatorProcess, address: str) -> None:
        self._folder = folder
        self._starter = starter
        self._simulator = simulator
        self._address = address
        self._cli = TemporalCli(address)

    async def every_ending(self) -> None:
        prompts = {
            "full": f"a {MARK} [sim:ok,label=full]",
            "fallback": f"a {MARK} [sim:extend_failed,label=fallback]",
            "strict": f"a {MARK} [sim:extend_failed,label=strict]",
            "fail": f"a {MARK} [sim:extend_failed,label=fail]",
            "refused": f"a {MARK} [sim:generate_failed,label=refused]",
            "chinese": f"一只{MARK}走过 🎬🐾 [sim:ok,label=chinese]",
        }
        full, fallback, strict, fail, refused, chinese = await asyncio.gather(
            self._starter(
                "generate", *flags(prompts["full"]), "--key", "full-1", "--output", str(self._folder), "--json"
            ),
            self._starter(
                "generate", *flags(prompts["fallback"]), "--key", "fallback-1", "--output", str(self._folder / "8s.mp4")
            ),
            self._starter("generate", *flags(prompts["strict"]), "--key", "strict-1", "--strict", "--json"),
            self._starter(
                "generate", *flags(prompts["fail"]), "--key", "fail-1", "--on-extend-failed", "fail", "--json"
            ),
            self._starter("generate", *flags(prompts["refused"]), "--key", "refused-1", "--json"),
            self._starter("generate", *flags(prompts["chinese"]), "--key", "chinese-1"),
        )

        assert full.code == 0, full.err
        document = full.json()
        assert {
            "key",
            "workflow_id",
            "run_id",
            "outcome",
            "video",
            "task_id",
            "remix_id",
            "quota",
            "polls",
            "warnings",
        } <= {*document}
        assert (document["outcome"], document["key"], document["workflow_id"]) == ("full", "full-1", "video-full-1")
        assert round(document["video"]["duration_seconds"]) == 15
        assert (self._folder / "full-1.mp4").read_bytes() == stored(document["video"])
        assert document["output"] == str(self._folder / "full-1.mp4")

        assert fallback.code == 0, fallback.err
        assert fallback.out.strip() == str(self._folder / "8s.mp4")
        assert "E-2003" in fallback.err
        assert (self._folder / "8s.mp4").stat().st_size > 1000

        assert strict.code == 3, strict.err
        assert (strict.json()["outcome"], strict.json()["extend_error_code"]) == ("fallback", "extend_failed")
        assert round(strict.json()["video"]["duration_seconds"]) == 8

        extension = error_of(fail, 1, "ExtensionFailed")
        assert (extension["paid"], extension["gateway_code"]) == ("yes", "extend_failed")
        stored(extension["first_video"])

        verdict = error_of(refused, 1, "GenerationFailed")
        assert "E-1005" in verdict["message"]
        assert (verdict["gateway_code"], verdict["key"]) == ("generate_failed", "refused-1")
        assert verdict["remix_id"].startswith("video_")
        assert verdict["task_id"].startswith("task_")

        assert chinese.code == 0, chinese.err
        assert Path(unquote(urlsplit(chinese.out.strip()).path)).is_file()
        assert {name: self._simulator.paid(prompt) for name, prompt in prompts.items()} == dict.fromkeys(prompts, 1)
        assert self._simulator.violations() == []

    async def a_key_names_one_paid_generation(self) -> None:
        prompt = f"two of one {MARK} [sim:ok,label=twice]"
        both = await asyncio.gather(
            *(self._starter("generate", *flags(prompt), "--key", "twice", "--json") for _ in range(2)),
            self._starter("generate", *flags(prompt), "--key", "twice", "--no-wait"),
        )
        assert [run.code for run in both] == [0, 0, 0], both
        first, second = both[0].json(), both[1].json()
        assert (first["run_id"], first["video"]) == (second["run_id"], second["video"])
        assert both[2].out == "twice\n"

        again, other, size = await asyncio.gather(
            self._starter("generate", *flags(prompt), "--key", "twice", "--json"),
            self._starter("generate", *flags(f"{prompt} quite another"), "--key", "twice", "--json"),
            self._starter("generate", *flags(prompt), "--key", "twice", "--size", "1280x720"),
        )
        assert (again.code, again.json()["video"]) == (0, first["video"])
        error = error_of(other, 2, "KeyInUse")
        assert "prompt" in error["message"]
        assert MARK not in other.out, "the message names fields, it does not show prompts"
        assert (size.code, "size" in size.err, size.out) == (2, True, "")
        assert self._simulator.paid(prompt) == 1
        assert self._simulator.posts(f"{prompt} quite another") == []

    async def the_key_of_an_unpaid_generation_can_be_used_again(self) -> None:
        refused_prompt = f"a {MARK} [sim:refuse_422,label=again]"
        refused, _ = await asyncio.gather(
            self._starter("generate", *flags(refused_prompt), "--key", "mended-1", "--json"),
            # Through anybody's SDK an invalid request reaches the workflow itself, which ends it instead of hanging.
            self._cli.start("mended-2", {"model": "veo_3_1-none", "prompt": "", "images": "x"}),
        )
        error = error_of(refused, 1, "SubmissionRefused")
        assert (error["paid"], error["http_status"]) == ("no", 422)
        invalid = error_of(await self._starter("result", "mended-2", "--json"), 1, "InvalidRequest")
        assert {problem["field"].split("[")[0] for problem in invalid["problems"]} >= {
            "model",
            "prompt",
            "prompt_extend",
        }

        good = [f"a {MARK} [sim:ok,label=mended{number}]" for number in (1, 2)]
        runs = await asyncio.gather(
            self._starter("generate", *flags(good[0]), "--key", "mended-1"),
            self._starter("generate", *flags(good[1]), "--key", "mended-2"),
        )
        assert [run.code for run in runs] == [0, 0], runs
        assert [self._simulator.paid(prompt) for prompt in (refused_prompt, *good)] == [0, 1, 1]

    async def anyones_sdk_starts_asks_and_decides_with_plain_json(self) -> None:
        prompt = f"plain {MARK} [sim:extend_failed,label=cli]"
        await self._cli.start("plain", request_json(prompt, on_extend_failed="ask"))
        await self._cli.start("nothing", None)
        await self._cli.start("a-list", ["not", "a", "request"])

        async def awaits() -> dict[str, Any]:
            while True:
                status: dict[str, Any] = await self._cli.query("plain", "status")
                if status["stage"] == "awaiting_decision":
                    return status
                await asyncio.sleep(0.3)

        status = await asyncio.wait_for(awaits(), 40)
        assert (status["key"], status["model"], status["attention"]) == ("plain", MODEL, "needs_decision")
        assert status["first_video"]["sha256"]
        assert "decide" in status["advice"]

        wrong = await self._starter("decide", "plain", "resubmit", "--json")
        assert (wrong.code, wrong.json()["error"]["type"]) == (2, "DecisionRejected")
        assert "accept" in wrong.json()["error"]["message"]
        await self._cli.update("plain", "decide", {"action": "accept"})
        result, nothing, a_list = await asyncio.gather(
            self._starter("result", "plain", "--json"),
            self._starter("result", "nothing", "--json"),
            self._starter("watch", "a-list", "--json"),
        )
        assert (result.code, result.json()["outcome"]) == (0, "fallback")
        assert error_of(nothing, 1, "InvalidRequest")["paid"] == "no"
        assert error_of(a_list, 1, "InvalidRequest")["paid"] == "no"
        assert self._simulator.paid(prompt) == 1

    async def looking_at_generations(self) -> None:
        prompts = [f"watched {MARK} [sim:ok,label=watched]", f"watched {MARK} [sim:never_finishes,label=open]"]
        file = self._folder / "request.json"
        file.write_text(json.dumps(request_json("overridden")))
        generations = VideoClient(await connect(self._address))
        begun, is_open = await asyncio.gather(
            self._starter(
                "generate", "--from-file", str(file), "--prompt", prompts[0], "--key", "seen", "--no-wait", "--json"
            ),
            self._starter("generate", *flags(prompts[1]), "--key", "open", "--no-wait"),
        )
        assert (begun.code, is_open.code, is_open.out) == (0, 0, "open\n"), (begun.err, is_open.err)
        assert begun.json()["started"] is True
        assert {"key", "workflow_id", "run_id"} <= {*begun.json()}

        async def answered() -> Finished:
            """Its status, from a worker that has much to do just now."""
            while True:
                run = await self._starter("status", "open", "--json")
                if run.code or run.json()["status"]:
                    return run

        watched, result, status, table, rows = await asyncio.gather(
            self._starter("watch", "seen"),
            self._starter("result", "seen", "--output", str(self._folder / "copy.mp4")),
            answered(),
            self._starter("list"),
            self._starter("list", 'VideoModel="veo_3_1-fast-remix"', "--json"),
        )
        assert watched.code == 0, watched.err
        assert "seen:" in watched.err
        assert "full: 15.0 s" in watched.err
        assert (result.code, result.out.strip()) == (0, str(self._folder / "copy.mp4"))
        assert (status.code, status.json()["state"]) == (0, "running")
        assert status.json()["status"]["stage"] in {"preparing", "submitting", "first_segment", "extending"}
        assert table.code == 0
        assert "open" in table.out
        row = next(row for row in rows.json() if row["key"] == "open")
        assert (row["state"], row["workflow_id"], row["model"]) == ("running", "video-open", MODEL)

        plain, document = await asyncio.gather(
            self._starter("status", "seen"), self._starter("status", "seen", "--json")
        )
        await generations.cancel("open")
        assert (plain.code, plain.out.splitlines()[0]) == (0, "seen: done")
        facts = dict(line.strip().split(": ", 1) for line in plain.out.splitlines()[1:])
        (post,) = self._simulator.posts(prompts[0])
        assert (facts["paid"], facts["task"], facts["request id"]) == ("yes", post["task_id"], post["request_id"])
        assert {"submitted", "remix_id", "remix_id_extend", "video"} <= facts.keys(), "the runbook relies on them"
        assert (
            document.json()["status"]["video"]["sha256"]
            == hashlib.sha256((self._folder / "copy.mp4").read_bytes()).hexdigest()
        )

    async def cancelling_in_every_state(self) -> None:
        scenarios = {
            # Refused with 429 again and again: nothing is ever submitted.
            "waiting": "rate_limited,retry_after=30",
            # The answer takes 3 s: the exchange is finished, so that the id is known.
            "sending": "submit_delay,delay=90,seconds=240",
            "making": "never_finishes",
            "asking": "extend_failed,seconds=30",
            "delivering": "slow,seconds=30,drip=900",
        }
        wanted = {"waiting": "submitting", "sending": "submitting", "making": "first_segment"}
        wanted |= {"asking": "awaiting_decision", "delivering": "delivering"}
        prompts = {name: f"a {MARK} [sim:{scenario},label={name}]" for name, scenario in scenarios.items()}
        generations = VideoClient(await connect(self._address))

        async def cancelled(name: str) -> Finished:
            policy = "ask" if name == "asking" else "fallback"
            await generations.start(f"cancel-{name}", request(prompts[name], on_extend_failed=policy))
            if name in {"waiting", "sending"}:
                await eventually(lambda: self._simulator.posts(prompts[name]) or None, "the POST arrives")
            while (snapshot := await generations.snapshot(f"cancel-{name}")).execution.stage != wanted[name]:
                assert snapshot.running, name
                await asyncio.sleep(0.1)
            if name == "sending":  # before the answer comes
                await generations.cancel(f"cancel-{name}")
            return await self._starter("cancel", f"cancel-{name}", "--json")

        runs = dict(zip(scenarios, await asyncio.gather(*map(cancelled, scenarios)), strict=True))
        assert {name: run.code for name, run in runs.items()} == dict.fromkeys(scenarios, 0), runs
        for name, run in runs.items():
            status = run.json()["status"]
            assert (run.json()["state"], status["stage"]) == ("canceled", "cancelled"), run.out
            assert bool(status["task_id"]) == (name != "waiting"), run.out
        paid = {name: self._simulator.paid(prompt) for name, prompt in prompts.items()}
        assert paid == {**dict.fromkeys(scenarios, 1), "waiting": 0}

        waited = await self._starter("result", "cancel-sending", "--json")
        assert error_of(waited, 1, "Cancelled")["advice"]
        ended, nobody, again = await asyncio.gather(
            self._starter("cancel", "cancel-making"),
            self._starter("cancel", "cancel-nobody", "--json"),
            # What was paid for can still be collected by the same key, and is not paid again.
            self._starter("generate", *flags(prompts["sending"]), "--key", "cancel-sending", "--json"),
        )
        assert (ended.code, "already ended" in ended.out) == (0, True)
        assert (nobody.code, nobody.json()["error"]["type"]) == (2, "GenerationNotFound")
        assert (again.code, again.json()["outcome"]) == (0, "full")
        assert self._simulator.paid(prompts["sending"]) == 1

    async def interrupting_stops_only_the_waiting(self) -> None:
        prompt = f"interrupted {MARK} [sim:never_finishes,label=interrupted]"
        plain = self._starter.start("generate", *flags(prompt), "--key", "interrupted")
        await eventually(lambda: self._simulator.posts(prompt), "the POST arrives", unless=[plain])
        watch = self._starter.start("watch", "interrupted", "--json")
        commands = [plain, watch, self._starter.start("result", "interrupted")]
        for command in commands:
            await eventually(command.is_connected, "it waits", unless=[command])
            command.process.send_signal(signal.SIGINT)
        runs = await asyncio.gather(*(command.finished() for command in commands))
        assert [run.code for run in runs] == [130, 130, 130], runs
        assert not any("Traceback" in run.err for run in runs)
        assert "starter.py watch interrupted" in runs[0].err
        assert runs[0].out == ""
        assert runs[1].json()["error"]["type"] == "Interrupted"
        status = await self._starter("cancel", "interrupted", "--json")
        assert (status.code, status.json()["state"]) == (0, "canceled"), "it still ran"
        assert self._simulator.paid(prompt) == 1


STORIES = (
    "every_ending",
    "a_key_names_one_paid_generation",
    "the_key_of_an_unpaid_generation_can_be_used_again",
    "anyones_sdk_starts_asks_and_decides_with_plain_json",
    "looking_at_generations",
    "cancelling_in_every_state",
    "interrupting_stops_only_the_waiting",
)


@pytest.fixture(scope="module")
def ends(
    client: Starter,
    worker: WorkerProcess,
    simulator: SimulatorProcess,
    temporal: DevServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, BaseException | None]:
    distributed = Distributed(tmp_path_factory.mktemp("distributed"), client, simulator, temporal.address)
    return run_stories({name: getattr(distributed, name) for name in STORIES})


@pytest.mark.timeout(240)  # all stories run in the first one's time
@pytest.mark.parametrize("story", STORIES)
def test_distributed(story: str, ends: dict[str, BaseException | None]) -> None:
    if error := ends[story]:
        raise error


async def test_a_dry_run_sends_and_stores_nothing(
    client: Starter, simulator: SimulatorProcess, tmp_path: Path, png: bytes
) -> None:
    image = tmp_path / "first.png"
    image.write_bytes(png)
    store = tmp_path / "store"
    dry = client.but(LONGTAKE_STORE_URL=store.as_uri(), TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")
    before = simulator.submissions()
    piped = json.dumps(request_json(f"dry {MARK}", images=[{"uri": "https://images.example/a.png?Signature=x"}]))
    plain, document, from_stdin, bad = await asyncio.gather(
        dry("generate", *flags(f"dry {MARK}"), "--image", str(image), "--dry-run"),
        dry("generate", *flags(f"dry {MARK}"), "--size", "1080x1920", "--image", str(image), "--dry-run", "--json"),
        dry("generate", "--from-file", "-", "--dry-run", "--json", stdin=piped),
        dry("generate", *flags(f"dry {MARK}"), "--size", "huge", "--dry-run", "--json"),
    )
    assert plain.code == 0, plain.err
    assert "nothing was paid" in plain.out
    assert "image/png, 64x48" in plain.out
    assert (document.code, document.json()["paid"], document.json()["request"]["model"]) == (0, "no", MODEL)
    assert "-hd" in document.json()["warnings"][0]
    assert (from_stdin.code, len(from_stdin.json()["request"]["images"])) == (0, 1)
    assert "Signature" not in from_stdin.out
    assert (bad.code, bad.json()["error"]["type"]) == (2, "InvalidRequest")
    assert simulator.submissions() == before
    assert [path for path in store.rglob("*") if path.is_file()] == []


async def test_an_unreachable_temporal_is_reported_at_once(client: Starter, simulator: SimulatorProcess) -> None:
    nowhere = client.but(TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")
    prompt = f"unreachable {MARK}"
    runs = await asyncio.gather(
        nowhere("generate", *flags(prompt), "--json"),
        nowhere("list", "--json"),
        nowhere("status", "some-key", "--json"),
        nowhere("cancel", "some-key"),
    )
    assert [run.code for run in runs] == [4, 4, 4, 4], runs
    for run in runs[:3]:
        assert run.json()["error"]["type"] == "TemporalUnreachable"
        assert "TEMPORAL_ADDRESS" in run.json()["error"]["message"]
    assert "TEMPORAL_ADDRESS" in runs[3].err
    assert simulator.posts(prompt) == []


@pytest.mark.system
async def test_the_exit_code_is_the_same_every_time(client: Starter, temporal: DevServer) -> None:
    """The SDK's native threads abort a short-lived interpreter now and then (134, 139): `starter.py` leaves before."""
    client = client.executed()
    codes = []
    for _ in range(2):
        runs = await asyncio.gather(
            client("list", "--json", "--limit", "1"),
            client("status", "no-such-key"),
            client("list", "--limit", "3"),
            client("status", "no-such-key", "--json"),
        )
        codes.append([run.code for run in runs])
    assert codes == [[0, 2, 0, 2]] * 2


async def test_every_command_explains_itself(client: Starter) -> None:
    commands = ["generate", "status", "watch", "result", "list", "cancel", "models", "doctor", "up", "demo"]
    commands += ["setup", "poll", "decide", "adopt"]
    runs = await asyncio.gather(client("--help"), *(client(command, "--help") for command in commands))
    assert [run.code for run in runs] == [0] * len(runs)
    assert all(command in runs[0].out for command in commands)
    assert all(f"starter.py {name}" in run.out for name, run in zip(commands, runs[1:], strict=True))
    models = await client("models", "--json")
    assert (models.code, len(models.json())) == (0, 8)
