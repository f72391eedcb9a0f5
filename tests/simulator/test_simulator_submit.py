import base64
import hashlib
from typing import Any

import httpx
import pytest

from simulator import Simulator
from simulator.scenarios import SCENARIOS
from tests.simulator.requests_to_simulator import KEY, Submit, parts

PNG = b"\x89PNG\r\n\x1a\n and so on"
JPEG = b"\xff\xd8\xff and so on"
IMAGE = "input_reference[]"
FAULTS = [row for row in SCENARIOS.values() if row.kind == "submit fault"]
WIRE_ERRORS = {
    "submit_reset": httpx.ReadError,
    "submit_close": httpx.RemoteProtocolError,
    "submit_half": httpx.RemoteProtocolError,
    "submit_hang": httpx.ReadTimeout,
}


def file(content: bytes = PNG, name: str = "a.png", kind: str = "image/png") -> tuple[str, Any]:
    return (IMAGE, (name, content, kind))


def text(value: str) -> tuple[str, Any]:
    return (IMAGE, (None, value))


async def test_an_accepted_submission_is_paid_answered_and_written_down(sim: Simulator, submit: Submit) -> None:
    answer = await submit("ok,label=first", size="720x1280")
    body = answer.json()
    assert answer.status_code == 200
    assert body["id"] == body["task_id"]
    assert (body["object"], body["status"], body["progress"]) == ("video", "queued", 0)
    [entry] = sim.ledger.submissions(paid=True)
    assert entry["request_id"] == answer.headers["X-Oneapi-Request-Id"]
    assert entry["task_id"] == body["task_id"]
    assert entry["prompt"] == "a storm [sim:ok,label=first]"
    assert entry["prompt_extend_sha256"] == hashlib.sha256(b"the sea grows calm").hexdigest()
    assert (entry["model"], entry["size"], entry["quota"]) == ("veo_3_1-fast-remix", "720x1280", 425_000)
    assert sim.ledger.paid()["by_tag"] == {"ok,label=first": 1}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(parts("x", model="sora"), 503, id="unknown model: no channel"),
        pytest.param(parts(""), 400, id="no prompt"),
        pytest.param(parts("x", prompt_extend=" "), 400, id="no prompt_extend"),
        pytest.param(parts("x", size="1x1"), 400, id="size"),
        pytest.param([*parts("x"), *[text("https://a.test/a.png")] * 4], 400, id="four references"),
        pytest.param(parts("x", model="veo_3_1-fl-remix"), 400, id="fl without a frame"),
        pytest.param([*parts("x", model="veo_3_1-fl-remix"), *[file()] * 3], 400, id="fl with three frames"),
        pytest.param([*parts("x"), *[("input_reference", (None, "https://a.test/a.png"))] * 2], 400, id="no brackets"),
        pytest.param([*parts("x"), file(b"GIF? no, text")], 400, id="not an image"),
        pytest.param([*parts("x"), file(JPEG)], 400, id="a JPEG called PNG"),
        pytest.param([*parts("x"), file(name="né.png")], 400, id="file name"),
        pytest.param([*parts("x"), text("a.png")], 400, id="neither URL nor data URI"),
        pytest.param([*parts("x"), text("data:image/png;base64,####")], 400, id="bad base64"),
        pytest.param(parts("x [sim:no_such_thing]"), 400, id="unknown scenario"),
        pytest.param(parts("x [sim:query_500,query_502]"), 400, id="others_in_doubt"),
    ],
)
async def test_what_the_contract_forbids_is_refused_and_free(
    sim: Simulator, http: httpx.AsyncClient, sent: list[Any], status: int
) -> None:
    answer = await http.post("/v1/videos", files=sent)
    assert answer.status_code == status, answer.text
    assert sim.ledger.paid()["total"] == 0
    assert sim.ledger.entries[-1]["paid"] is False


async def test_json_is_refused(sim: Simulator, http: httpx.AsyncClient) -> None:
    fields = {"model": "veo_3_1-remix", "prompt": "x", "prompt_extend": "y"}
    assert (await http.post("/v1/videos", json=fields)).status_code == 400
    assert (await http.post("/v1/videos", data=fields)).status_code == 400
    assert sim.ledger.paid()["total"] == 0


async def test_keys_can_be_changed_while_it_runs(http: httpx.AsyncClient, submit: Submit) -> None:
    task_id = (await submit()).json()["task_id"]
    await http.post("/_simulator/keys", json={"valid": ["another"]})
    refused = await submit()
    assert refused.status_code == 401
    assert refused.json()["error"] == {"message": "无效的令牌", "type": "new_api_error", "code": ""}
    assert (await http.get(f"/v1/videos/{task_id}")).status_code == 401
    other = {"Authorization": "Bearer another"}
    assert (await http.get(f"/v1/videos/{task_id}", headers=other)).status_code == 200


async def test_images_arrive_text_parts_first_and_are_described(sim: Simulator, http: httpx.AsyncClient) -> None:
    data = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
    sent = [*parts("x"), file(), text("https://a.test/a.png"), text(data)]
    assert (await http.post("/v1/videos", files=sent)).status_code == 200
    [entry] = sim.ledger.submissions()
    assert [image["kind"] for image in entry["images_as_sent"]] == ["file", "url", "data"]
    assert [image["kind"] for image in entry["images"]] == ["url", "data", "file"]
    url, inline, upload = entry["images"]
    assert url["url"] == "https://a.test/a.png"
    assert inline["sha256"] == hashlib.sha256(JPEG).hexdigest()
    assert upload["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert (upload["filename"], upload["content_type"]) == ("a.png", "image/png")


async def test_first_and_last_frame_keep_their_order_as_two_files(sim: Simulator, http: httpx.AsyncClient) -> None:
    sent = [*parts("x", model="veo_3_1-fast-fl-remix"), file(PNG + b"1"), file(PNG + b"2")]
    assert (await http.post("/v1/videos", files=sent)).status_code == 200
    hashes = [image["sha256"] for image in sim.ledger.submissions()[0]["images"]]
    assert hashes == [hashlib.sha256(PNG + end).hexdigest() for end in (b"1", b"2")]


async def test_seconds_multiplies_the_price(sim: Simulator, submit: Submit) -> None:
    await submit(seconds="15")
    [entry] = sim.ledger.submissions()
    assert entry["quota"] == 15 * 425_000
    assert entry["unknown_fields"] == ["seconds"]


async def test_a_repeated_post_is_paid_again_whatever_its_idempotency_key(
    sim: Simulator, http: httpx.AsyncClient
) -> None:
    for _ in range(2):
        await http.post("/v1/videos", files=parts("again"), headers={"Idempotency-Key": "1"})
    assert sim.ledger.paid()["paid_twice"] == ["again"]


@pytest.mark.parametrize("row", FAULTS, ids=[row.name for row in FAULTS])
async def test_a_submit_fault_is_seen_and_is_paid_or_not_as_the_table_says(
    sim: Simulator, submit: Submit, row: Any
) -> None:
    expected = WIRE_ERRORS.get(row.name)
    if expected:
        with pytest.raises(expected):
            await submit(f"{row.name},times=1,delay=1")
    else:
        answer = await submit(f"{row.name},times=1,delay=1")
        assert answer.status_code == row.fault.status
        assert "X-Oneapi-Request-Id" in answer.headers
    assert sim.ledger.paid()["total"] == int(row.fault.paid)
    assert sim.ledger.entries[-1]["fault"] == row.name
    again = await submit(f"{row.name},times=1,delay=1")
    assert again.status_code == 200, "after `times` attempts the same prompt succeeds"


async def test_the_header_wins_and_unpaid_is_the_other_world(sim: Simulator, http: httpx.AsyncClient) -> None:
    headers = {"X-Simulator-Scenario": "submit_reset,unpaid"}
    with pytest.raises(httpx.ReadError):
        await http.post("/v1/videos", files=parts("x [sim:ok]"), headers=headers)
    assert sim.ledger.paid()["total"] == 0


@pytest.mark.parametrize("value", ["7", "date"])
async def test_retry_after(submit: Submit, value: str) -> None:
    header = (await submit(f"rate_limited,retry_after={value}")).headers["Retry-After"]
    assert header == "7" if value == "7" else header.endswith("GMT")
    assert "Retry-After" not in (await submit("rate_limited")).headers


@pytest.mark.parametrize("word", [row.name for row in SCENARIOS.values() if row.kind == "submit answer"])
async def test_every_submit_answer_is_a_paid_200(sim: Simulator, submit: Submit, word: str) -> None:
    answer = await submit(word)
    assert answer.status_code == 200
    [entry] = sim.ledger.submissions(paid=True)
    nameless = word in {"submit_no_id", "submit_html", "submit_not_json", "submit_empty"}
    assert (entry["task_id"] in answer.text) is not nameless


async def test_a_proxy_and_the_gateway_refuse_large_bodies(sim: Simulator, submit: Submit) -> None:
    object.__setattr__(sim.settings, "max_body_bytes", 300)
    assert (await submit(prompt_extend="x" * 400)).status_code == 400
    object.__setattr__(sim.settings, "proxy_body_bytes", 200)
    answer = await submit(prompt_extend="x" * 400)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "text/html; charset=utf-8")
    assert sim.ledger.paid()["total"] == 0


async def test_an_empty_account_is_refused_until_it_is_topped_up(http: httpx.AsyncClient, submit: Submit) -> None:
    await http.post("/_simulator/quota", json={"account": 500_000})
    assert (await submit()).status_code == 200
    refused = await submit()
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_user_quota")
    await http.post("/_simulator/quota", json={"account": 900_000})
    assert (await submit()).status_code == 200


async def test_remix_is_off_unless_it_is_allowed_and_then_it_is_paid(sim: Simulator, http: httpx.AsyncClient) -> None:
    for tag, status in (("extend_failed", 400), ("extend_failed,remix", 200)):
        task_id = (await http.post("/v1/videos", files=parts(f"[sim:{tag}]"))).json()["task_id"]
        remix_id = (await http.get(f"/v1/videos/{task_id}")).json()["data"]["remix_id"]
        body = {"prompt": "once more", "model": "veo_3_1-extend"}
        answer = await http.post(f"/v1/videos/{remix_id}/remix", json=body)
        assert answer.status_code == status
    assert answer.json()["remixed_from_video_id"] == remix_id
    assert sim.ledger.paid()["by_prompt"]["once more"] == 1
    extended = (await http.get(f"/v1/videos/{answer.json()['task_id']}")).json()
    assert extended["status"] == "SUCCESS"
    unknown = await http.post("/v1/videos/video_unknown/remix", json=body)
    assert unknown.json()["code"] == "task_origin_not_exist"


async def test_account_records(sim: Simulator, http: httpx.AsyncClient, submit: Submit) -> None:
    task_id = (await submit("extend_failed")).json()["task_id"]
    assert (await http.get("/api/task/self")).status_code == 401
    headers = {"Authorization": sim.settings.access_token, "New-Api-User": "2"}
    found = (await http.get("/api/task/self", headers=headers)).json()["data"]
    assert (found["total"], found["items"][0]["task_id"]) == (1, task_id)
    assert found["items"][0]["properties"]["origin_model_name"] == "veo_3_1-fast-remix"
    later = {"start_timestamp": str(2**33)}
    assert (await http.get("/api/task/self", headers=headers, params=later)).json()["data"]["total"] == 0
    log = (await http.get("/api/log/token")).json()["data"]
    assert sorted(row["type"] for row in log) == [2, 6]
    assert any(task_id in row["other"] for row in log)
    assert (await http.get("/api/usage/token/")).json()["data"]["total_used"] == 0
    assert len((await http.get("/v1/models")).json()["data"]) == 8


async def test_account_records_are_rate_limited_and_can_be_closed(http: httpx.AsyncClient) -> None:
    answers = [(await http.get("/api/log/token")).status_code for _ in range(21)]
    assert answers == [200] * 20 + [429]
    await http.post("/_simulator/account", json={"open": False})
    assert (await http.get("/api/log/token")).status_code == 403


async def test_the_key_is_never_in_the_ledger_file(sim: Simulator, submit: Submit) -> None:
    await submit()
    assert KEY not in sim.ledger.path.read_text()
