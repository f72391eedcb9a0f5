"""What is adopted, shown and said of a submission in doubt: real ledger, real HTTP, an account made up for it."""

import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from longtake.gateway import account as said_module
from longtake.gateway.account import AccountClient, Charge, ConsoleAccess, OrphanCandidate, SeenTask
from longtake.gateway.client import SubmittedTask, fingerprint
from longtake.gateway.errors import InvalidResponse, ResponseLost
from longtake.models import Paid, ReconcileInput, Reconciliation, SubmissionReceipt
from longtake.storage import Store
from longtake.submission import ledger as ledger_module
from longtake.submission import reconciliation as reconciliation_module
from longtake.submission import records as records_module
from longtake.submission.charges import CLOCK_SKEW, LATE_ACCEPTANCE
from longtake.submission.errors import OutcomeUnknown, SubmissionInDoubt, TaskOwned
from longtake.submission.ledger import CreateIntent, Submission, SubmissionLedger
from longtake.submission.reconciliation import (
    LATEST_TASK,
    MAX_RESUBMISSIONS,
    REPORTING_DELAY,
    Resubmit,
    reconcile,
)
from longtake.submission.records import TaskOwner, folder_of, open_path, owner_path, record_path
from tests.longtake.gateway.test_account import LOG, TASKS, Console, rows
from tests.longtake.gateway.test_client import Behaviour, answer, listening

KEY, MODEL = "order-1", "veo_3_1-fast-remix"
API_KEY = "sk-simulator-key"
WINDOW = timedelta(seconds=150)  # two minutes of exchange, and the ledger's margin
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(autouse=True)
def _as_if_imported_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run comes to these tests minutes after it has imported them, and their moments are told from now on."""
    module = sys.modules[__name__]
    passed = datetime.now(UTC).replace(microsecond=0) - NOW
    for name in ("NOW", "SENT", "LONG_AGO", "AFTER"):
        monkeypatch.setattr(module, name, getattr(module, name) + passed)


class Account(Console):
    """A console that filters by submit time and pages, as stock does, and a log."""

    def __init__(self) -> None:
        super().__init__()
        self.broken_lists = 0
        self.made: list[dict[str, object]] = []

    def makes(
        self, task_id: str, at: datetime, *, model: str = MODEL, charged: bool = True, request_id: str = ""
    ) -> None:
        seconds = int(at.timestamp())
        properties = {"origin_model_name": model} if model else {}
        self.made.append({"task_id": task_id, "status": "SUCCESS", "submit_time": seconds, "properties": properties})
        if charged:
            self.charges(at, request_id=request_id)

    def charges(self, at: datetime, *, request_id: str = "", model: str = MODEL) -> None:
        named = {"request_id": request_id} if request_id else {}
        self.log.append({"created_at": int(at.timestamp()), "model_name": model, "type": 2, "other": "{}", **named})

    def page(self) -> Behaviour:
        query = self.query(-1)
        since, until = int(query.get("start_timestamp", 0)), int(query.get("end_timestamp", 2**40))
        newest = sorted(self.made, key=lambda row: -int(str(row["submit_time"])))
        self.tasks = [row for row in newest if since <= int(str(row["submit_time"])) <= until]
        if self.broken_lists:
            self.broken_lists -= 1
            return answer(200, rows({"total": 0, "items": []}))
        return super().page()


@pytest.fixture
async def account() -> AsyncIterator[Account]:
    async with listening(Account()) as raw:
        yield raw


@pytest.fixture
async def account_client(account: Account) -> AsyncIterator[AccountClient]:
    console = ConsoleAccess(SecretStr("token-of-the-console"), "2")
    async with AccountClient(base_url=account.url, api_key=SecretStr(API_KEY), console=console) as account_client:
        yield account_client


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


@pytest.fixture
def ledger(store: Store) -> SubmissionLedger:
    return SubmissionLedger(store, longest_exchange=timedelta(seconds=120))


class Site:
    """Generations of this ledger, at times of the past."""

    def __init__(self, ledger: SubmissionLedger, store: Store, account: Account, account_client: AccountClient) -> None:
        self.ledger, self.store, self.account, self.account_client = ledger, store, account, account_client

    async def lost(
        self, key: str, *, sent_at: datetime, killed: bool = True, clock_ahead: timedelta = timedelta(), **options: Any
    ) -> None:
        """One whose answer was lost, with its process or without; `sent_at` by the clock of its worker."""
        error = ResponseLost("reset")
        with pytest.raises(OutcomeUnknown):
            await self._submit(key, error, **options)
        await self._date(key, sent_at, clock_ahead=clock_ahead)
        if killed:
            await self.store.delete(record_path(folder_of(key), 1, "response"))

    async def answered(
        self,
        key: str,
        *,
        sent_at: datetime,
        error: Exception,
        slot: int = 1,
        clock_ahead: timedelta = timedelta(),
        **options: Any,
    ) -> None:
        """One that the gateway answered with nothing that helps."""
        with pytest.raises(OutcomeUnknown):
            await self._submit(key, error, **options)
        await self._date(key, sent_at, slot, clock_ahead)
        await self._change(
            record_path(folder_of(key), slot, "response"), at=(sent_at + timedelta(seconds=1)).isoformat()
        )

    async def paid(
        self, key: str, task_id: str, at: datetime, *, named: bool = False, charged: bool = True, **options: Any
    ) -> None:
        """One that went well."""
        await self._submit(key, task_id, **options)
        await self._date(key, at)
        await self._change(owner_path(task_id), sent_at=at.isoformat())
        self.account.makes(task_id, at, charged=charged, request_id=f"request-of-{key}" if named else "")

    async def check(self, key: str = KEY, resubmit: Resubmit = Resubmit.NEVER) -> Reconciliation:
        question = ReconcileInput(key=key, model=MODEL, digest="what is sent")
        return await reconcile(self.ledger, self.account_client, question, writer="the test", resubmit=resubmit)

    async def _submit(self, key: str, end: str | Exception, **options: Any) -> None:
        async def send(create_intent: CreateIntent) -> SubmittedTask:
            await create_intent()
            if isinstance(end, Exception):
                raise end
            return SubmittedTask(end, "request-of-" + key)

        await self.ledger.submit(
            key, Submission(digest="what is sent", writer=f"owner of {key}", model=MODEL, **options), send
        )

    async def _date(self, key: str, sent_at: datetime, slot: int = 1, clock_ahead: timedelta = timedelta()) -> None:
        await self._change(record_path(folder_of(key), slot, "intent"), sent_at=sent_at.isoformat())
        entry = Path(self.store.url.removeprefix("file://")) / open_path(folder_of(key), slot)
        if entry.exists():
            os.utime(entry, times=((sent_at - clock_ahead).timestamp(),) * 2)

    async def _change(self, path: str, **fields: object) -> None:
        record = json.loads(await self.store.get(path) or b"")
        await self.store.put(path, json.dumps(record | fields).encode())


@pytest.fixture
def site(ledger: SubmissionLedger, store: Store, account: Account, account_client: AccountClient) -> Site:
    return Site(ledger, store, account, account_client)


def ago(**units: float) -> datetime:
    return NOW - timedelta(**units)


async def test_the_only_orphan_of_its_time_is_adopted(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=21))
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_orphan", ago(minutes=19))
    found = await site.check()
    assert found.receipt
    assert (found.receipt.task_id, found.clear) == ("task_orphan", False)


async def test_what_it_had_claimed_before_it_crashed_is_its_own(site: Site) -> None:
    """It died between the two records of what it had made: whose the task is, and what came of the submission."""
    start = ago(minutes=20)
    await site.lost("another", sent_at=start)
    await site.lost(KEY, sent_at=start)
    site.account.makes("task_claimed", ago(minutes=19))
    doubt = await site.ledger.doubt(KEY, 1)
    assert doubt
    await site.ledger._records.claim("task_claimed", TaskOwner(nonce=doubt.intent.nonce, folder=folder_of(KEY)))
    found = await site.check()
    assert found.receipt, found
    assert found.receipt.task_id == "task_claimed"


# --- Another generation's orphan (X is sent, accepted very late; Y of the same model is sent in between) --------------


async def x_and_y(site: Site) -> None:
    start = ago(hours=1)
    await site.paid("earlier", "task_ours", start)
    await site.lost("X", sent_at=start)
    await site.lost("Y", sent_at=start + timedelta(seconds=300))
    site.account.makes("task_of_X", start + timedelta(seconds=400))


async def test_another_generations_late_orphan_is_not_adopted(site: Site) -> None:
    await x_and_y(site)
    found = await site.check("Y")
    assert found.receipt is None
    assert found.candidates == ("task_of_X",)


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_a_task_is_not_adopted_that_a_writer_with_a_wrong_clock_may_have_made(site: Site, in_doubt: bool) -> None:
    """By its own date it was sent when the task was not made; by the store's it was."""
    await site.paid("earlier", "task_ours", ago(minutes=25))
    await site.lost(KEY, sent_at=ago(minutes=24))
    if in_doubt:
        await site.lost("another", sent_at=ago(minutes=16), clock_ahead=timedelta(minutes=7))
    site.account.makes("task_of_somebody", ago(minutes=22))
    found = await site.check()
    assert found.candidates == ("task_of_somebody",)
    assert (found.receipt is None) is in_doubt, "\n".join(found.evidence)


@pytest.mark.parametrize("ahead", [-10, -2.5, -1, 1, 2.5, 10])
async def test_a_task_is_found_and_shown_though_its_own_workers_clock_was_wrong(site: Site, ahead: float) -> None:
    """The store's clock dates it too. Within what clocks may differ it is adopted, else a person decides."""
    made_at = ago(minutes=40)
    await site.paid("earlier", "task_ours", made_at)
    await site.lost(KEY, sent_at=made_at + timedelta(minutes=ahead), clock_ahead=timedelta(minutes=ahead))
    site.account.makes("task_orphan", made_at + timedelta(seconds=20))
    found = await site.check()
    assert found.candidates == ("task_orphan",)
    assert (found.receipt is not None) is (abs(ahead) <= 2), "\n".join(found.evidence)


@pytest.mark.parametrize("ahead", [-10, 10])
async def test_what_a_worker_with_a_wrong_clock_sent_adopts_nothing_of_the_time_that_it_believed(
    site: Site, ahead: float
) -> None:
    """Somebody made a task by hand just then; this submission made nothing."""
    await site.paid("earlier", "task_ours", ago(minutes=41))
    await site.lost(KEY, sent_at=ago(minutes=40), clock_ahead=timedelta(minutes=ahead))
    site.account.makes("task_by_hand", ago(minutes=40))
    assert (await site.check()).receipt is None


async def test_a_late_orphan_is_shown_and_not_adopted(site: Site) -> None:
    await x_and_y(site)
    found = await site.check("X")
    assert found.receipt is None
    assert found.candidates == ("task_of_X",)


async def test_a_late_orphan_is_not_adopted_even_where_nobody_else_is_in_doubt(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(hours=1))
    await site.lost(KEY, sent_at=ago(hours=1))
    site.account.makes("task_late", ago(hours=1) + WINDOW + REPORTING_DELAY + timedelta(seconds=5))
    found = await site.check()
    assert (found.receipt, found.candidates) == (None, ("task_late",))


async def test_when_one_doubt_is_resolved_the_other_ones_orphan_is_adopted(site: Site) -> None:
    await x_and_y(site)
    await site.ledger.resolve("X", 1, task_id="task_of_X", reason="decided")
    site.account.makes("task_of_Y", ago(hours=1) + timedelta(seconds=310))
    found = await site.check("Y")
    assert found.receipt
    assert found.receipt.task_id == "task_of_Y"


async def test_whom_a_person_believed_to_have_made_nothing_may_have_made_it_all_the_same(site: Site) -> None:
    await x_and_y(site)
    await site.ledger.resolve("X", 1, task_id=None, reason="decided")
    assert (await site.check("Y")).receipt is None


async def test_whoever_is_left_in_doubt_for_ever_does_not_stop_all_that_follow(site: Site) -> None:
    await site.lost("abandoned", sent_at=ago(days=3))
    await site.paid("earlier", "task_ours", ago(minutes=21))
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_orphan", ago(minutes=19))
    assert (await site.check()).receipt


# --- Tasks of unknown model -------------------------------------------------------------------------------------------


async def test_beside_a_task_of_unknown_model_nothing_is_adopted(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=21))
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_orphan", ago(minutes=19))
    site.account.makes("task_of_unknown_model", ago(minutes=18), model="", charged=False)
    found = await site.check()
    assert found.receipt is None
    assert set(found.candidates) == {"task_orphan", "task_of_unknown_model"}


async def test_the_only_task_is_not_adopted_where_its_model_is_unknown(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=21))
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_of_unknown_model", ago(minutes=19), model="")
    found = await site.check()
    assert (found.receipt, found.candidates) == (None, ("task_of_unknown_model",))


async def test_a_task_of_unknown_model_that_is_ours_stops_nothing(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=20))
    site.account.made[0]["properties"] = {"input": ""}
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_orphan", ago(minutes=19))
    found = await site.check()
    assert found.receipt
    assert found.receipt.task_id == "task_orphan"


# --- Which list counts ------------------------------------------------------------------------------------------------


async def test_an_orphan_in_a_list_that_shows_nothing_of_ours_is_not_adopted(site: Site) -> None:
    """It may be another account's list, or an account that we know nothing of."""
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_orphan", ago(minutes=19))
    found = await site.check()
    assert (found.receipt, found.candidates) == (None, ("task_orphan",))
    assert any("could not be confirmed" in line for line in found.evidence)


async def test_a_list_that_shows_a_task_of_ours_outside_the_window_is_confirmed(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(days=2))
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_orphan", ago(minutes=19))
    assert (await site.check()).receipt


async def test_the_empty_list_of_a_broken_database_proves_nothing(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(days=2))
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_orphan", ago(minutes=19))
    for broken in (1, 2, 3):
        site.account.broken_lists = broken
        found = await site.check()
        site.account.broken_lists = 0
        assert (found.receipt, found.clear) == (None, False)
        assert any("could not be confirmed" in line for line in found.evidence)
    assert (await site.check()).receipt


async def test_a_confirmed_list_without_an_orphan_says_so_without_a_doubt(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=20))
    await site.lost(KEY, sent_at=ago(minutes=20))
    found = await site.check()
    assert (found.receipt, found.candidates) == (None, ())
    assert not any("could not be confirmed" in line for line in found.evidence)


async def test_a_task_of_another_account_confirms_nothing(site: Site) -> None:
    """The console's token may be of the account that was used before."""
    await site.paid("earlier", "task_ours", ago(minutes=21), account="the one before")
    await site.lost(KEY, sent_at=ago(minutes=20), account=site.account_client.account)
    site.account.makes("task_orphan", ago(minutes=19))
    assert (await site.check()).receipt is None
    await site.paid("later", "task_too", ago(minutes=20), account=site.account_client.account)
    assert (await site.check()).receipt


# --- Charges ----------------------------------------------------------------------------------------------------------


async def test_what_the_key_was_not_charged_for_is_not_adopted(site: Site) -> None:
    """The charges of that time are all explained by tasks of ours."""
    await site.paid("earlier", "task_ours", ago(minutes=19))
    await site.lost(KEY, sent_at=ago(minutes=20))
    site.account.makes("task_of_another_key", ago(minutes=19), charged=False)
    found = await site.check()
    assert (found.receipt, found.candidates) == (None, ("task_of_another_key",))


async def test_charges_that_nobody_owns_are_shown_with_their_times(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=20))
    await site.lost(KEY, sent_at=ago(minutes=20))
    charged = ago(minutes=19)
    site.account.log.append({"created_at": int(charged.timestamp()), "model_name": MODEL, "type": 2, "other": "{}"})
    found = await site.check()
    assert found.receipt is None
    (line,) = [line for line in found.evidence if f"{charged:%Y-%m-%d %H:%M:%S}" in line]
    assert f"{ago(minutes=20):%H:%M:%S}" not in line


async def test_only_so_many_charges_are_shown(site: Site) -> None:
    await site.lost(KEY, sent_at=ago(minutes=20))
    for number in range(30):
        site.account.makes(f"task_{number}", ago(minutes=19, seconds=number), model=MODEL)
    site.account.made.clear()
    found = await site.check()
    assert max(len(line) for line in found.evidence) < 400
    assert any("and 20 more" in line for line in found.evidence)


# --- When to look -----------------------------------------------------------------------------------------------------


async def test_after_a_response_it_is_searched_for_at_once(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=1))
    error = ResponseLost("a failure (HTTP 500)", status=500, request_id="req-7", excerpt='{"id": 4711}')
    await site.answered(KEY, sent_at=ago(seconds=3), error=error)
    found = await site.check()
    assert found.receipt is None
    assert found.retry_after
    assert any("req-7" in line for line in found.evidence)
    assert any("4711" in line for line in found.evidence)
    site.account.makes("task_orphan", ago(seconds=2))
    assert (await site.check()).receipt


@pytest.mark.parametrize("error", [ResponseLost("a reset"), ResponseLost("HTTP 524", status=524)])
async def test_while_the_gateway_may_go_on_the_first_orphan_is_only_shown(site: Site, error: ResponseLost) -> None:
    """Ours may come after another one's: no answer, or that of a proxy, says nothing of what the gateway still does."""
    await site.paid("earlier", "task_ours", ago(minutes=1))
    await site.answered(KEY, sent_at=ago(seconds=3), error=error)
    site.account.makes("task_orphan", ago(seconds=2))
    found = await site.check()
    assert (found.receipt, found.candidates) == (None, ("task_orphan",))
    assert found.retry_after
    assert found.retry_after <= timedelta(minutes=1)


async def test_while_its_writer_may_be_alive_the_account_is_not_asked(site: Site) -> None:
    await site.lost(KEY, sent_at=ago(seconds=3))
    with pytest.raises(SubmissionInDoubt):
        await site.check()
    assert site.account.asked == []


async def test_long_after_it_nothing_new_is_expected(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=20))
    await site.lost(KEY, sent_at=ago(minutes=20))
    assert (await site.check()).retry_after is None


async def test_a_day_too_long_to_list_does_not_spoil_the_time_that_counts(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(hours=20))
    await site.lost(KEY, sent_at=ago(hours=20))
    site.account.makes("task_orphan", ago(hours=20))
    for number in range(1200):
        site.account.makes(f"task_{number}", ago(hours=10), charged=False)
    assert (await site.check()).receipt


# --- Another gateway, another key -------------------------------------------------------------------------------------


async def test_a_submission_to_another_gateway_is_not_searched_for_here(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=20))
    await site.lost(KEY, sent_at=ago(minutes=20), gateway="https://the.former.example")
    site.account.makes("task_orphan", ago(minutes=19))
    found = await site.check()
    assert (found.receipt, found.candidates, found.elsewhere) == (None, (), "https://the.former.example")
    assert site.account.asked == []


async def test_a_submission_to_another_gateway_is_not_in_doubt_here(site: Site) -> None:
    await site.paid("earlier", "task_ours", ago(minutes=20))
    await site.lost(KEY, sent_at=ago(minutes=20), gateway=site.account_client.origin)
    await site.lost("X", sent_at=ago(minutes=20), gateway="https://the.former.example")
    site.account.makes("task_orphan", ago(minutes=19))
    assert (await site.check()).receipt


async def test_the_log_of_another_key_is_not_asked(site: Site) -> None:
    former = fingerprint("sk-of-last-week")
    await site.paid("earlier", "task_ours", ago(minutes=20), account=former)
    await site.lost(KEY, sent_at=ago(minutes=20), account=former)
    site.account.makes("task_orphan", ago(minutes=19), charged=False)
    found = await site.check()
    assert LOG not in site.account.asked
    assert found.receipt, "the same account, with another key"
    assert any("another API key" in line for line in found.evidence)


# --- An id that no program can read -----------------------------------------------------------------------------------


async def test_an_id_that_cannot_be_read_is_shown_to_whoever_must_find_it(site: Site) -> None:
    error = InvalidResponse("no id", status=200, request_id="req-7", excerpt='{"id": "videos/9f/1"}')
    await site.answered(KEY, sent_at=ago(minutes=20), error=error)
    assert any("videos/9f/1" in line for line in (await site.check()).evidence)
    site.account.on[TASKS] = site.account.on[LOG] = answer(403, b"")
    assert any("videos/9f/1" in line for line in (await site.check()).evidence)


# --- Charged or not, after an answer of the gateway's own, where the log names requests -------------------------------

OURS = "req-7"
SENT = ago(minutes=30)
BROKEN = ResponseLost("a failure (HTTP 500)", status=500, request_id=OURS)


class Charged(Site):
    """A submission in doubt by the account's key, and other ones of the same key, each charge named."""

    @property
    def payer(self) -> dict[str, Any]:
        return {"gateway": self.account_client.origin, "account": self.account_client.account}

    async def doubt(
        self, error: Exception = BROKEN, *, sent_at: datetime | None = None, slot: int = 1, **options: Any
    ) -> None:
        await self.answered(KEY, sent_at=sent_at or SENT, error=error, slot=slot, **self.payer, **options)

    async def pays(self, key: str, at: datetime, *, named: bool = True, **options: Any) -> None:
        await self.paid(key, f"task_of_{key}", at, named=named, **{**self.payer, **options})

    async def says(self, resubmit: Resubmit = Resubmit.IF_CONFIRMED) -> tuple[Paid | None, bool]:
        found = await self.check(resubmit=resubmit)
        assert (found.receipt, found.clear) == (None, False)
        return found.charged, found.resubmittable


@pytest.fixture
def charged(ledger: SubmissionLedger, store: Store, account: Account, account_client: AccountClient) -> Charged:
    return Charged(ledger, store, account, account_client)


async def test_a_charge_of_our_request_is_a_yes(charged: Charged) -> None:
    await charged.pays("before", SENT - timedelta(seconds=30))
    await charged.doubt()
    charged.account.charges(SENT, request_id=OURS)
    await charged.pays("after", SENT + timedelta(minutes=10))
    assert await charged.says() == (Paid.YES, False)


async def test_where_the_log_went_on_without_our_request_it_is_a_no(charged: Charged) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10))
    assert await charged.says() == (Paid.NO, True)
    assert await charged.says(Resubmit.NEVER) == (Paid.NO, False)


@pytest.mark.parametrize("ahead", [-3, 3])
async def test_what_a_worker_with_a_wrong_clock_sent_is_not_submitted_again_by_itself(
    charged: Charged, ahead: float
) -> None:
    await charged.doubt(clock_ahead=timedelta(minutes=ahead))
    await charged.pays("after", SENT + timedelta(minutes=10))
    found = await charged.check(resubmit=Resubmit.NOW)
    assert (found.clear, found.resubmittable, found.receipt) == (False, False, None)


@pytest.mark.parametrize("minutes", [-10, -0.5, 1])
async def test_a_log_that_may_have_stopped_before_proves_nothing(charged: Charged, minutes: float) -> None:
    await charged.doubt()
    await charged.pays("around", SENT + timedelta(minutes=minutes))
    found = await charged.check(resubmit=Resubmit.NOW)
    assert (found.charged, found.resubmittable, found.clear) == (Paid.UNKNOWN, False, False)
    assert found.retry_after


async def test_a_charge_of_a_stranger_does_not_show_that_the_log_is_up_to_date(charged: Charged) -> None:
    await charged.doubt()
    await charged.pays("before", SENT - timedelta(seconds=30))
    charged.account.charges(SENT + timedelta(minutes=10), request_id="of a stranger")
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)


@pytest.mark.parametrize("status", [403, 429, 500])
async def test_without_the_log_nothing_is_known(charged: Charged, status: int) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10))
    charged.account.on[LOG] = answer(status, b"")
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)


async def test_the_log_of_another_key_proves_nothing(charged: Charged) -> None:
    former: dict[str, Any] = {"account": fingerprint("sk-of-last-week")}
    await charged.answered(KEY, sent_at=SENT, error=BROKEN, **{**charged.payer, **former})
    await charged.pays("after", SENT + timedelta(minutes=10), **former)
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)
    assert LOG not in charged.account.asked


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_clocks_that_differ_too_much_prove_nothing(charged: Charged, minutes: float) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=12), charged=False)
    charged.account.charges(SENT + timedelta(minutes=12 + minutes), request_id="request-of-after")
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)


@pytest.mark.parametrize("error", [InvalidResponse("no id", status=200, request_id=OURS)])
async def test_whatever_was_answered_with_success_is_never_called_not_charged(
    charged: Charged, error: Exception
) -> None:
    await charged.doubt(error, sent_at=ago(hours=3))
    await charged.pays("after", ago(hours=1))
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)


async def test_a_task_that_nobody_owns_keeps_it_from_being_sent_again(charged: Charged) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10))
    for task_id, at, model in (("task_late", 20, MODEL), ("task_unknown", 4, "")):
        charged.account.makes(task_id, SENT + timedelta(minutes=at), model=model, charged=False)
        found = await charged.check(resubmit=Resubmit.NOW)
        assert (found.charged, found.clear, found.resubmittable) == (Paid.NO, False, False)
        assert found.candidates == (task_id,)
        charged.account.made.pop()


async def test_a_list_that_a_broken_database_empties_keeps_it_from_being_sent_again(charged: Charged) -> None:
    await charged.pays("before", SENT - timedelta(seconds=30))
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10))
    for broken in (1, 2, 3):
        charged.account.broken_lists = broken
        found = await charged.check(resubmit=Resubmit.NOW)
        charged.account.broken_lists = 0
        assert (found.clear, found.resubmittable) == (False, False)
    charged.account.on[TASKS] = answer(403, b"")
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False), "which charges are ours nobody knows then"


async def test_an_orphan_that_was_charged_to_another_request_is_not_adopted(charged: Charged) -> None:
    await charged.pays("before", SENT - timedelta(seconds=30))
    await charged.doubt()
    charged.account.makes("task_of_a_stranger", SENT + timedelta(seconds=2), request_id="of a stranger")
    found = await charged.check()
    assert (found.receipt, found.candidates) == (None, ("task_of_a_stranger",))
    charged.account.made.pop()
    charged.account.makes("task_orphan", SENT + timedelta(seconds=2), request_id=OURS)
    found = await charged.check()
    assert found.receipt
    assert (found.receipt.task_id, found.charged) == ("task_orphan", Paid.YES)


# --- Closed as not charged --------------------------------------------------------------------------------------------


async def test_it_is_closed_only_by_a_check_that_confirms_another(charged: Charged, ledger: SubmissionLedger) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10))
    for resubmit in (Resubmit.NEVER, Resubmit.IF_CONFIRMED):
        assert not (await charged.check(resubmit=resubmit)).clear
    found = await charged.check(resubmit=Resubmit.NOW)
    assert (found.clear, found.receipt, found.resubmissions) == (True, None, 1)
    assert await ledger.outcome_of(KEY, 1) is None
    outcome = json.loads(await charged.store.get(record_path(folder_of(KEY), 1, "outcome")) or b"{}")
    assert outcome["reason"].endswith("(the test)")
    # A worker that was killed before it could tell asks again.
    again = await charged.check(resubmit=Resubmit.NOW)
    assert (again.clear, again.resubmissions) == (True, 1)


async def test_a_charge_that_is_written_after_the_first_check_is_seen_by_the_second(charged: Charged) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10))
    assert await charged.says(Resubmit.IF_CONFIRMED) == (Paid.NO, True)
    charged.account.charges(SENT, request_id=OURS)
    assert await charged.says(Resubmit.NOW) == (Paid.YES, False)


async def test_it_is_closed_so_many_times_and_then_a_person_decides(charged: Charged) -> None:
    for slot in range(1, MAX_RESUBMISSIONS + 1):
        await charged.doubt(sent_at=SENT + timedelta(seconds=slot), slot=slot)
        if slot == 1:
            await charged.pays("after", SENT + timedelta(minutes=10))
        assert (await charged.check(resubmit=Resubmit.NOW)).clear
    await charged.doubt(slot=MAX_RESUBMISSIONS + 1)
    assert await charged.says(Resubmit.NOW) == (Paid.NO, False)


async def test_what_was_closed_as_not_charged_may_have_made_a_task_all_the_same(charged: Charged) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10))
    assert (await charged.check(resubmit=Resubmit.NOW)).clear
    await charged.answered("another", sent_at=SENT, error=ResponseLost("reset"), **charged.payer)
    charged.account.makes("task_orphan", SENT + timedelta(seconds=3))
    found = await charged.check("another")
    assert (found.receipt, found.candidates) == (None, ("task_orphan",))


# --- Without an id that decides, the records are counted --------------------------------------------------------------

LOST = [ResponseLost("a reset"), ResponseLost("HTTP 504", status=504, request_id=OURS)]
LONG_AGO = NOW - LATE_ACCEPTANCE - timedelta(minutes=30)
AFTER = LONG_AGO + LATE_ACCEPTANCE + CLOCK_SKEW


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("error", LOST)
async def test_what_all_charges_and_tasks_leave_out_was_not_charged(
    charged: Charged, error: Exception, named: bool
) -> None:
    await charged.pays("beside", LONG_AGO + timedelta(seconds=20), named=named)
    await charged.doubt(error, sent_at=LONG_AGO)
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False), "nothing shows that the log is up to date"
    await charged.pays("after", AFTER, named=named)
    assert await charged.says() == (Paid.NO, True)
    assert (await charged.check(resubmit=Resubmit.NOW)).clear


async def test_after_an_answer_of_a_gateway_that_names_no_requests_it_is_counted_too(charged: Charged) -> None:
    await charged.doubt()
    await charged.pays("after", SENT + timedelta(minutes=10), named=False)
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False), "not yet"
    await charged._date(KEY, LONG_AGO)
    await charged.pays("later", AFTER, named=False)
    assert await charged.says() == (Paid.NO, True)


@pytest.mark.parametrize("error", LOST)
async def test_while_the_gateway_may_accept_late_nothing_is_concluded(charged: Charged, error: Exception) -> None:
    sent_at = NOW - LATE_ACCEPTANCE + timedelta(minutes=5)
    await charged.doubt(error, sent_at=sent_at)
    await charged.pays("after", ago(minutes=3))
    found = await charged.check(resubmit=Resubmit.NOW)
    assert (found.charged, found.clear, found.resubmittable) == (Paid.UNKNOWN, False, False)
    assert found.retry_after
    assert found.retry_after <= timedelta(minutes=5)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("error", LOST)
async def test_a_charge_that_nothing_explains_leaves_it_unknown(
    charged: Charged, error: Exception, named: bool
) -> None:
    await charged.pays("beside", LONG_AGO + timedelta(seconds=20), named=named)
    await charged.doubt(error, sent_at=LONG_AGO)
    await charged.pays("after", AFTER, named=named)
    for at in (LONG_AGO, LONG_AGO + timedelta(seconds=400), AFTER):
        charged.account.charges(at, request_id="of nobody" if named else "")
        assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)
        charged.account.log.pop()


@pytest.mark.parametrize("error", LOST)
async def test_a_task_of_ours_without_a_charge_shows_that_the_log_is_not_whole(
    charged: Charged, error: Exception
) -> None:
    await charged.pays("beside", LONG_AGO + timedelta(seconds=20), charged=False)
    await charged.doubt(error, sent_at=LONG_AGO)
    await charged.pays("after", AFTER)
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)


@pytest.mark.parametrize("error", LOST)
async def test_a_late_task_that_nobody_owns_leaves_it_unknown(charged: Charged, error: Exception) -> None:
    await charged.doubt(error, sent_at=LONG_AGO)
    await charged.pays("after", AFTER)
    charged.account.makes("task_late", LONG_AGO + timedelta(seconds=400), charged=False)
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)


@pytest.mark.parametrize("payer", [{"gateway": ""}, {"account": ""}])
async def test_where_the_ledger_does_not_say_who_paid_it_is_unknown(charged: Charged, payer: dict[str, Any]) -> None:
    await charged.answered(KEY, sent_at=SENT, error=BROKEN, **{**charged.payer, **payer})
    await charged.pays("after", SENT + timedelta(minutes=10))
    assert await charged.says(Resubmit.NOW) == (Paid.UNKNOWN, False)


async def test_what_was_claimed_before_a_crash_is_never_sent_again(charged: Charged) -> None:
    """Its charge and its task are all accounted for, by an owner that no outcome names."""
    sent_at = ago(hours=3)
    await charged.lost(KEY, sent_at=sent_at, **charged.payer)
    doubt = await charged.ledger.doubt(KEY, 1)
    assert doubt
    account = charged.account_client.account
    owner = TaskOwner(
        nonce=doubt.intent.nonce, folder=folder_of(KEY), account=account, request_id="request-of-it", sent_at=sent_at
    )
    await charged.ledger._records.claim("task_claimed", owner)
    charged.account.makes("task_claimed", sent_at + timedelta(seconds=9), request_id="request-of-it")
    await charged.pays("after", ago(hours=1))
    found = await charged.check(resubmit=Resubmit.NOW)
    assert (found.clear, found.resubmittable, found.charged) == (False, False, Paid.YES)
    assert found.receipt
    assert found.receipt.task_id == "task_claimed"


# --- To the second: what is asked, what counts, and when asking again is worthwhile -----------------------------------

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
OVER = timedelta(seconds=150)
"""After it left: the exchange must be over."""
DUE = OVER + REPORTING_DELAY


PAYER = "0123456789abcdef"


class Told(Site):
    """AccountClient who say what the test says, and a clock that stands still."""

    def __init__(self, ledger: SubmissionLedger, store: Store) -> None:
        voice = SimpleNamespace(
            origin="https://gateway.example", account=PAYER, ask=self.ask, ask_newest=self.ask_newest
        )
        super().__init__(ledger, store, Account(), cast("AccountClient", voice))
        self.now = NOON
        self.says = self.says_later = said_module.AccountRecords(tasks=())
        self.newest = said_module.AccountRecords()
        self.asked: list[dict[str, Any]] = []

    async def ask(self, **about: Any) -> said_module.AccountRecords:
        self.asked.append(about)
        return self.says if len(self.asked) == 1 else self.says_later

    async def ask_newest(self) -> said_module.AccountRecords:
        return self.newest

    def moment(self, _zone: object) -> datetime:
        return self.now

    async def ours(self, at: datetime, **more: Any) -> said_module.AccountRecords:
        """A task of ours, paid by the same account, is what confirms a list."""
        await self.ledger.record_accepted(
            "earlier", SubmissionReceipt(task_id="task_ours", slot=1, submitted_at=at, nonce="n", account=PAYER)
        )
        return said_module.AccountRecords(seen=(SeenTask(task_id="task_ours", submitted_at=at),), **more)


def orphan(at: datetime, task_id: str = "task_orphan", model: str = MODEL) -> OrphanCandidate:
    return OrphanCandidate(task_id=task_id, submitted_at=at, model=model)


@pytest.fixture
def told(ledger: SubmissionLedger, store: Store, monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told(ledger, store)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return told.moment(tz)

    for module in (reconciliation_module, ledger_module, records_module):
        monkeypatch.setattr(module, "datetime", Clock)
    return told


@pytest.mark.parametrize(
    ("age", "until"),
    [
        (DUE - CLOCK_SKEW - SECOND, None),
        (DUE - CLOCK_SKEW, None),
        (DUE - CLOCK_SKEW + SECOND, NOON + CLOCK_SKEW),
        (timedelta(hours=20), NOON + CLOCK_SKEW),
        (LATEST_TASK + timedelta(hours=6), NOON - timedelta(hours=6)),
    ],
)
async def test_the_time_that_counts_is_asked_for_and_what_came_later_by_itself(
    told: Told, age: timedelta, until: datetime | None
) -> None:
    sent_at = NOON - age
    await told.lost(KEY, sent_at=sent_at, account=PAYER)
    found = await told.check()
    counts = {"model": MODEL, "since": sent_at - CLOCK_SKEW, "until": sent_at + DUE, "log": True}
    later = {"model": MODEL, "since": sent_at + DUE + SECOND, "until": until, "log": False}
    assert told.asked == [counts, *([later] if until else [])]
    assert found == Reconciliation(evidence=found.evidence, charged=Paid.UNKNOWN, retry_after=found.retry_after)


@pytest.mark.parametrize(("left", "wait"), [(3 * SECOND, 3 * SECOND), (5 * SECOND, 5 * SECOND), (MINUTE, 5 * SECOND)])
async def test_while_its_writer_may_record_an_answer_it_is_checked_again_soon(
    told: Told, left: timedelta, wait: timedelta
) -> None:
    await told.lost(KEY, sent_at=NOON - OVER + left)
    with pytest.raises(SubmissionInDoubt) as caught:
        await told.check()
    assert caught.value.wait == wait
    told.now += left
    assert (await told.check()).receipt is None


@pytest.mark.parametrize(
    ("after", "adopted"),
    [
        (-CLOCK_SKEW - SECOND, True),
        (-CLOCK_SKEW, False),
        (MINUTE, False),
        (LATEST_TASK, False),
        (LATEST_TASK + SECOND, True),
    ],
)
async def test_whose_a_task_may_be_follows_from_when_it_came(told: Told, after: timedelta, adopted: bool) -> None:
    """Another submission of the model is in doubt, and the orphan came so long after that one had left."""
    at = NOON - timedelta(hours=1)
    await told.lost(KEY, sent_at=at)
    await told.lost("another", sent_at=at - after)
    told.says = (await told.ours(at)).model_copy(update={"tasks": (orphan(at),)})
    told.says_later = told.says.model_copy(update={"tasks": ()})
    found = await told.check()
    assert (found.receipt is not None, found.candidates) == (adopted, ("task_orphan",))
    assert found.charged is (Paid.YES if adopted else Paid.UNKNOWN)


@pytest.mark.parametrize(
    ("apart", "adopted"),
    [(CLOCK_SKEW, True), (-CLOCK_SKEW, True), (CLOCK_SKEW + SECOND, False), (-CLOCK_SKEW - SECOND, False)],
)
async def test_a_charge_explains_what_is_near_it(told: Told, apart: timedelta, adopted: bool) -> None:
    at = NOON - timedelta(hours=1)
    await told.lost(KEY, sent_at=at, account=PAYER)
    charge = Charge(at=at + apart, model=MODEL)
    told.says_later = await told.ours(at, tasks=())
    told.says = told.says_later.model_copy(
        update={"tasks": (orphan(at),), "charges": 1, "charged_at": (charge.at,), "logged": (charge,)}
    )
    assert ((await told.check()).receipt is not None) is adopted


@pytest.mark.parametrize(
    ("apart", "left"), [(CLOCK_SKEW, 0), (-CLOCK_SKEW, 0), (CLOCK_SKEW + SECOND, 1), (-CLOCK_SKEW - SECOND, 1)]
)
async def test_a_task_of_ours_explains_the_nearest_charge(told: Told, apart: timedelta, left: int) -> None:
    """And no other: the orphan beside it has none then."""
    at = NOON - timedelta(hours=1)
    await told.lost(KEY, sent_at=at, account=PAYER)
    near = Charge(at=at + apart, model=MODEL)
    of_another_model = Charge(at=at, model="another")
    told.says_later = await told.ours(at, tasks=())
    told.says = told.says_later.model_copy(
        update={
            "tasks": (orphan(at, "task_ours"),),
            "charges": 1,
            "charged_at": (near.at,),
            "logged": (near, of_another_model),
        }
    )
    evidence = (await told.check()).evidence
    assert sum(f"{near.at:%H:%M:%S}" in line for line in evidence) == left


@pytest.mark.parametrize(
    ("request_id", "age", "adopted"),
    [("req-7", 3 * SECOND, True), (None, OVER - SECOND, False), (None, OVER, True)],
)
async def test_what_was_made_is_in_the_list_once_the_gateway_is_done(
    told: Told, request_id: str | None, age: timedelta, adopted: bool
) -> None:
    at = NOON - age
    await told.answered(KEY, sent_at=at, error=ResponseLost("HTTP 500", status=500, request_id=request_id))
    told.says = await told.ours(at, tasks=(orphan(at),))
    assert ((await told.check()).receipt is not None) is adopted


SOON = timedelta(seconds=30)


@pytest.mark.parametrize(
    ("age", "other_age", "after", "again"),
    [
        (DUE, None, None, SOON),
        (DUE + SECOND, None, None, None),
        (DUE + SECOND, None, 5 * SECOND, 5 * SECOND),
        (DUE, None, MINUTE, SOON),
        (DUE + SECOND, OVER, None, None),
        (DUE + SECOND, OVER - SECOND, None, SOON),
    ],
)
async def test_asking_again_is_worthwhile_while_something_may_come(
    told: Told, age: timedelta, other_age: timedelta | None, after: timedelta | None, again: timedelta | None
) -> None:
    """Its own task, that of somebody else who is still sending, or a record that could not be read."""
    at = NOON - age
    await told.lost(KEY, sent_at=at)
    if other_age:
        await told.lost("another", sent_at=NOON - other_age)
    told.says = await told.ours(at, tasks=(orphan(NOON - OVER, model=""),), retry_after=after)
    told.says_later = told.says.model_copy(update={"tasks": (), "retry_after": SECOND})
    assert (await told.check()).retry_after == again


async def test_a_list_that_contradicts_itself_is_asked_again_after_a_minute(told: Told) -> None:
    at = NOON - timedelta(hours=1)
    await told.lost(KEY, sent_at=at)
    first, last = at - CLOCK_SKEW, at + DUE
    for moment, contradicts in ((first - SECOND, 0), (first, 1), (last, 1), (last + SECOND, 0)):
        told.asked.clear()
        told.newest = said_module.AccountRecords(
            seen=(SeenTask(task_id="task_new", submitted_at=moment),), notes=("asked again",)
        )
        found = await told.check()
        assert (found.receipt, found.retry_after) == (None, MINUTE if contradicts else None)
        assert "asked again" in found.evidence


async def test_of_two_claimed_tasks_neither_is_believed(told: Told) -> None:
    at = NOON - timedelta(hours=1)
    await told.lost(KEY, sent_at=at, account=PAYER)
    doubt = await told.ledger.doubt(KEY, 1)
    assert doubt
    seen = []
    for task_id in ("task_1", "task_2"):
        await told.ledger._records.claim(
            task_id, TaskOwner(nonce=doubt.intent.nonce, folder=folder_of(KEY), account=PAYER)
        )
        seen.append(SeenTask(task_id=task_id, submitted_at=at))
    told.says = said_module.AccountRecords(tasks=(orphan(at, "task_1"), orphan(at, "task_2")), seen=tuple(seen))
    found = await told.check()
    assert (found.receipt, found.candidates) == (None, ("task_1", "task_2"))


@pytest.mark.parametrize("claimed", ["due", "later"])
async def test_what_was_claimed_is_adopted_in_its_name(told: Told, claimed: str) -> None:
    at = NOON - timedelta(hours=1)
    await told.lost(KEY, sent_at=at, account=PAYER)
    doubt = await told.ledger.doubt(KEY, 1)
    assert doubt
    await told.ledger._records.claim(
        "task_1", TaskOwner(nonce=doubt.intent.nonce, folder=folder_of(KEY), account=PAYER)
    )
    seen = said_module.AccountRecords(tasks=(), seen=(SeenTask(task_id="task_1", submitted_at=at),), notes=("a note",))
    if claimed == "due":
        told.says = seen
    else:
        told.says_later = seen
    found = await told.check()
    assert found.receipt
    assert (found.receipt.task_id, found.receipt.slot, found.charged) == ("task_1", 1, Paid.YES)
    assert (found.clear, found.candidates, "a note" in found.evidence) == (False, (), claimed == "due")
    outcome = json.loads(await told.store.get(record_path(folder_of(KEY), 1, "outcome")) or b"{}")
    assert outcome["reason"].endswith("(the test)")


async def test_without_any_record_it_reports_that_and_decides_nothing(told: Told) -> None:
    await told.answered(
        KEY, sent_at=NOON, error=ResponseLost("HTTP 500", status=500, request_id="req-7", excerpt="<p>")
    )
    question = ReconcileInput(key=KEY, slot=1, model=MODEL)
    found = await reconcile(told.ledger, None, question, writer="the test")
    assert found == Reconciliation(evidence=found.evidence, charged=Paid.UNKNOWN, slot=1)
    said, excerpt, _ = found.evidence
    assert ("req-7" in said, "HTTP 500" in said, "<p>" in excerpt) == (True, True, True)


async def test_a_task_taken_in_the_last_moment_is_reported_and_not_adopted(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = NOON - timedelta(hours=1)
    await told.lost(KEY, sent_at=at)
    told.says = await told.ours(at, tasks=(orphan(at),))

    async def resolve(*_: Any, **__: Any) -> None:
        raise TaskOwned("it is another's")

    monkeypatch.setattr(told.ledger, "resolve", resolve)
    found = await told.check()
    assert (found.receipt, found.candidates) == (None, ("task_orphan",))
    assert "it is another's" in found.evidence


async def test_what_is_not_charged_is_returned_whole(charged: Charged, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ResponseLost("HTTP 500", status=500, request_id=OURS, excerpt="<p>")
    await charged.doubt(error)
    await charged.pays("after", SENT + timedelta(minutes=10))
    first = await charged.check(resubmit=Resubmit.IF_CONFIRMED)
    assert first == Reconciliation(evidence=first.evidence, charged=Paid.NO, resubmittable=True)
    said, excerpt, *learnt = first.evidence
    assert (OURS in said, "<p>" in excerpt, bool(learnt)) == (True, True, True)

    # Its owner came back in the last moment.
    accepted = SubmissionReceipt(task_id="task_1", slot=1, submitted_at=SENT, attached=True)

    async def resolve(*_: Any, **__: Any) -> SubmissionReceipt:
        return accepted

    with monkeypatch.context() as patch:
        patch.setattr(charged.ledger, "resolve", resolve)
        late = await charged.check(resubmit=Resubmit.NOW)
    assert late == Reconciliation(receipt=accepted, evidence=first.evidence, charged=Paid.NO)
    closed = await charged.check(resubmit=Resubmit.NOW)
    assert closed == Reconciliation(clear=True, evidence=first.evidence, charged=Paid.NO, resubmissions=1)


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_later_list_that_nothing_confirms_keeps_it_from_being_sent_again(told: Told, confirmed: bool) -> None:
    """It may be the empty one of a broken database, and what was made late be in it."""
    at = NOON - timedelta(hours=1)
    ours = at + 3 * MINUTE
    error = ResponseLost("HTTP 500", status=500, request_id=OURS)
    await told.answered(KEY, sent_at=at, error=error, gateway=told.account_client.origin, account=PAYER)
    paid = SubmissionReceipt(
        task_id="task_ours", slot=1, submitted_at=ours, request_id="req-8", nonce="n", account=PAYER
    )
    await told.ledger.record_accepted("earlier", paid)
    seen = (SeenTask(task_id="task_ours", submitted_at=ours),)
    charge = Charge(at=ours, model=MODEL, request_id="req-8")
    told.says = said_module.AccountRecords(
        tasks=(orphan(ours, "task_ours"),), seen=seen, charges=1, charged_at=(ours,), logged=(charge,)
    )
    told.says_later = said_module.AccountRecords(tasks=(), seen=seen if confirmed else ())
    found = await told.check(resubmit=Resubmit.NOW)
    assert (found.charged, found.clear, found.resubmissions) == (Paid.NO, confirmed, int(confirmed))
    assert await told.ledger.open_slot(KEY) == (None if confirmed else 1)
