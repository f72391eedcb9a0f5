"""How long a lost answer is looked for, in ledgers of more and more keys: `python -m benchmarks.reconciliation`.

A real store, ledger and HTTP client; the gateway answers at once, so that what is measured is ours. Each ledger has the
same few submissions in doubt, and more and more that were paid: their records are hard links to one of each kind, for a
million real ones would take hours. A ledger of a million keys takes two million folders (`--folder` says where).
For comparison, what a walk over the whole ledger takes, without reading anything.
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from pydantic import SecretStr

from longtake.gateway.account import AccountClient, ConsoleAccess
from longtake.gateway.client import SubmittedTask
from longtake.gateway.errors import ResponseLost
from longtake.models import ReconcileInput
from longtake.storage import Store
from longtake.submission.errors import OutcomeUnknown
from longtake.submission.ledger import CreateIntent, Submission, SubmissionLedger
from longtake.submission.reconciliation import reconcile
from longtake.submission.records import folder_of, record_path

MODEL = "veo_3_1-fast-remix"
IN_DOUBT = 20
TASKS = 200
"""That the account's list shows for the time in question, all of them paid and owned."""
_MAX_LINKS = 60_000  # ext4 has 65,000 for one file


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def fill(root: Path, first: int, last: int) -> None:
    """Make the records of paid keys: intent, outcome and owner."""
    now = datetime.now(UTC).isoformat()
    texts = {
        "intent": {"nonce": "n", "digest": "d", "sent_at": now, "window_seconds": 150, "writer": "o", "model": MODEL},
        "outcome": {"nonce": "n", "outcome": "accepted", "task_id": "task", "at": now},
        "owner": {"nonce": "n", "folder": "submit/x"},
    }
    (root / "submit/owners").mkdir(parents=True, exist_ok=True)
    kinds: dict[str, Path] = {}
    for number in range(first, last):
        if number % _MAX_LINKS == 0 or not kinds:
            kinds = {name: root / f"template-{name}-{number}" for name in texts}
            for name, path in kinds.items():
                path.write_text(json.dumps(texts[name]))
        slot = root / "submit" / _hash(f"paid-{number}") / "1"
        slot.mkdir(parents=True)
        os.link(kinds["intent"], slot / "intent")
        os.link(kinds["outcome"], slot / "outcome")
        os.link(kinds["owner"], root / "submit/owners" / _hash(f"task-{number}"))


def answer(request: httpx.Request) -> httpx.Response:
    """The account's list, whole pages of it, and an empty log."""
    if "/log/" in request.url.path:
        return _streamed({"data": []})
    now = int(time.time())
    page = int(request.url.params["p"])
    rows = [
        {
            "task_id": f"task-{number}",
            "status": "SUCCESS",
            "submit_time": now - 600,
            "properties": {"origin_model_name": MODEL},
        }
        for number in range((page - 1) * 100, min(page * 100, TASKS))
    ]
    return _streamed({"data": {"items": rows, "total": TASKS}})


def _streamed(body: object) -> httpx.Response:
    """An answer as it comes from a network: read once, piece by piece."""
    return httpx.Response(200, stream=httpx.ByteStream(json.dumps(body).encode()))


async def put_in_doubt(ledger: SubmissionLedger, store: Store, key: str) -> None:
    """A submission that was lost ten minutes ago."""

    async def send(create_intent: CreateIntent) -> SubmittedTask:
        await create_intent()
        raise ResponseLost("reset")

    try:
        await ledger.submit(key, Submission(digest="d", writer="the benchmark", model=MODEL), send)
    except OutcomeUnknown:
        path = record_path(folder_of(key), 1, "intent")
        record = json.loads(await store.get(path) or b"")
        sent_at = datetime.now(UTC) - timedelta(minutes=10)
        await store.put(path, json.dumps(record | {"sent_at": sent_at.isoformat()}).encode())


async def measure(ledger: SubmissionLedger, repeats: int) -> float:
    """The median of some searches, in seconds."""
    times = []
    for _ in range(repeats):
        console = ConsoleAccess(SecretStr("token"), "2")
        async with AccountClient(
            base_url="http://gateway.example",
            api_key=SecretStr("sk-key"),
            console=console,
            transport=httpx.MockTransport(answer),
        ) as account_client:
            began = time.perf_counter()
            question = ReconcileInput(key="lost-0", model=MODEL)
            await reconcile(ledger, account_client, question, writer="the benchmark")
            times.append(time.perf_counter() - began)
    return statistics.median(times)


async def walk(store: Store) -> float:
    """How long a listing of the whole ledger takes, in seconds."""
    began = time.perf_counter()
    async for _ in store.entries("submit"):
        pass
    return time.perf_counter() - began


async def run(root: Path, sizes: list[int], repeats: int) -> None:
    """Measure ledgers of these sizes, one after the other in one folder."""
    store = Store.open(str(root))
    ledger = SubmissionLedger(store, longest_exchange=timedelta(seconds=120))
    for number in range(IN_DOUBT):
        await put_in_doubt(ledger, store, f"lost-{number}")
    made, first = 0, 0.0
    print(f"{'keys':>9}  {'search':>9}  {'ratio':>5}  {'walk':>9}  {'made in':>8}")
    for size in sizes:
        began = time.perf_counter()
        fill(root, made, size)
        took, made = time.perf_counter() - began, size
        search = await measure(ledger, repeats)
        first = first or search
        print(
            f"{size:9}  {search:7.3f} s  {search / first:5.2f}  {await walk(store):7.2f} s  {took:6.0f} s", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="default: where temporary files lie")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        asyncio.run(run(Path(folder), sorted(asked.sizes), asked.repeats))
