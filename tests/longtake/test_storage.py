import asyncio
import contextvars
import os
import stat
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import BaseError, PermissionDeniedError

from longtake.storage import Store, StoreProblem
from tests.longtake.s3_server import BUCKET, Environ, S3Server


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def collect(store: Store, path: str) -> bytes:
    return b"".join([piece async for piece in store.stream(path)])


def everything_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_keeps_objects(store: Store) -> None:
    assert await store.get("a/b.json") is None
    assert await store.head("a/b.json") is None
    await store.put("a/b.json", b"first")
    await store.put("a/b.json", b"second!")
    assert await store.get("a/b.json") == b"second!"
    assert await store.head("a/b.json") == 7
    assert await collect(store, "a/b.json") == b"second!"
    await store.delete("a/b.json")
    assert await store.get("a/b.json") is None
    await store.delete("a/b.json")


async def test_streams_in_and_out(store: Store) -> None:
    content = os.urandom(12 * 2**20 + 7)
    await store.put_stream("v/clip.mp4", pieces(content[:10], content[10 : 6 * 2**20], b"", content[6 * 2**20 :]))
    assert await collect(store, "v/clip.mp4") == content
    await store.put_stream("v/clip.mp4", pieces(b"short"))
    assert await store.get("v/clip.mp4") == b"short"
    await store.put_stream("v/empty.mp4", pieces())
    assert await store.head("v/empty.mp4") == 0


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("size", [10, 11 * 2**20])
async def test_a_stream_that_fails_leaves_nothing_behind(store: Store, size: int, s3: S3Server, tmp_path: Path) -> None:
    interruption = _Interrupted("the source broke")

    async def breaking() -> AsyncIterator[bytes]:
        yield bytes(size)
        raise interruption

    with pytest.raises(_Interrupted) as caught:
        await store.put_stream("v/clip.mp4", breaking())
    assert caught.value is interruption
    assert await store.head("v/clip.mp4") is None
    await store.put("v/clip.mp4", b"older")
    with pytest.raises(_Interrupted):
        await store.put_stream("v/clip.mp4", breaking())
    assert await store.get("v/clip.mp4") == b"older"
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=BUCKET)
    if store.url.startswith("file:"):
        assert everything_below(tmp_path / "store") == ["v/clip.mp4"]


async def test_a_cancelled_stream_leaves_nothing_behind(store: Store, s3: S3Server, tmp_path: Path) -> None:
    halfway, never, finished = asyncio.Event(), asyncio.Event(), []

    async def hanging() -> AsyncIterator[bytes]:
        try:
            yield bytes(11 * 2**20)
            halfway.set()
            await never.wait()
        finally:
            finished.append(True)

    task = asyncio.create_task(store.put_stream("v/clip.mp4", hanging()))
    await halfway.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished
    assert await store.head("v/clip.mp4") is None
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=BUCKET)
    if store.url.startswith("file:"):
        assert everything_below(tmp_path / "store") == []


async def test_a_stream_is_read_in_the_context_of_the_caller(store: Store) -> None:
    # A progress callback that heartbeats finds its activity through the context.
    variable = contextvars.ContextVar[str]("variable", default="unset")
    variable.set("the caller's")
    seen: list[object] = []

    async def watching() -> AsyncIterator[bytes]:
        seen.extend([variable.get(), asyncio.current_task()])
        yield b"x"

    await store.put_stream("v/clip.mp4", watching())
    assert seen == ["the caller's", asyncio.current_task()]


async def test_a_long_stream_is_not_kept_in_memory(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    piece = bytes(2**20)

    async def sixty_mebibytes() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield piece[:-1] + b"x"  # a new object each time

    tracemalloc.start()
    try:
        await store.put_stream("v/clip.mp4", sixty_mebibytes())
        async for _ in store.stream("v/clip.mp4"):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert await store.head("v/clip.mp4") == 60 * 2**20
    assert peak < 20 * 2**20


async def test_creates_only_once(store: Store) -> None:
    assert await store.create("submit/1/intent", b"mine") is True
    assert await store.create("submit/1/intent", b"yours") is False
    assert await store.get("submit/1/intent") == b"mine"


async def test_of_many_creators_one_wins(store: Store) -> None:
    records = [str(number).encode() for number in range(12)]
    created = await asyncio.gather(*(store.create("submit/1/intent", record) for record in records))
    assert created.count(True) == 1
    assert await store.get("submit/1/intent") == records[created.index(True)]


async def test_a_good_store_passes_the_probe_and_keeps_nothing_of_it(store: Store, s3: S3Server) -> None:
    await store.probe()
    if store.url.startswith("s3:"):
        prefix = store.url.removeprefix(f"s3://{BUCKET}/")
        assert "Contents" not in s3.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    else:
        assert everything_below(Path(store.url.removeprefix("file://"))) == []


async def test_opened_again_it_holds_the_same(store: Store, tmp_path: Path, s3: S3Server) -> None:
    await store.put("a/b.json", b"kept")
    if store.url.startswith("file:"):
        again = Store.open(store.url)
        assert again.url == store.url
    else:
        again = Store.open(s3.url(store.url.removeprefix(f"s3://{BUCKET}/") + "/"))
    assert await again.get("a/b.json") == b"kept"


async def test_tells_uris_and_paths_apart(store: Store) -> None:
    uri = store.uri_of("images/a.png")
    assert uri == f"{store.url}/images/a.png"
    assert store.path_of(uri) == store.path_of("images/a.png") == "images/a.png"
    for outside in ("https://host/a.png", "file:///etc/passwd", f"{store.url}-other/a.png", store.url):
        with pytest.raises(StoreProblem):
            store.path_of(outside)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "a//b",
        "a/",
        "../a",
        "a/../b",
        "a/./b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a b",
        "ü",
        "a%2e",
        "a#1",
    ],
)
async def test_refuses_paths_that_are_not_plain(store: Store, path: str) -> None:
    for uri in (path, f"{store.url}/{path}"):
        with pytest.raises(StoreProblem) as caught:
            store.path_of(uri)
        assert not caught.value.retryable
    for call in (store.get, store.head, store.delete):
        with pytest.raises(StoreProblem):
            await call(path)
    for write in (store.put, store.create):
        with pytest.raises(StoreProblem):
            await write(path, b"")


@given(path=st.text(max_size=30))
def test_no_path_leads_out_of_the_folder(path: str) -> None:
    store = Store.open("/tmp")  # noqa: S108 - nothing is written
    try:
        inside = Path(store.url.removeprefix("file://"), store.path_of(path)).resolve()
    except StoreProblem:
        return
    assert inside.is_relative_to(Path("/tmp").resolve())  # noqa: S108 - as above


async def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "Ümläute and %20 spaces#"
    store = Store.open(str(folder))
    await store.put("a.json", b"x")
    assert everything_below(folder) == ["a.json"]
    assert store.path_of(store.uri_of("a.json")) == "a.json"
    assert await Store.open(store.url).get("a.json") == b"x"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is empty"),
        ("ftp://host/folder", "ftp://, which is not supported"),
        ("https://bucket.s3.amazonaws.com/x", "https://, which is not supported"),
        ("memory:///", "memory://, which is not supported"),
        ("file://folder", "three slashes"),
        ("file:relative", "three slashes"),
        ("s3://", "needs the form s3://bucket/prefix"),
        ("s3://key:secret@bucket/prefix", "without credentials"),
        ("s3://bucket/prefix?secret_access_key=abc", "through the environment"),
        ("gs://bucket/prefix?region=x", "only s3 takes any"),
        ("az://container/prefix", "Account must be specified"),
    ],
)
def test_says_what_is_wrong_with_a_url(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(StoreProblem, match=message) as caught:
        Store.open(url)
    assert not caught.value.retryable
    assert "secret@" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_says_that_a_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreProblem, match=r"Not a directory"):
        Store.open(str(tmp_path / "file" / "store"))


async def test_never_believes_in_a_folder_that_went_away(tmp_path: Path) -> None:
    # An unmounted disk must not look like an empty ledger.
    store = Store.open(str(tmp_path / "disk"))
    (tmp_path / "disk").rmdir()
    calls = (
        store.get("a"),
        store.head("a"),
        store.put("a", b""),
        store.create("a", b""),
        store.put_stream("a", pieces(b"x")),
        store.delete("a"),
    )
    for call in calls:
        with pytest.raises(StoreProblem, match="is gone") as caught:
            await call
        assert caught.value.retryable
    assert not (tmp_path / "disk").exists()


async def test_does_not_make_a_folder_anew_that_goes_away_while_a_video_streams(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "disk"))

    async def slowly() -> AsyncIterator[bytes]:
        yield b"one"
        (tmp_path / "disk").rename(tmp_path / "away")
        yield b"two"

    with pytest.raises(StoreProblem, match="is gone"):
        await store.put_stream("videos/a.mp4", slowly())
    assert not (tmp_path / "disk").exists()


class _Synced:
    """Records the inode of everything that is flushed to disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inodes: list[int] = []
        fsync = os.fsync

        def record(descriptor: int) -> None:
            self.inodes.append(os.fstat(descriptor).st_ino)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", record)


async def test_local_writes_are_flushed_to_disk_with_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(tmp_path))
    chain = [tmp_path / "a/b/c.mp4", tmp_path / "a/b", tmp_path / "a", tmp_path]
    synced = _Synced(monkeypatch)
    await store.put("a/b/c.mp4", b"1")
    assert synced.inodes == [path.stat().st_ino for path in chain]
    synced.inodes.clear()
    await store.put_stream("a/b/c.mp4", pieces(b"2"))
    assert synced.inodes == [path.stat().st_ino for path in chain]
    synced.inodes.clear()
    chain[0] = tmp_path / "a/b/d.json"
    assert await store.create("a/b/d.json", b"3")
    assert synced.inodes == [path.stat().st_ino for path in chain]
    synced.inodes.clear()
    # Somebody else's record is believed only once it is on the disk as well.
    assert not await store.create("a/b/d.json", b"4")
    assert synced.inodes == [path.stat().st_ino for path in chain]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            BaseError(
                "Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28)\n\n"
                "Debug source:\nGeneric { }"
            ),
            "no space left on the disk that holds {root}: free some. Nothing is lost; longtake will retry",
        ),
        (
            PermissionDeniedError("Denied (os error 13)\n\nDebug"),
            "no permission to write file://{root}/a.json (Denied (os error 13)): give the worker that permission",
        ),
        (
            BaseError("Generic S3 error: x https://host/a?X-Amz-Signature=secret failed\nDebug source: secret"),
            "cannot write file://{root}/a.json: Generic S3 error: x https://host/a failed",
        ),
    ],
)
async def test_errors_are_short_and_say_what_to_do(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(tmp_path))

    async def fail(*_: object, **__: object) -> None:
        raise error

    # These are obstore's own words; a full disk for real would need a mount.
    monkeypatch.setattr(obstore, "put_async", fail)
    for write in (store.put, store.create):
        with pytest.raises(StoreProblem) as caught:
            await write("a.json", b"x")
        assert str(caught.value) == message.format(root=tmp_path)
        assert caught.value.retryable
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_without_permission(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(StoreProblem, match="no permission to write"):
            await store.put("a.json", b"x")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


async def test_an_absent_object_cannot_be_streamed(store: Store) -> None:
    with pytest.raises(StoreProblem, match=r"v/clip\.mp4 is not in the store"):
        await collect(store, "v/clip.mp4")


async def test_objects_in_s3_have_their_content_type(s3: S3Server) -> None:
    store = Store.open(s3.url("types"))
    await store.put("a.json", b"{}")
    await store.create("b.png", b"x")
    await store.put_stream("small.mp4", pieces(b"x"))
    await store.put_stream("large.mp4", pieces(bytes(6 * 2**20)))
    types = {
        name: s3.client.head_object(Bucket=BUCKET, Key=f"types/{name}")["ContentType"]
        for name in ("a.json", "b.png", "small.mp4", "large.mp4")
    }
    assert types == {
        "a.json": "application/json",
        "b.png": "image/png",
        "small.mp4": "video/mp4",
        "large.mp4": "video/mp4",
    }


async def test_a_missing_bucket_is_not_an_empty_one(s3: S3Server) -> None:
    store = Store.open(s3.url("prefix", bucket="no-such-bucket"))
    calls = (store.get("a"), store.put("a", b"x"), store.create("a", b"x"), store.put_stream("a", pieces(b"x")))
    for call in calls:
        with pytest.raises(StoreProblem, match="bucket of s3://no-such-bucket/prefix does not exist"):
            await call
    with pytest.raises(StoreProblem, match="create it, or correct the URL"):
        await store.probe()


async def test_a_409_without_an_object_is_tried_again(s3: S3Server) -> None:
    store = Store.open(s3.url(uuid.uuid4().hex))
    refusals = iter(range(2))

    def conflict(environ: Environ) -> tuple[str, bytes] | None:
        if environ["REQUEST_METHOD"] == "PUT" and next(refusals, None) is not None:
            return "409 Conflict", b"<Error><Code>ConditionalRequestConflict</Code></Error>"
        return None

    s3.fault = conflict
    assert await store.create("submit/1/intent", b"mine") is True
    assert await store.get("submit/1/intent") == b"mine"
    assert next(refusals, None) is None


async def test_an_endless_409_is_a_problem_for_later(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.storage._CREATE_PAUSE_SECONDS", 0)
    store = Store.open(s3.url(uuid.uuid4().hex))
    s3.fault = lambda environ: ("409 Conflict", b"") if environ["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(StoreProblem) as caught:
        await store.create("submit/1/intent", b"mine")
    assert caught.value.retryable


async def test_a_store_that_ignores_if_none_match_fails_the_probe(s3: S3Server) -> None:
    store = Store.open(s3.url(uuid.uuid4().hex))

    def forget(environ: Environ) -> None:
        environ.pop("HTTP_IF_NONE_MATCH", None)

    s3.fault = forget
    with pytest.raises(StoreProblem, match="ignores If-None-Match") as caught:
        await store.probe()
    assert not caught.value.retryable


@pytest.mark.parametrize("found", [b"first", b"a stranger's"], ids=["our own, its answer lost", "a stranger's"])
async def test_the_probe_knows_its_own_first_attempt(s3: S3Server, found: bytes) -> None:
    store = Store.open(s3.url(uuid.uuid4().hex))
    written: list[str] = []

    def was_there_before(environ: Environ) -> None:
        if environ["REQUEST_METHOD"] == "PUT" and not written:
            written.append(environ["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
            s3.client.put_object(Bucket=BUCKET, Key=written[0], Body=found)

    s3.fault = was_there_before
    if found == b"first":
        await store.probe()
    else:
        with pytest.raises(StoreProblem, match="submission ledger") as caught:
            await store.probe()
        assert not caught.value.retryable
    assert written


@pytest.mark.parametrize(("method", "verb"), [("PUT", "write"), ("GET", "read"), ("DELETE", "delete")])
async def test_the_probe_names_the_permission_that_is_missing(s3: S3Server, method: str, verb: str) -> None:
    store = Store.open(s3.url(uuid.uuid4().hex))
    denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    s3.fault = lambda environ: ("403 Forbidden", denied) if environ["REQUEST_METHOD"] == method else None
    with pytest.raises(StoreProblem, match=rf"no permission to {verb} .*\(AccessDenied: Access Denied\)"):
        await store.probe()


async def test_an_upload_that_fails_midway_says_so(s3: S3Server) -> None:
    store = Store.open(s3.url(uuid.uuid4().hex))
    parts = iter(range(1))

    def second_part_fails(environ: Environ) -> tuple[str, bytes] | None:
        if "partNumber" in environ["QUERY_STRING"] and next(parts, None) is None:
            return "403 Forbidden", b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
        return None

    s3.fault = second_part_fails
    with pytest.raises(StoreProblem, match="no permission to write") as caught:
        await store.put_stream("v/clip.mp4", pieces(*[bytes(2**20)] * 16))
    assert "uploadId" not in str(caught.value)
    s3.fault = None
    assert await store.head("v/clip.mp4") is None


async def test_without_credentials_it_says_which(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # The cloud's metadata service, which obstore asks then, is played by a port that nobody listens on.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreProblem, match="no credentials for s3://clips/x"):
        await Store.open(s3.url("x")).put("a.json", b"x")


def test_the_s3_endpoint_may_come_from_the_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)

    async def write() -> Any:
        store = Store.open(f"s3://{BUCKET}/from-environment")
        await store.put("a.json", b"x")
        return await store.get("a.json")

    assert asyncio.run(write()) == b"x"
