"""Who may do what in the store (docs/access.md): the policies of deploy/policies, enforced by a server."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from moto.core.authorization import ActionAuthenticatorMixin

from cli import known_ledgers
from longtake.delivery.task_records import forget_links, load_record, save_record
from longtake.gateway.wire import GatewayRecord
from longtake.models import DeliveryKind, GenerateVideoInput, TaskState
from longtake.request.images import CheckedImage, store_image
from longtake.request.prompts import read_prompts, store_prompts
from longtake.storage import Store, StoreProblem
from longtake.submission.ledger import SubmissionLedger
from tests.longtake.s3_server import BUCKET, S3Server

ROOT = Path(__file__).parents[2]
PREFIX = "films"
ANY = timedelta(0)
REQUEST = GenerateVideoInput(model="veo_3_1-fast-remix", prompt="a secret pangolin", prompt_extend="it leaves")


def policy(role: str) -> dict[str, Any]:
    """A role's policy, with this test's names in it."""
    text = (ROOT / f"deploy/policies/s3-{role}.json").read_text()
    found: dict[str, Any] = json.loads(
        text.replace("BUCKET", BUCKET).replace("PREFIX", PREFIX).replace("CALLER", "team-a")
    )
    return found


class Roles:
    """Stores that are opened with the keys of somebody who has one role."""

    def __init__(self, s3: S3Server) -> None:
        self._s3 = s3
        self._keys: dict[str, Any] = {}
        iam = boto3.client(
            "iam",
            endpoint_url=s3.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        for role in ("worker", "caller"):
            iam.create_user(UserName=role)
            iam.put_user_policy(UserName=role, PolicyName="store", PolicyDocument=json.dumps(policy(role)))
            self._keys[role] = iam.create_access_key(UserName=role)["AccessKey"]

    def store(self, role: str, patch: pytest.MonkeyPatch) -> Store:
        patch.setenv("AWS_ACCESS_KEY_ID", self._keys[role]["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", self._keys[role]["SecretAccessKey"])
        return Store.open(self._s3.url(PREFIX))


@pytest.fixture(scope="module")
def roles() -> Iterator[Roles]:
    with S3Server() as s3:
        made = Roles(s3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
            patch.setattr(ActionAuthenticatorMixin, "request_count", 0)
            yield made


@pytest.fixture
def worker(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> Store:
    return roles.store("worker", monkeypatch)


@pytest.fixture
def caller(roles: Roles, worker: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    assert worker  # opened with its own keys before these are set
    return roles.store("caller", monkeypatch)


async def test_a_caller_gives_inputs_and_the_worker_reads_them(caller: Store, worker: Store) -> None:
    for _ in range(2):
        hidden = await store_prompts(caller, REQUEST)
    assert (await read_prompts(worker, hidden)).prompt == REQUEST.prompt
    image = await store_image(caller, CheckedImage(b"png", "image/png", 1, 1, "0" * 64))
    assert image.uri


async def refused(store: Store, path: str, how: str) -> None:
    if how == "read":
        tried: Awaitable[object] = store.get(path)
    elif how == "delete":
        tried = store.delete(path)
    else:
        tried = store.put(path, b"x") if how == "write" else store.create(path, b"x")
    with pytest.raises(StoreProblem, match="no permission"):
        await tried


async def test_what_a_caller_cannot_do(caller: Store, worker: Store) -> None:
    ledger = SubmissionLedger(worker, longest_exchange=ANY)
    identity = await ledger.establish()
    assert await known_ledgers.remember(caller) == identity
    for path in ("videos/team-b-1/full.mp4", "records/team-a-1/x.json", "submit/x/1/intent"):
        await worker.put(path, b"x") if not path.startswith("submit") else await worker.create(path, b"x")
        for how in ("read", "write", "create", "delete"):
            await refused(caller, path, how)
    await worker.put("videos/team-a-1/full.mp4", b"mine")
    assert await caller.get("videos/team-a-1/full.mp4") == b"mine"
    for how in ("write", "delete"):
        await refused(caller, "videos/team-a-1/full.mp4", how)
    with pytest.raises(StoreProblem):
        [_ async for _ in caller.entries("submit")]


async def test_a_worker_does_all_its_work_and_deletes_nothing_of_the_ledger(worker: Store) -> None:
    await worker.probe()
    record = GatewayRecord(task_id="task_1", state=TaskState.COMPLETED, video_url="https://cdn.example/v?Signature=x")
    await save_record(worker, "team-a-1", record)
    await forget_links(worker, "team-a-1", "task_1", kind=DeliveryKind.FULL, keep_first=False)
    kept = await load_record(worker, "team-a-1", "task_1")
    assert kept is not None
    assert kept.video_url is None
    assert await worker.create("open/y.1", b"x")
    await worker.delete("open/y.1")
    assert await worker.get("open/y.1") is None, "the index of what is in doubt does not grow for ever"
    assert await worker.create("submit/y/1/intent", b"x")
    assert [path async for path, _ in worker.entries("submit/y")] == ["submit/y/1/intent"]
    for path in ("submit/y/1/intent", "videos/team-a-1/full.mp4", "images/x.png"):
        await refused(worker, path, "delete")


def test_nobody_deletes_or_overwrites_the_ledger_whatever_else_they_may() -> None:
    """Conditions and bucket policies are not enforced by any server here: this only reads the file."""
    deny = {str(one["Action"]): one for one in policy("bucket")["Statement"]}
    assert all((one["Effect"], one["Principal"]) == ("Deny", "*") for one in deny.values())
    assert all(one["Resource"] == f"arn:aws:s3:::{BUCKET}/{PREFIX}/submit/*" for one in deny.values())
    assert deny["s3:PutObject"]["Condition"] == {"Null": {"s3:if-none-match": "true"}}
    assert "Condition" not in deny["['s3:DeleteObject', 's3:DeleteObjectVersion']"]


# --- Folders ----------------------------------------------------------------------------------------------------------

CALLERS, WORKER, TEAM_A, TEAM_B = 30_000, 20_001, 20_002, 20_003
"""A group, and three users in it."""
LAYOUT = re.compile(r"^install -d -o longtake -g longtake-callers -m (\d+) (\S+)$", re.MULTILINE)

_AS_SOMEBODY = """
import asyncio, concurrent.futures.thread, os, sys  # all of them now: the user may not read Python's folder
from longtake.private_files import keep_files_private
from longtake.storage import Store, StoreProblem

uid, gid = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
os.umask(0o027)
keep_files_private()

async def run():
    store = Store.open(sys.argv[3])
    how, path = sys.argv[4:]
    if how == "give":
        await store.put_by_content(path, b"content")
    elif how == "read":
        assert await store.get(path) == b"content", "it is not what was written"
    elif how == "create":
        assert await store.create(path, b"content")
    else:
        await store.delete(path)

try:
    asyncio.run(run())
except StoreProblem as problem:
    sys.stderr.write(f"refused: {problem}")
    sys.stderr.flush()
    os._exit(1)
os._exit(0)  # native threads abort a short script at its end now and then
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where other users may go: pytest's own folders are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="becomes other users")
def test_folders_for_a_worker_and_callers_of_one_group(open_folder: Path) -> None:
    """As docs/access.md lays them out, with a umask of 027 for all of them."""
    layout = LAYOUT.findall((ROOT / "docs/access.md").read_text())
    assert layout
    root = open_folder / "store"
    for mode, path in layout:
        folder = root / path.removeprefix("/srv/longtake/store").lstrip("/")
        folder.mkdir()
        os.chown(folder, WORKER, CALLERS)
        folder.chmod(int(mode, 8))

    def may(user: int, how: str, path: str) -> bool:
        ended = subprocess.run(
            [sys.executable, "-c", _AS_SOMEBODY, str(user), str(CALLERS), str(root), how, path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0 or "refused: no permission" in ended.stderr, ended.stderr
        return ended.returncode == 0

    for path in ("images/a.png", "prompts/a.txt"):
        assert may(TEAM_A, "give", path)
        assert may(TEAM_B, "give", path), "it is there already"
        assert may(WORKER, "read", path)
        assert not may(TEAM_B, "delete", path)
    for path in ("submit/identity", "submit/x/1/intent", "videos/k/full.mp4", "records/k/r.json", "words/k/w.txt"):
        assert may(WORKER, "create", path)
        assert not may(TEAM_A, "create", path + "2")
        assert not may(TEAM_A, "delete", path)
    for path, readable in {"submit/identity": True, "videos/k/full.mp4": True, "records/k/r.json": False}.items():
        assert may(TEAM_A, "read", path) is readable
    assert may(WORKER, "create", "probe/p")
    assert may(WORKER, "delete", "probe/p")
