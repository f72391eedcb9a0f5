"""Paying for an extension again: against the simulator, and against a server that resets, hangs and talks nonsense."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from longtake.gateway.client import GatewayClient, SendHookDidNotFire, SubmissionForm
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    InvalidResponse,
    KeyRefused,
    QuotaExhausted,
    RequestRefused,
    ResponseLost,
)
from longtake.gateway.extension import ExtensionClient
from longtake.models import TaskState
from simulator import Simulator, SimulatorSettings, serve
from tests.longtake.gateway.test_client import Behaviour, CreateIntent, RawGateway, answer, hang, listening, reset, say
from tests.unread import UnreadAnswers

KEY = "sk-simulator-key"
CLIP = "video_0b8f"
PROMPT = "the cat lands on the moon"
FLAT = {"id": "task_new", "object": "video", "model": "veo_3_1-extend", "status": "queued", "progress": 0}
FLAT |= {"created_at": 1777175740, "remixed_from_video_id": CLIP}
WRAPPED = {"code": 200, "data": [{"status": "submitted", "task_id": "task_new"}]}


@pytest.fixture
async def gateway() -> AsyncIterator[RawGateway]:
    async with listening(RawGateway()) as raw:
        yield raw


@pytest.fixture
async def client(gateway: RawGateway) -> AsyncIterator[ExtensionClient]:
    async with connect(gateway.url) as client:
        yield client


def connect(url: str, **options: Any) -> ExtensionClient:
    return ExtensionClient(**{"base_url": url, "api_key": SecretStr(KEY), **options})


class TestSimulator:
    async def test_from_the_failure_to_the_new_task(self, tmp_path: Path) -> None:
        settings = SimulatorSettings(tmp_path, KEY, seconds=1e-6, speed=50, remix=True)
        async with serve(settings) as sim, connect(sim.url) as client:
            task_id, remix_id = await fail_to_extend(sim)
            create_intent = CreateIntent()
            sent = await client.submit_extension(remix_id, PROMPT, before_send=create_intent)
            record = await client.query(sent.task_id)
            assert (await client.query(sent.task_id, second_path=True)).state is TaskState.COMPLETED
            assert (create_intent.fired, sim.ledger.paid()["total"]) == (1, 2)
            assert sent.task_id != task_id
            assert (record.state, record.task_id) == (TaskState.COMPLETED, sent.task_id)
            assert record.video_url
            remix = sim.ledger.submissions()[-1]
            assert (remix["kind"], remix["remixed_from"]) == ("remix", remix_id)
            assert (remix["model"], remix["prompt"]) == ("veo_3_1-extend", PROMPT)

    async def test_a_stock_gateway_cannot(self, tmp_path: Path) -> None:
        async with serve(SimulatorSettings(tmp_path, KEY, seconds=1e-6, speed=50)) as sim, connect(sim.url) as client:
            _, remix_id = await fail_to_extend(sim)
            with pytest.raises(RequestRefused, match="this gateway cannot retry extensions") as caught:
                await client.submit_extension(remix_id, PROMPT, before_send=CreateIntent())
            assert (caught.value.status, caught.value.code) == (400, "task_origin_not_exist")
            assert "LONGTAKE_EXTEND_URL" in str(caught.value)
            assert sim.ledger.paid()["total"] == 1

    @pytest.mark.parametrize(
        ("fault", "error", "paid"),
        [
            ("submit_reset", ResponseLost, 1),
            ("submit_half", ResponseLost, 1),
            ("submit_504", ResponseLost, 1),
            ("fail_to_fetch_task", ResponseLost, 1),
            ("submit_no_id", InvalidResponse, 1),
            ("rate_limited", GatewayBusy, 0),
            ("submit_522", GatewayUnreachable, 0),
            ("insufficient_quota", QuotaExhausted, 0),
            ("refuse_422", RequestRefused, 0),
        ],
    )
    async def test_faults(self, tmp_path: Path, fault: str, error: type[GatewayError], paid: int) -> None:
        settings = SimulatorSettings(tmp_path, KEY, seconds=1e-6, speed=50, remix=True)
        async with serve(settings) as sim, connect(sim.url) as client:
            _, remix_id = await fail_to_extend(sim)
            with pytest.raises(GatewayError) as caught:
                await client.submit_extension(remix_id, f"{PROMPT} [sim:{fault}]", before_send=CreateIntent())
            assert type(caught.value) is error
            remixes = [entry for entry in sim.ledger.submissions() if entry["kind"] == "remix"]
            assert [entry["paid"] for entry in remixes] == [bool(paid)]


class TestRequest:
    async def test_what_is_sent(self, gateway: RawGateway, client: ExtensionClient) -> None:
        gateway.will(answer(200, FLAT))
        await client.submit_extension(CLIP, "猫 \r\n", before_send=CreateIntent())
        request = gateway.requests[0]
        assert (request.method, request.target) == ("POST", f"/v1/videos/{CLIP}/remix")
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.headers["Content-Type"] == "application/json"
        assert json.loads(request.body) == {"prompt": "猫 \r\n", "model": "veo_3_1-extend"}

    async def test_path_and_model_are_settings(self, gateway: RawGateway) -> None:
        gateway.will(answer(200, FLAT))
        url = f"{gateway.url}/api/v1/"
        async with connect(url, path="/v2/{remix_id}:extend", model="veo_3_1-fast-remix") as client:
            await client.submit_extension("a/../b?c#d", PROMPT, before_send=CreateIntent())
            assert client.model == "veo_3_1-fast-remix"
        assert gateway.requests[0].target == "/api/v2/a%2F..%2Fb%3Fc%23d:extend"
        assert json.loads(gateway.requests[0].body)["model"] == "veo_3_1-fast-remix"

    @pytest.mark.parametrize("body", [FLAT, WRAPPED, {"code": "success", "data": "task_new"}])
    async def test_answers(self, gateway: RawGateway, client: ExtensionClient, body: object) -> None:
        gateway.will(answer(200, body))
        sent = await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent())
        assert (sent.task_id, sent.request_id) == ("task_new", "req-1")

    async def test_text_that_cannot_be_sent(self, gateway: RawGateway, client: ExtensionClient) -> None:
        create_intent = CreateIntent()
        with pytest.raises(RequestRefused, match="prompt_extend is not valid Unicode") as caught:
            await client.submit_extension(CLIP, "cat \ud800", before_send=create_intent)
        assert "cat" not in str(caught.value)
        for nonsense in ("", "."):
            with pytest.raises(RequestRefused, match="nothing was sent"):
                await client.submit_extension(nonsense, PROMPT, before_send=create_intent)
        assert (create_intent.fired, gateway.connections) == (0, 0)


class TestBeforeTheFirstByte:
    async def test_fires_once_connected_and_with_nothing_sent(
        self, gateway: RawGateway, client: ExtensionClient
    ) -> None:
        gateway.will(answer(200, FLAT))
        seen: list[int] = []

        async def before_send() -> None:
            await gateway.connected.wait()
            seen.append(gateway.bytes_read)

        await client.submit_extension(CLIP, PROMPT, before_send=before_send)
        await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent())
        assert seen == [0]
        assert (gateway.connections, len(gateway.requests)) == (2, 2)  # a connection of its own for each

    @pytest.mark.parametrize(
        "error",
        [LookupError("slot taken"), GatewayBusy("as if"), httpx.ReadTimeout("like ours"), asyncio.CancelledError()],
        ids=lambda error: type(error).__name__,
    )
    async def test_if_it_raises_nothing_leaves_and_that_comes_out(
        self, gateway: RawGateway, client: ExtensionClient, error: BaseException
    ) -> None:
        with pytest.raises(type(error)) as caught:
            await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent(error))
        assert caught.value is error
        await gateway.disconnected.wait()
        assert (gateway.connections, gateway.bytes_read) == (1, 0)

    async def test_an_answer_without_the_hook_is_a_defect(self) -> None:
        transport = UnreadAnswers(lambda _: httpx.Response(200, json=FLAT))
        async with connect("http://gateway.example", transport=transport) as client:
            with pytest.raises(SendHookDidNotFire):
                await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent())

    async def test_connection_refused(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            async with connect(f"http://127.0.0.1:{closed.getsockname()[1]}") as client:
                create_intent = CreateIntent()
                with pytest.raises(GatewayUnreachable, match=r"nothing was sent.*is LONGTAKE_EXTEND_URL right"):
                    await client.submit_extension(CLIP, PROMPT, before_send=create_intent)
        assert create_intent.fired == 0


class TestAfterIt:
    @pytest.mark.parametrize(
        "behaviour",
        [reset, hang, say(b""), say(b"HTTP/1.1 200"), say(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")],
        ids=["reset", "hang", "closed", "half a head", "half a body"],
    )
    async def test_sent_and_no_whole_answer(self, gateway: RawGateway, behaviour: Behaviour) -> None:
        gateway.will(behaviour)
        async with connect(gateway.url, submit_timeout=timedelta(seconds=0.5)) as client:
            create_intent = CreateIntent()
            with pytest.raises(ResponseLost) as caught:
                await client.submit_extension(CLIP, PROMPT, before_send=create_intent)
        assert (create_intent.fired, len(gateway.requests)) == (1, 1)
        assert "moon" not in str(caught.value)

    @pytest.mark.parametrize("body", [b"<html><title>Welcome</title>", b"", b'{"status": "queued"}', b"[]"])
    async def test_200_without_an_id(self, gateway: RawGateway, client: ExtensionClient, body: bytes) -> None:
        gateway.will(answer(200, body))
        with pytest.raises(InvalidResponse):
            await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent())

    @pytest.mark.parametrize(
        ("location", "error"),
        [("/v1/videos/video_0b8f/remix", RequestRefused), ("/v1/videos/task_new", ResponseLost)],
        ids=["the same route", "another"],
    )
    async def test_redirects_are_not_followed(
        self, gateway: RawGateway, client: ExtensionClient, location: str, error: type[GatewayError]
    ) -> None:
        gateway.will(answer(307, b"", Location=f"https://gw.example{location}"))
        with pytest.raises(error) as caught:
            await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent())
        assert len(gateway.requests) == 1
        if error is RequestRefused:
            assert "set LONGTAKE_EXTEND_URL to https://gw.example" in str(caught.value)

    @pytest.mark.parametrize("status", [404, 405])
    async def test_no_such_route(self, gateway: RawGateway, client: ExtensionClient, status: int) -> None:
        gateway.will(answer(status, b"<html>"))
        with pytest.raises(RequestRefused, match="cannot retry extensions"):
            await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent())

    async def test_a_refusal_names_the_setting_and_not_the_prompt(
        self, gateway: RawGateway, client: ExtensionClient
    ) -> None:
        gateway.will(answer(401, {"error": {"message": f"no: {PROMPT}, {KEY}"}}))
        with pytest.raises(KeyRefused, match="check LONGTAKE_EXTEND_API_KEY") as caught:
            await client.submit_extension(CLIP, PROMPT, before_send=CreateIntent())
        with pytest.raises(KeyRefused, match="check LONGTAKE_EXTEND_API_KEY"):
            await client.query("task_new")
        assert str(caught.value).startswith("[req-1] ")
        assert "moon" not in str(caught.value)
        assert KEY not in str(caught.value)


class TestAddresses:
    async def test_the_new_task_lives_there(self) -> None:
        async with connect("https://extend.example/v1") as client:
            assert client.origin == "https://extend.example"
            assert client.content_url("t") == "https://extend.example/v1/videos/t/content"
            assert client.key_for("https://extend.example/v1/videos/t/content") == SecretStr(KEY)
            assert client.key_for("https://gateway.example/v1/videos/t/content") is None

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"path": "v1/{remix_id}"}, "LONGTAKE_EXTEND_PATH"),
            ({"path": "/v1/videos/remix"}, "LONGTAKE_EXTEND_PATH"),
            ({"path": "/{remix_id}/{remix_id}"}, "LONGTAKE_EXTEND_PATH"),
            ({"path": "/{remix_id}\n"}, "LONGTAKE_EXTEND_PATH"),
            ({"model": " "}, "LONGTAKE_EXTEND_MODEL"),
            ({"api_key": SecretStr("sk a")}, "LONGTAKE_EXTEND_API_KEY"),
            ({"base_url": "gw.example"}, "LONGTAKE_EXTEND_URL"),
        ],
    )
    def test_settings_that_cannot_be_used(self, options: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=named) as caught:
            connect("https://gw.example", **options)
        assert "sk a" not in str(caught.value)


async def fail_to_extend(sim: Simulator) -> tuple[str, str]:
    """A generation whose extension failed: its task id and the first segment's id."""
    form = SubmissionForm(model="veo_3_1-remix", prompt="a cat [sim:extend_failed]", prompt_extend="b")
    async with GatewayClient(base_url=sim.url, api_keys=[SecretStr(KEY)]) as client:
        task_id = (await client.submit(form, before_send=CreateIntent())).task_id
        record = await client.query(task_id)
    assert record.state is TaskState.EXTEND_FAILED
    assert record.remix_id
    return task_id, record.remix_id
