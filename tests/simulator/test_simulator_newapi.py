"""`--like newapi-2026-07`, answer by answer against the field notes ("Seen on a live installation")."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from simulator import Simulator, SimulatorSettings, serve
from simulator.personalities import NEWAPI, PERSONALITIES
from simulator.scenarios import SCENARIOS
from tests.simulator.requests_to_simulator import KEY, Submit, parts

SERVER_ADDRESS = "http://localhost:3000"
CONSOLE = {"Authorization": "simulator-access-token", "New-Api-User": "2"}
LINKS = ("video_url", "result_url", "url")
OWN_ERRORS = [
    row for row in SCENARIOS.values() if row.fault and row.fault.paid and row.fault.shape in {"new_api", "relay"}
]


@pytest.fixture
async def sim(tmp_path: Path, clips: Path) -> AsyncIterator[Simulator]:
    settings = SimulatorSettings(tmp_path, KEY, cache_dir=clips, seconds=1e-6, speed=50, like=NEWAPI)
    async with serve(settings) as simulator:
        yield simulator


async def task_of(submit: Submit, tag: str) -> str:
    task_id = (await submit(tag)).json()["task_id"]
    assert isinstance(task_id, str)
    return task_id


async def flat(http: httpx.AsyncClient, task_id: str) -> Any:
    return (await http.get(f"/v1/videos/{task_id}")).json()


async def envelope(http: httpx.AsyncClient, task_id: str) -> Any:
    answer = (await http.get(f"/v1/video/generations/{task_id}")).json()
    assert answer["code"] == "success"
    return answer["data"]


async def log(http: httpx.AsyncClient) -> Any:
    return (await http.get("/api/log/token")).json()["data"]


async def listed(http: httpx.AsyncClient) -> Any:
    return (await http.get("/api/task/self", headers=CONSOLE)).json()["data"]["items"]


async def test_a_submission(sim: Simulator, submit: Submit) -> None:
    answer = await submit()
    body = answer.json()
    assert list(body) == ["id", "task_id", "taskId", "object", "model", "status", "progress", "created_at"]
    assert {body["id"], body["task_id"], body["taskId"]} == {sim.ledger.entries[-1]["task_id"]}
    assert json.loads(answer.headers["X-New-Api-Other-Ratios"]) == {"seconds": 4, "size": 1}
    assert answer.headers["X-New-Api-Version"]
    assert answer.headers["X-Oneapi-Request-Id"] == sim.ledger.entries[-1]["request_id"]


async def test_the_flat_record_has_the_middlewares_id_no_quota_and_rewritten_links(
    sim: Simulator, http: httpx.AsyncClient, submit: Submit
) -> None:
    task_id = await task_of(submit, "ok")
    body = await flat(http, task_id)
    (task,) = sim.tasks
    assert (body["id"], body["task_id"], body["status"]) == (task_id, task.middleware_id, "completed")
    assert "quota" not in body
    content = f"{SERVER_ADDRESS}/v1/videos/{task_id}/content"
    assert {body[name] for name in LINKS} | {body["output"][0], body["video"]["url"]} == {content}
    assert urlsplit(body["first_video_url"]).netloc == urlsplit(sim.cdn_url).netloc
    assert (body["remix_id"], body["remix_id_extend"]) == (task.remix_id, task.remix_id_extend)
    unknown = await http.get(f"/v1/videos/{task.middleware_id}")
    assert (unknown.status_code, unknown.json()["code"]) == (400, "task_not_exist")


async def test_the_flat_record_while_it_runs(http: httpx.AsyncClient, submit: Submit) -> None:
    body = await flat(http, await task_of(submit, "never_finishes"))
    assert (body["status"], body["progress"]) == ("in_progress", 61)
    assert not body.keys() & {*LINKS, "output", "video"}
    waiting = await flat(http, await task_of(submit, "ok,seconds=1000"))
    assert (waiting["status"], waiting["progress"]) == ("queued", 0)


async def test_the_short_clip_is_in_the_envelope_routes_alone(
    sim: Simulator, http: httpx.AsyncClient, submit: Submit
) -> None:
    task_id = await task_of(submit, "extend_failed")
    body = await flat(http, task_id)
    assert (body["status"], body["error"]["code"]) == ("failed", "extend_failed")
    assert body["video_url"] == f"{SERVER_ADDRESS}/v1/videos/{task_id}/content"
    content = await http.get(f"/v1/videos/{task_id}/content")
    assert content.status_code == 400
    assert content.json()["error"]["message"] == "Task is not completed yet, current status: FAILURE"

    fetched = (await http.post("/suno/fetch", json={"ids": [task_id]})).json()["data"]
    rows = [await envelope(http, task_id), *fetched, *await listed(http)]
    assert len(rows) == 3
    (task,) = sim.tasks
    async with httpx.AsyncClient() as anybody:
        for row in rows:
            assert (row["data"]["id"], row["data"]["error"]["code"]) == (task.middleware_id, "extend_failed")
            clip = await anybody.get(row["data"]["video_url"])
            assert (clip.status_code, clip.headers["content-type"]) == (200, "video/mp4")
    assert sim.ledger.violations() == []


async def test_the_envelope(http: httpx.AsyncClient, submit: Submit) -> None:
    done = await envelope(http, await task_of(submit, "ok"))
    assert (done["status"], done["model_name"], done["quota"]) == ("SUCCESS", "veo_3_1-fast-remix", 425_000)
    assert done["properties"] == {"input": ""}
    for tag in ("extend_failed", "generate_failed", "task_lost", "cancelled"):
        failed = await envelope(http, await task_of(submit, tag))
        assert (failed["status"], failed["quota"], failed["progress"]) == ("FAILURE", 0, "100%")
        assert failed["result_url"] == failed["fail_reason"] != ""
    assert {row["model_name"] for row in await listed(http)} == {"veo_3_1-fast-remix"}
    assert all(row["properties"] == {"input": ""} for row in await listed(http))
    running = await envelope(http, await task_of(submit, "never_finishes"))
    assert (running["status"], running["fail_reason"], "result_url" in running) == ("IN_PROGRESS", "", False)
    assert (await envelope(http, await task_of(submit, "ok,seconds=1000")))["status"] == "NOT_START"


async def test_an_error_body_upstream_is_a_failure_at_once_and_replaces_the_record(
    http: httpx.AsyncClient, submit: Submit
) -> None:
    task_id = await task_of(submit, "task_lost")
    body = await flat(http, task_id)
    assert (body["status"], body["error"]["code"]) == ("failed", "bad_gateway")
    assert "remix_id" not in body
    assert list((await envelope(http, task_id))["data"]) == ["error"]


async def test_many_tasks_in_one_call(http: httpx.AsyncClient, submit: Submit) -> None:
    ids = [await task_of(submit, "ok"), await task_of(submit, "never_finishes")]
    answer = (await http.post("/suno/fetch", json={"ids": [*ids, "task_nobody_made"]})).json()
    assert (answer["code"], [row["task_id"] for row in answer["data"]]) == ("success", ids)
    assert (await http.post("/suno/fetch", json={"ids": ["task_nobody_made"]})).json()["data"] is None
    wrong_key = await http.post("/suno/fetch", json={"ids": ids}, headers={"Authorization": "Bearer wrong"})
    assert wrong_key.status_code == 401
    for fault in ("403", "404"):
        await http.post("/_simulator/account", json={"fetch": fault})
        assert (await http.post("/suno/fetch", json={"ids": ids})).status_code == int(fault)
    await http.post("/_simulator/account", json={"fetch": ""})
    assert (await http.post("/suno/fetch", json={"ids": ids})).status_code == 200


async def test_the_usage_log_names_requests_on_charges_and_tasks_on_refunds(
    http: httpx.AsyncClient, submit: Submit
) -> None:
    first = await submit("ok")
    assert [(row["type"], row["request_id"]) for row in await log(http)] == [(2, first.headers["X-Oneapi-Request-Id"])]
    assert first.json()["task_id"] not in json.dumps(await log(http))
    second = await submit("extend_failed")
    refunds = [row for row in await log(http) if row["type"] == 6]
    assert len(refunds) == 1
    assert "request_id" not in refunds[0]
    other = json.loads(refunds[0]["other"])
    assert (other["task_id"], other["pre_consumed_quota"]) == (second.json()["task_id"], 425_000)
    assert "E-2003" in other["reason"]
    assert (await http.get("/api/usage/token/")).json()["data"]["total_used"] == 425_000


@pytest.mark.parametrize("row", OWN_ERRORS, ids=[row.name for row in OWN_ERRORS])
async def test_a_post_that_failed_leaves_no_row(
    sim: Simulator, http: httpx.AsyncClient, submit: Submit, row: Any
) -> None:
    answer = await submit(row.name)
    assert (answer.status_code, await log(http), await listed(http)) == (row.fault.status, [], [])
    assert sim.ledger.paid()["total"] == 0
    charged = await submit(f"{row.name},charged")
    assert charged.status_code == row.fault.status
    assert [made["request_id"] for made in await log(http)] == [charged.headers["X-Oneapi-Request-Id"]]
    assert sim.ledger.paid()["total"] == 1


async def test_the_page_of_a_proxy_names_no_request(submit: Submit) -> None:
    answer = await submit("submit_504")
    assert answer.status_code == 504
    assert not {"x-oneapi-request-id", "x-new-api-version"} & set(answer.headers)


@pytest.mark.parametrize("tag", ["submit_hang", "submit_delay,delay=100"])
async def test_a_client_that_leaves_cancels_its_post_and_the_middleware_keeps_the_job(
    sim: Simulator, http: httpx.AsyncClient, submit: Submit, tag: str
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await submit(tag)
    async with asyncio.timeout(5):
        while sim.ledger.entries[-1]["kind"] != "cancelled":  # noqa: ASYNC110 (the ledger has no event)
            await asyncio.sleep(0.01)
    (job,) = sim.tasks
    assert (sim.ledger.paid()["total"], await log(http), await listed(http)) == (0, [], [])
    assert (await http.get(f"/v1/videos/{job.task_id}")).json()["code"] == "task_not_exist"
    assert (await http.get("/api/usage/token/")).json()["data"]["total_used"] == 0
    assert [row["recorded"] for row in (await http.get("/_simulator/tasks")).json()] == [False]


async def test_a_late_answer_is_charged_once_it_is_given(
    sim: Simulator, http: httpx.AsyncClient, submit: Submit
) -> None:
    answer = await submit("submit_delay,delay=2")
    assert [row["request_id"] for row in await log(http)] == [answer.headers["X-Oneapi-Request-Id"]]
    assert (await flat(http, answer.json()["task_id"]))["status"] == "completed"
    assert sim.ledger.paid()["total"] == 1


async def test_refusals(sim: Simulator, http: httpx.AsyncClient, submit: Submit) -> None:
    await http.post("/_simulator/quota", json={"key": 0})
    no_key_quota = await submit()
    assert (no_key_quota.status_code, no_key_quota.json()["code"]) == (403, "pre_consume_token_quota_failed")
    assert no_key_quota.json()["message"].startswith("token quota is not enough, ")
    await http.post("/_simulator/quota", json={"key": 10**9, "account": 0})
    no_quota = await submit()
    assert (no_quota.status_code, no_quota.json()["code"]) == (403, "insufficient_user_quota")
    await http.post("/_simulator/quota", json={"account": 10**9})
    no_model = await http.post("/v1/videos", files=parts("x", model="sora"))
    assert (no_model.status_code, no_model.json()["error"]["code"]) == (503, "model_not_found")
    no_key = await http.post("/v1/videos", files=parts("x"), headers={"Authorization": "Bearer wrong"})
    assert (no_key.status_code, no_key.json()["error"]["message"]) == (401, "Invalid token")
    assert no_key.json()["error"]["code"] == ""
    remix = await http.post("/v1/videos/task_x/remix", json={"prompt": "once more", "model": "veo_3_1-extend"})
    assert (remix.status_code, remix.json()["error"]["code"]) == (500, "new_api_panic")
    assert (sim.ledger.paid()["total"], await log(http)) == (0, [])


async def test_an_image_must_not_be_a_file_part(sim: Simulator, http: httpx.AsyncClient) -> None:
    image = ("input_reference[]", ("a.png", b"\x89PNG\r\n\x1a\n and so on", "image/png"))
    refused = await http.post("/v1/videos", files=[*parts("x"), image])
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_media_input")
    link = ("input_reference[]", (None, "https://a.test/a.png"))
    assert (await http.post("/v1/videos", files=[*parts("x"), link])).status_code == 200
    object.__setattr__(sim.settings, "image_files", True)
    assert (await http.post("/v1/videos", files=[*parts("x"), image])).status_code == 200


async def test_the_link_expires_once_for_all(http: httpx.AsyncClient, submit: Submit) -> None:
    task_id = await task_of(submit, "ok,link_seconds=25")
    async with httpx.AsyncClient() as anybody:
        link = (await envelope(http, task_id))["data"]["video_url"]
        assert (await anybody.get(link, headers={"Range": "bytes=0-0"})).status_code == 206
        await asyncio.sleep(0.6)
        again = (await envelope(http, task_id))["data"]["video_url"]
        assert (await anybody.get(again, headers={"Range": "bytes=0-0"})).status_code == 403


@pytest.mark.parametrize("like", sorted(PERSONALITIES))
async def test_the_accounts_records_can_fail_in_each_of_their_ways(tmp_path: Path, clips: Path, like: str) -> None:
    settings = SimulatorSettings(tmp_path, KEY, cache_dir=clips, seconds=1e-6, like=like, rate_retry_after=True)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with serve(settings) as sim, httpx.AsyncClient(base_url=sim.url, headers=headers) as http:
        await http.post("/v1/videos", files=parts("x"))
        assert len(await listed(http)) == 1
        await http.post("/_simulator/account", json={"tasks": "database_error"})
        answer = (await http.get("/api/task/self", headers=CONSOLE)).json()
        assert (answer["success"], answer["data"]["items"], answer["data"]["total"]) == (True, [], 0)
        for status in ("401", "403"):
            await http.post("/_simulator/account", json={"tasks": status, "log": status})
            for path, who in (("/api/task/self", CONSOLE), ("/api/log/token", headers)):
                assert (await http.get(path, headers=who)).status_code == int(status)
        await http.post("/_simulator/account", json={"tasks": "", "log": ""})
        rationed = [await http.get("/api/log/token") for _ in range(19)]
        assert [one.status_code for one in rationed] == [200] * 18 + [429]
        assert (rationed[-1].content, int(rationed[-1].headers["Retry-After"]) > 1000) == (b"", True)
        assert (await http.get("/api/task/self", headers=CONSOLE)).status_code == 200
        object.__setattr__(sim.settings, "api_calls", 10)
        assert (await http.get("/api/task/self", headers=CONSOLE)).status_code == 429
        assert (await http.post("/_simulator/account", json={"log": "no such fault"})).status_code == 400
