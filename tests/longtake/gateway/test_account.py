"""The account's records of an unknown submission: of the simulator, and of a server that answers anything."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from longtake.gateway import account as under_test
from longtake.gateway.account import AccountClient, CallWindow, ConsoleAccess, OrphanCandidate
from longtake.gateway.client import GatewayClient, SubmissionForm
from longtake.gateway.errors import ResponseLost
from simulator import Simulator, SimulatorSettings, serve
from simulator.personalities import DOCUMENT, NEWAPI
from tests.longtake.gateway.test_client import Behaviour, CreateIntent, RawGateway, answer, hang, listening, reset, say
from tests.unread import UnreadAnswers

KEY, TOKEN = "sk-simulator-key", "simulator-access-token"
CONSOLE = ConsoleAccess(SecretStr(TOKEN), "2")
MODEL = "veo_3_1-fast-remix"
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECONDS = int(NOON.timestamp())
CLOSED = answer(403, {"code": "access_denied", "message": "access denied", "data": None})
LOG = "/api/log/token"
TASKS = "/api/task/self"


class Clock:
    """Seconds that go on when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Console(RawGateway):
    """The raw server with a behaviour for each route, and its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[object] = []
        self.log: list[object] = []
        self.on: dict[str, Behaviour] = {}
        self.behaviours = [self.route]

    async def route(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = urlsplit(self.requests[-1].target).path
        behave = self.on.get(path) or (self.page() if path == TASKS else answer(200, rows(self.log)))
        await behave(reader, writer)

    def page(self) -> Behaviour:
        """A page as stock gives it: by `p` and `page_size`, with the total."""
        query = self.query(-1)
        page, size = int(query["p"]), int(query["page_size"])
        items = self.tasks[(page - 1) * size : page * size]
        data = {"page": page, "page_size": size, "total": len(self.tasks), "items": items}
        return answer(200, {"success": True, "message": "", "data": data})

    def query(self, place: int) -> dict[str, str]:
        query = parse_qs(urlsplit(self.requests[place].target).query)
        return {name: values[0] for name, values in query.items()}

    @property
    def asked(self) -> list[str]:
        return [urlsplit(request.target).path for request in self.requests]


def rows(data: object) -> dict[str, object]:
    return {"success": True, "message": "", "data": data}


def task(number: int = 1, **fields: object) -> dict[str, object]:
    properties = {"upstream_model_name": "veo3", "origin_model_name": MODEL}
    row = {"id": number, "task_id": f"task_{number}", "status": "IN_PROGRESS", "submit_time": SECONDS, "quota": 425000}
    return {**row, "properties": properties, "data": {"status": "processing", "model": "veo3"}, **fields}


def log_row(kind: object = 2, **fields: object) -> dict[str, object]:
    return {"created_at": SECONDS, "model_name": MODEL, "type": kind, "quota": 1, "other": '{"is_task":true}', **fields}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    async with listening(Console()) as raw:
        yield raw


@pytest.fixture
async def account_client(console: Console, clock: Clock) -> AsyncIterator[AccountClient]:
    async with connect(console.url, clock=clock) as account_client:
        yield account_client


def connect(url: str, console: ConsoleAccess | None = CONSOLE, **options: Any) -> AccountClient:
    return AccountClient(base_url=url, api_key=SecretStr(KEY), console=console, **options)


async def ask(account_client: AccountClient) -> under_test.AccountRecords:
    return await account_client.ask(model=MODEL, since=NOON - timedelta(minutes=2), until=NOON + timedelta(minutes=2))


class TestSimulator:
    @pytest.fixture
    def like(self) -> str:
        return DOCUMENT

    @pytest.fixture
    async def sim(self, tmp_path: Path, like: str) -> AsyncIterator[Simulator]:
        settings = SimulatorSettings(tmp_path, KEY, seconds=1e-6, access_token=TOKEN, user_id=2, like=like)
        async with serve(settings) as simulator:
            yield simulator

    async def ask(self, sim: Simulator, **options: Any) -> under_test.AccountRecords:
        async with connect(sim.url, **options) as account_client:
            return await account_client.ask(
                model=MODEL, since=datetime.now(UTC) - timedelta(minutes=2), until=datetime.now(UTC)
            )

    async def test_the_orphan_of_a_reset_submission(self, sim: Simulator) -> None:
        async with GatewayClient(base_url=sim.url, api_keys=[SecretStr(KEY)]) as client:
            for model, prompt in ((MODEL, "a [sim:submit_reset]"), ("veo_3_1-remix", "another [sim:submit_reset]")):
                with pytest.raises(ResponseLost):
                    await client.submit(
                        SubmissionForm(model=model, prompt=prompt, prompt_extend="b"), before_send=CreateIntent()
                    )
        made = [made for made in sim.tasks if made.model == MODEL]
        said = await self.ask(sim)
        assert said.tasks is not None
        assert [(found.task_id, found.model, found.quota) for found in said.tasks] == [
            (made[0].task_id, MODEL, made[0].quota)
        ]
        assert said.tasks[0].submitted_at == datetime.fromtimestamp(int(made[0].submitted_at), UTC)
        assert (said.charges, said.refunds, said.retry_after) == (1, 0, None)
        assert type(said).model_validate_json(said.model_dump_json()) == said

    async def test_nothing_was_made(self, sim: Simulator) -> None:
        said = await self.ask(sim)
        assert (said.tasks, said.charges, said.refunds) == ((), 0, 0)

    @pytest.mark.parametrize("like", [DOCUMENT, NEWAPI])
    async def test_a_failure_is_refunded(self, sim: Simulator) -> None:
        ids = []
        async with GatewayClient(base_url=sim.url, api_keys=[SecretStr(KEY)]) as client:
            for tag in ("generate_failed", "ok"):
                form = SubmissionForm(model=MODEL, prompt=f"a [sim:{tag}]", prompt_extend="b")
                ids.append((await client.submit(form, before_send=CreateIntent())).task_id)
        async with connect(sim.url) as account_client:
            refund, none = [await account_client.refund_of(task_id) for task_id in ids]
        assert refund is not None
        assert (refund.quota, refund.at is not None, none) == (425_000, True, None)
        said = await self.ask(sim)
        assert (said.charges, said.refunds) == (2, 1)
        assert [found.status for found in said.tasks or ()].count("FAILURE") == 1

    async def test_without_console_access(self, sim: Simulator) -> None:
        said = await self.ask(sim, console=None)
        assert (said.tasks, said.charges) == (None, 0)
        assert "LONGTAKE_CONSOLE_TOKEN" in said.notes[0]

    async def test_a_console_token_that_nobody_knows(self, sim: Simulator) -> None:
        said = await self.ask(sim, console=ConsoleAccess(SecretStr("wrong-token-of-somebody"), "2"))
        assert (said.tasks, said.charges) == (None, 0)
        assert said.notes[0].startswith("the account's task list is closed: HTTP 401: 无权进行此操作")
        assert "wrong-token" not in str(said)

    async def test_closed(self, sim: Simulator) -> None:
        sim.world.account_open = False
        said = await self.ask(sim)
        assert (said.tasks, said.charges, said.refunds, said.retry_after) == (None, None, None, None)
        assert [note.partition(":")[0] for note in said.notes] == [
            "the account's task list is closed",
            "the key's log is closed",
        ]


class TestRationing:
    """Field notes: the log may be asked 20 times in 20 minutes, all of `/api` 180 to 360 times in 180 seconds."""

    async def test_the_log_never_above_its_limit_and_the_list_all_the_same(
        self, console: Console, account_client: AccountClient, clock: Clock
    ) -> None:
        for _ in range(20):
            assert (await ask(account_client)).retry_after is None
        clock.now += 60
        said = await ask(account_client)
        assert (said.tasks, said.charges, said.retry_after) == ((), None, timedelta(minutes=19))
        assert console.asked.count(LOG) == 20
        clock.now += 19 * 60
        assert (await ask(account_client)).charges == 0

    async def test_the_list_never_above_its_own(
        self, console: Console, account_client: AccountClient, clock: Clock
    ) -> None:
        for _ in range(60):
            await account_client.ask(model=MODEL, since=NOON, until=NOON, log=False)
        clock.now += 60
        said = await account_client.ask(model=MODEL, since=NOON, until=NOON, log=False)
        assert (said.tasks, said.retry_after) == (None, timedelta(minutes=2))
        assert console.asked == [TASKS] * 60

    async def test_others_used_the_limit_of_everything_up(
        self, console: Console, account_client: AccountClient, clock: Clock
    ) -> None:
        console.on[TASKS] = answer(429, b"")
        said = await ask(account_client)
        assert (said.tasks, said.charges, said.retry_after) == (None, None, timedelta(minutes=3))
        clock.now += 179
        assert (await ask(account_client)).retry_after == timedelta(seconds=1)
        assert console.asked == [TASKS], "it keeps the log, and the next question, from being asked at all"

    async def test_others_used_the_limit_of_the_log_up(self, console: Console, account_client: AccountClient) -> None:
        console.on[LOG] = answer(429, b"")
        assert (await ask(account_client)).retry_after == timedelta(minutes=5)
        said = await ask(account_client)
        assert (said.tasks, said.charges) == ((), None)
        assert console.asked == [TASKS, LOG, TASKS]


class TestNewest:
    async def test_any_model_and_any_time(self, console: Console, account_client: AccountClient) -> None:
        console.tasks = [task(2, properties={"origin_model_name": "other"}), task(1, submit_time=0), {"id": 7}]
        said = await account_client.ask_newest()
        assert [(seen.task_id, seen.submitted_at) for seen in said.seen] == [("task_2", NOON), ("task_1", None)]
        assert console.query(0) == {"p": "1", "page_size": "100"}
        assert type(said).model_validate_json(said.model_dump_json()) == said

    async def test_trouble_is_a_note(self, console: Console, account_client: AccountClient) -> None:
        console.on[TASKS] = answer(502, b"")
        said = await account_client.ask_newest()
        assert (said.seen, said.retry_after) == ((), timedelta(minutes=1))
        assert said.notes


class TestTaskList:
    async def test_what_is_sent(self, console: Console, account_client: AccountClient) -> None:
        await account_client.ask(model=MODEL, since=NOON, until=NOON + timedelta(seconds=0.5))
        request = console.requests[0]
        assert (request.headers["Authorization"], request.headers["New-Api-User"]) == (f"Bearer {TOKEN}", "2")
        assert console.query(0) == {
            "start_timestamp": str(SECONDS),
            "end_timestamp": str(SECONDS + 1),
            "p": "1",
            "page_size": "100",
        }
        assert console.requests[1].headers["Authorization"] == f"Bearer {KEY}"
        assert console.requests[1].headers["New-Api-User"] is None
        assert console.asked == [TASKS, LOG]

    async def test_the_others_are_left_out(self, console: Console, account_client: AccountClient) -> None:
        console.tasks = [
            task(6, submit_time=SECONDS + 1),
            task(5, properties={"origin_model_name": "veo_3_1-remix"}),
            task(4, submit_time=SECONDS + 121),  # a relay that ignores the window
            task(3, submit_time=SECONDS - 121),
            {"task_id": "song", "status": "SUCCESS", "submit_time": SECONDS - 10**6, "data": [{"a": 1}, {"b": 2}]},
            {"status": "SUCCESS", "properties": {"origin_model_name": "suno"}},
            task(1),
        ]
        assert (await ask(account_client)).tasks == (
            OrphanCandidate(task_id="task_1", submitted_at=NOON, model=MODEL, status="IN_PROGRESS", quota=425000),
            OrphanCandidate(
                task_id="task_6",
                submitted_at=NOON + timedelta(seconds=1),
                model=MODEL,
                status="IN_PROGRESS",
                quota=425000,
            ),
        )

    @pytest.mark.parametrize(
        "row",
        [
            task(submit_time=SECONDS * 1000),
            task(submit_time=0, created_at=SECONDS),
            task(submit_time=str(SECONDS)),
            task(properties=json.dumps({"origin_model_name": MODEL})),
            task(properties=None, data={"model": MODEL, "status": "queued"}),
            task(properties={"input": ""}, model_name=MODEL),
            task(data=None, status="NOT_START"),
            task(data={"error": {"message": "upstream", "code": "x"}}, status="FAILURE"),
            {"code": "success", "data": task()},
            {"id": "task_1", "object": "video", "model": MODEL, "created_at": SECONDS, "status": "queued"},
        ],
    )
    async def test_rows(self, console: Console, account_client: AccountClient, row: object) -> None:
        console.tasks = [row]
        tasks = (await ask(account_client)).tasks
        assert tasks is not None
        assert [(found.task_id, found.submitted_at, found.model) for found in tasks] == [("task_1", NOON, MODEL)]

    @pytest.mark.parametrize(
        "body",
        [
            [task()],
            {"data": [task()]},
            {"items": [task()], "total": 1},
            {"data": {"list": [task()]}},
            {"code": 0, "data": {"data": {"items": [task()], "total": "1"}}},
        ],
    )
    async def test_envelopes(self, console: Console, account_client: AccountClient, body: object) -> None:
        console.on[TASKS] = answer(200, body)
        tasks = (await ask(account_client)).tasks
        assert tasks is not None
        assert [found.task_id for found in tasks] == ["task_1"]

    async def test_all_pages(self, console: Console, account_client: AccountClient) -> None:
        console.tasks = [task(number) for number in range(250, 0, -1)]
        assert len((await ask(account_client)).tasks or ()) == 250
        assert [console.query(place)["p"] for place in range(3)] == ["1", "2", "3"]

    async def test_a_relay_with_small_pages(self, console: Console, account_client: AccountClient) -> None:
        ten = [answer(200, rows({"total": 15, "items": [task(n) for n in range(10)]}))]
        ten += [answer(200, rows({"total": 15, "items": [task(n) for n in range(9, 15)]}))]  # one came meanwhile
        console.on[TASKS] = taking_turns(*ten)
        assert len((await ask(account_client)).tasks or ()) == 15

    async def test_a_relay_that_knows_no_pages(self, console: Console, account_client: AccountClient) -> None:
        console.on[TASKS] = answer(200, rows([task(1), task(2)]))
        assert len((await ask(account_client)).tasks or ()) == 2
        assert console.asked == [TASKS, TASKS, LOG]

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            (task(task_id=""), "cannot be read"),
            (task(submit_time=0), "cannot be read"),
            (None, "cannot be read"),
            ({"message": "?"}, "cannot be read"),
        ],
    )
    async def test_one_row_that_may_be_it_spoils_the_list(
        self, console: Console, account_client: AccountClient, row: object, says: str
    ) -> None:
        console.tasks = [task(7), row]
        said = await ask(account_client)
        assert (said.tasks, said.retry_after) == (None, None)
        assert says in said.notes[0]

    async def test_a_row_without_a_model_is_a_task_of_unknown_model(
        self, console: Console, account_client: AccountClient
    ) -> None:
        console.tasks = [
            task(1),
            task(2, properties={"input": ""}, data=None),
            task(3, properties={}, data=None, submit_time=SECONDS + 500),
            task(4, properties={"input": ""}, model_name="veo_3_1-remix", data={"model": MODEL}),
        ]
        tasks = (await ask(account_client)).tasks
        assert tasks is not None
        assert {(found.task_id, found.model) for found in tasks} == {("task_1", MODEL), ("task_2", "")}

    async def test_an_incomplete_list_is_none(self, console: Console, account_client: AccountClient) -> None:
        console.on[TASKS] = taking_turns(
            answer(200, rows({"total": 3, "items": [task(1)]})), answer(200, rows({"total": 3, "items": []}))
        )
        said = await ask(account_client)
        assert (said.tasks, said.retry_after) == (None, timedelta(minutes=1))
        assert "incomplete: it showed 1 tasks of 3" in said.notes[0]

    async def test_a_database_that_fails_between_two_pages(
        self, console: Console, account_client: AccountClient
    ) -> None:
        """Stock answers that with an empty list: none in all."""
        hundred = [task(number) for number in range(100)]
        console.on[TASKS] = taking_turns(
            answer(200, rows({"total": 150, "items": hundred})), answer(200, rows({"total": 0, "items": []}))
        )
        said = await ask(account_client)
        assert (said.tasks, said.seen, said.retry_after) == (None, (), timedelta(minutes=1))

    async def test_a_database_that_cannot_count(self, console: Console, account_client: AccountClient) -> None:
        pages = [[task(number) for number in range(100)], [task(number) for number in range(100, 120)], []]
        console.on[TASKS] = taking_turns(*(answer(200, rows({"total": 0, "items": page})) for page in pages))
        assert len((await ask(account_client)).tasks or ()) == 120

    async def test_all_that_it_shows_can_be_known_again(self, console: Console, account_client: AccountClient) -> None:
        console.tasks = [task(2, properties={"origin_model_name": "veo_3_1-remix"}), task(1)]
        said = await ask(account_client)
        assert [seen.task_id for seen in said.seen] == ["task_2", "task_1"]
        assert [found.task_id for found in said.tasks or ()] == ["task_1"]

    async def test_a_page_that_fails_makes_it_none(self, console: Console, account_client: AccountClient) -> None:
        console.on[TASKS] = taking_turns(answer(200, rows({"total": 200, "items": [task(1)]})), answer(502, b"<html>"))
        said = await ask(account_client)
        assert (said.tasks, said.charges, said.retry_after) == (None, 0, timedelta(minutes=1))

    async def test_too_many(self, console: Console, account_client: AccountClient) -> None:
        console.tasks = [task(number) for number in range(1001)]
        said = await ask(account_client)
        assert (said.tasks, said.charges) == (None, 0)
        assert len(console.requests) == 11
        assert "too many tasks" in said.notes[0]


class TestLog:
    async def test_counts(self, console: Console, account_client: AccountClient) -> None:
        resolved = '{"task_id":"task_1","pre_consumed_quota":1,"actual_quota":2}'
        console.log = [
            log_row(),
            log_row("2", created_at=SECONDS * 1000, other={"is_task": True}),
            log_row(other="{not JSON"),
            log_row(6, other='{"task_id":"task_1"}'),
            log_row(6, other='{"task_id":"task_2","pre_consumed_quota":1,"reason":"failed"}'),
            log_row(6, other='{"task_id":"task_3","pre_consumed_quota":1,"actual_quota":0}'),
            log_row(2, other='{"is_task":true,"pre_consumed_quota":1,"final_quota":1}'),
            log_row(2, other=resolved),
            log_row(6, other=resolved),
            log_row(5),
            log_row(model_name="veo_3_1-remix"),
            log_row(created_at=SECONDS - 121),
            {"type": 1, "created_at": SECONDS, "model_name": "", "other": ""},
        ]
        said = await ask(account_client)
        assert (said.charges, said.refunds) == (4, 3)
        assert said.charged_at == (NOON,) * 4

    @pytest.mark.parametrize(
        "row", [None, {}, log_row(None), log_row(created_at=None), log_row(model_name=None), log_row(model_name="")]
    )
    async def test_one_row_that_may_be_it_spoils_the_log(
        self, console: Console, account_client: AccountClient, row: object
    ) -> None:
        console.log = [log_row(), row]
        said = await ask(account_client)
        assert (said.tasks, said.charges, said.refunds) == ((), None, None)

    async def test_a_log_that_does_not_reach_back(self, console: Console, account_client: AccountClient) -> None:
        console.log = [log_row(created_at=SECONDS + 60)] * 1000
        said = await ask(account_client)
        assert said.charges is None
        assert "only its last 1000 rows" in said.notes[1]
        console.log.append(log_row(created_at=SECONDS - 1000))
        assert (await ask(account_client)).charges == 1000


class TestClosed:
    @pytest.mark.parametrize(
        "behaviour",
        [
            CLOSED,
            answer(401, {"success": False, "message": "无效的令牌"}),
            answer(404, b"404 page not found"),
            answer(405, b""),
            answer(302, b"", Location="/login"),
            answer(200, b"<html><title>Console</title>"),
            answer(200, {"success": False, "message": "无权进行此操作，access token 无效"}),
        ],
        ids=["403", "401", "404", "405", "302", "a page", "refused with 200"],
    )
    async def test_is_remembered_for_a_while(
        self, console: Console, account_client: AccountClient, clock: Clock, behaviour: Behaviour
    ) -> None:
        console.on = dict.fromkeys((TASKS, LOG), behaviour)
        first = await ask(account_client)
        assert (first.tasks, first.charges, first.refunds, first.retry_after) == (None, None, None, None)
        assert all(" is closed: HTTP " in note for note in first.notes)
        console.on = {}
        clock.now += 15 * 60 - 1
        assert await ask(account_client) == first
        assert len(console.requests) == 2
        clock.now += 1
        assert (await ask(account_client)).tasks == ()

    async def test_one_closed_record_does_not_close_the_other(
        self, console: Console, account_client: AccountClient
    ) -> None:
        console.on[TASKS] = CLOSED
        console.log = [log_row()]
        said = await ask(account_client)
        assert (said.tasks, said.charges) == (None, 1)


class TestTrouble:
    @pytest.mark.parametrize(
        "behaviour",
        [reset, say(b""), say(b"SMTP\r\n"), answer(502, b"<html>"), answer(500, {"success": False, "message": "db"})],
        ids=["reset", "closed", "no HTTP", "502", "500"],
    )
    async def test_is_not_remembered(
        self, console: Console, account_client: AccountClient, behaviour: Behaviour
    ) -> None:
        console.on = dict.fromkeys((TASKS, LOG), behaviour)
        said = await ask(account_client)
        assert (said.tasks, said.charges, said.retry_after) == (None, None, timedelta(minutes=1))
        assert all("could not be asked" in note for note in said.notes)
        console.on = {}
        assert (await ask(account_client)).tasks == ()

    async def test_no_answer(self, console: Console, account_client: AccountClient) -> None:
        account_client._gateway._query_seconds = 0.2
        console.on = dict.fromkeys((TASKS, LOG), hang)
        assert (await ask(account_client)).retry_after == timedelta(minutes=1)

    async def test_nobody_there(self) -> None:
        async with connect("http://127.0.0.1:9") as account_client:
            assert (await ask(account_client)).retry_after == timedelta(minutes=1)

    @pytest.mark.parametrize("body", [{"success": True, "data": None}, {}, 7, "x", {"data": {"items": 1}}])
    async def test_no_list(self, console: Console, account_client: AccountClient, body: object) -> None:
        console.on = dict.fromkeys((TASKS, LOG), answer(200, body))
        said = await ask(account_client)
        assert (said.tasks, said.charges, said.retry_after) == (None, None, None)

    async def test_an_answer_without_end(self, console: Console, account_client: AccountClient) -> None:
        console.on = dict.fromkeys((TASKS, LOG), answer(200, b" " * (4 * 1024 * 1024 + 1)))
        assert "larger than" in (await ask(account_client)).notes[0]

    async def test_as_long_as_the_gateway_asks(
        self, console: Console, account_client: AccountClient, clock: Clock
    ) -> None:
        console.on = {TASKS: answer(429, b"", Retry_After="40")}
        assert (await ask(account_client)).retry_after == timedelta(seconds=40)
        console.on = {}
        clock.now += 40
        assert (await ask(account_client)).retry_after is None

    async def test_no_secret_comes_back(
        self, console: Console, account_client: AccountClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        message = f"{KEY} or {TOKEN}? see https://gw.example/x?sig=SECRET"
        for status in (403, 500):
            console.on = dict.fromkeys((TASKS, LOG), answer(status, {"success": False, "message": message}))
            async with connect(console.url) as others:
                said = await ask(others)
            for secret in (KEY, TOKEN, "SECRET"):
                assert secret not in str(said)
                assert secret not in caplog.text
        assert TOKEN not in repr(CONSOLE)

    @pytest.mark.parametrize(
        ("access", "named"),
        [
            (ConsoleAccess(SecretStr(""), "2"), "LONGTAKE_CONSOLE_TOKEN"),
            (ConsoleAccess(SecretStr("t\r\nX: y"), "2"), "LONGTAKE_CONSOLE_TOKEN"),
            (ConsoleAccess(SecretStr("t"), "2\n3"), "LONGTAKE_CONSOLE_USER"),
        ],
    )
    def test_access_that_cannot_be_sent(self, access: ConsoleAccess, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            connect("http://gateway.example", access)


class TestCallWindow:
    def test_slides(self, clock: Clock) -> None:
        window = CallWindow(2, timedelta(seconds=10), clock=clock)
        assert window.take() is None
        clock.now += 4
        assert window.take() is None
        assert window.take() == timedelta(seconds=6)
        clock.now += 6
        assert window.take() is None
        assert window.take() == timedelta(seconds=4)

    @given(st.lists(st.floats(0, 30), max_size=60))
    def test_never_more_than_allowed(self, pauses: list[float]) -> None:
        clock = Clock()
        window = CallWindow(3, timedelta(seconds=20), clock=clock)
        taken: list[float] = []
        for pause in pauses:
            clock.now += pause
            if window.take() is None:
                taken.append(clock.now)
        assert all(later - earlier >= 20 for earlier, later in zip(taken, taken[3:], strict=False))


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**400, SECONDS, SECONDS * 1000, MODEL, "SUCCESS", '{"data":[]}', "[" * 5000, "\ud800", 2, 6])
)  # fmt: skip
FIELDS = ["success", "data", "items", "list", "total", "message", "code", "error", "status", "task_id", "id", "type"]
FIELDS += ["submit_time", "created_at", "model", "properties", "origin_model_name", "model_name", "other", "quota"]
NAMES = st.text(max_size=3) | st.sampled_from(FIELDS)
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=8), max_leaves=25
)
ROWS = st.lists(
    ANY_JSON
    | st.dictionaries(NAMES, SCALARS | st.just({"origin_model_name": MODEL}), max_size=12)
    | st.sampled_from([task(), log_row()]),
    max_size=4,
)


@pytest.fixture(scope="module")
def answered() -> Iterator[Callable[[int, bytes], under_test.AccountRecords]]:
    """What the account client makes of this answer, one client for all examples: a client takes 20 ms to make."""
    clock = Clock()
    now = (200, b"")
    transport = UnreadAnswers(lambda _: httpx.Response(now[0], content=now[1]))
    account_client = connect("http://gateway.example", clock=clock, transport=transport)

    with asyncio.Runner() as runner:

        def hear(status: int, content: bytes) -> under_test.AccountRecords:
            nonlocal now
            clock.now += 86_400  # nothing is remembered
            now = (status, content)
            return runner.run(ask(account_client))

        yield hear
        runner.run(account_client.aclose())


class TestAnyAnswer:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        body=ANY_JSON | ROWS | ROWS.map(rows) | ROWS.map(lambda found: rows({"items": found, "total": len(found)})),
        status=st.sampled_from([200, 200, 200, 200, 201, 304, 403, 429, 500]),
    )
    @example(body=[{"model_name": "\ud800"}], status=200)
    def test_never_raises(
        self, answered: Callable[[int, bytes], under_test.AccountRecords], body: object, status: int
    ) -> None:
        said = answered(status, json.dumps(body).encode())
        assert len(said.notes) == 2
        assert type(said).model_validate_json(said.model_dump_json()) == said
        for found in said.tasks or ():
            assert found.model == MODEL
            assert abs(found.submitted_at - NOON) <= timedelta(minutes=2)

    @settings(max_examples=50, deadline=None)
    @given(content=st.binary(max_size=40), status=st.integers(200, 599))
    def test_nor_any_bytes(
        self, answered: Callable[[int, bytes], under_test.AccountRecords], content: bytes, status: int
    ) -> None:
        assert len(answered(status, content).notes) == 2


def taking_turns(*behaviours: Behaviour) -> Behaviour:
    turns = list(behaviours)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await turns.pop(0)(reader, writer)

    return behave
