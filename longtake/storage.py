"""The store: where images wait, clips arrive and the submission ledger lies. Disk, S3, GCS or Azure, chosen by URL.

It is a thin layer over obstore that adds what obstore leaves open: errors that say what to do, local writes that
survive a power failure (obstore's local store never fsyncs), a create-if-absent that can be believed, and streamed
writes that a cancelled task really abandons.
"""

import asyncio
import contextlib
import os
import re
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig  # obstore has them for type checkers only

# `Any`: the three take differently typed options.
_SCHEMES: dict[str, Any] = {
    "s3": S3Store,
    "s3a": S3Store,
    "gs": GCSStore,
    "az": AzureStore,
    "adl": AzureStore,
    "azure": AzureStore,
    "abfs": AzureStore,
    "abfss": AzureStore,
}
# What may follow an S3 URL's `?`. Keys and tokens may not: the URL ends up in results, logs and Temporal.
_URL_OPTIONS = {"endpoint": "endpoint", "region": "region"}

_PART_BYTES = 5 * 2**20  # S3's smallest part of an upload; two of them are in flight
_STREAM_BYTES = 2**20
_CREATE_TRIES = 5
_CREATE_PAUSE_SECONDS = 0.05

# A paid clip may be 2 GiB, so a transfer has ten minutes, while a silent connection has 30 seconds.
_CLIENT_OPTIONS: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "10m"}
# For a blip only; whole steps are tried again by Temporal, which shows it.
_RETRY_CONFIG: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}

_CONTENT_TYPES = {
    ".mp4": "video/mp4",
    ".json": "application/json",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}

# EPERM (a sticky folder) and EACCES, as obstore says them.
_NOT_PERMITTED = re.compile(r"\(os error (1|13)\)")
# Plain names mean the same on a disk, in a URL and in every object store.
_SEGMENT = re.compile(r"[A-Za-z0-9._=+@,-]{1,200}")

_Backend: TypeAlias = LocalStore | S3Store | GCSStore | AzureStore
_BACKEND_ERRORS = (BaseError, OSError, ValueError, NotImplementedError)


class StoreProblem(Exception):
    """The store could not do what was asked.

    Attributes:
        retryable: True where the same call may succeed later, perhaps once somebody has freed space, given a
            permission or created the bucket; False where the settings or the request must change.
    """

    def __init__(self, message: str, *, retryable: bool, needs_operator: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.needs_operator = needs_operator


class Store:
    """Objects by path below one URL. Paths have plain segments: letters, digits and `._=+@,-`.

    Every method that reaches the store raises `StoreProblem`, and no other error, when it fails.
    """

    def __init__(self, backend: _Backend, url: str, root: Path | None) -> None:
        """For `open`, and for tests that bring their own backend."""
        self._backend = backend
        self._root = root
        self._root_is = _which_folder(root) if root else None
        self.url = url
        """Where the store lies, without options and without a slash at the end."""

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a store; nothing is sent yet (see `probe`).

        Args:
            url: `file:///folder` or a plain path (made if absent), `s3://bucket/prefix`, `gs://bucket/prefix`,
                `az://container/prefix`. The stores in the cloud take their options and credentials from the
                environment, as obstore does (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …); an S3 URL may also end in
                `?endpoint=https://…&region=…`.

        Raises:
            StoreProblem: if the URL cannot be used.
        """
        scheme, separator, _ = url.partition("://")
        if not separator or scheme == "file":
            return cls._open_folder(url)
        if scheme not in _SCHEMES:
            raise StoreProblem(
                f"the store URL begins with {scheme}://, which is not supported: use file:///folder, s3://bucket/prefix,"
                " gs://bucket/prefix or az://container/prefix",
                retryable=False,
            )
        return cls._open_bucket(url, scheme)

    @classmethod
    def _open_folder(cls, url: str) -> Self:
        if url.startswith("file:"):
            parts = urlsplit(url)
            if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
                raise StoreProblem("a file URL has three slashes and an absolute path: file:///folder", retryable=False)
            url = unquote(parts.path)
        if not url or "\0" in url:
            raise StoreProblem("the store's URL is empty: name a folder or file:///folder", retryable=False)
        root = Path(url).expanduser()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)  # links, prompts and videos will lie in it
            root = root.resolve()
            with contextlib.suppress(OSError):  # a parent that we may not read is not ours to flush
                _fsync_folder(root.parent)
            backend = LocalStore(root)
        except _BACKEND_ERRORS as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise StoreProblem(
                f"the store's folder {root} cannot be made or opened ({why or _first_line(error)}):"
                " check the path and its permissions",
                retryable=False,
            ) from None
        return cls(backend, root.as_uri().rstrip("/"), root)

    @classmethod
    def _open_bucket(cls, url: str, scheme: str) -> Self:
        base, _, query = url.partition("?")
        base = base.rstrip("/")
        config: dict[str, Any] = {}
        if not urlsplit(base).netloc or "@" in urlsplit(base).netloc or "#" in base:
            raise StoreProblem(
                f"the store URL needs the form {scheme}://bucket/prefix, without credentials", retryable=False
            )
        for name, value in parse_qsl(query, keep_blank_values=True):
            if scheme not in {"s3", "s3a"} or name not in _URL_OPTIONS:
                raise StoreProblem(
                    f"the store URL has the option {name!r}: only s3 takes any (endpoint, region); "
                    "give the others, and every secret, through the environment",
                    retryable=False,
                )
            config[_URL_OPTIONS[name]] = value
        options = _CLIENT_OPTIONS.copy()
        if scheme in {"s3", "s3a"}:
            # Each object by its own DELETE: not every S3-alike knows the bulk call.
            config["disable_bulk_delete"] = True
            if _s3_endpoint(config).startswith("http://"):
                # Whoever names an endpoint without TLS means it: a MinIO next door.
                options["allow_http"] = True
        try:
            backend: _Backend = _SCHEMES[scheme].from_url(
                base, config=config or None, client_options=options, retry_config=_RETRY_CONFIG
            )
        except (*_BACKEND_ERRORS, UnknownConfigurationKeyError) as error:
            raise StoreProblem(
                f"the store URL {base} cannot be used ({_first_line(error)}): check it and the store's environment",
                retryable=False,
            ) from None
        return cls(backend, base, None)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def uri_of(self, path: str) -> str:
        """Tell the full URL of a path below the store."""
        return f"{self.url}/{_checked(path)}"

    def path_of(self, uri: str) -> str:
        """Tell the path below the store of a full URL or of a path.

        Raises:
            StoreProblem: if it lies outside the store, or is no plain path.
        """
        if "://" not in uri:
            return _checked(uri)
        if uri.startswith(f"{self.url}/"):
            return _checked(uri.removeprefix(f"{self.url}/"))
        raise StoreProblem(f"{_without_query(uri)} lies outside the store {self.url}", retryable=False)

    async def get(self, path: str) -> bytes | None:
        """Read a small object whole; None if it is absent."""
        _checked(path)
        try:
            result = await obstore.get_async(self._backend, path)
            return bytes(await result.bytes_async())
        except FileNotFoundError as error:
            await self._check_absence(error)
            return None
        except _BACKEND_ERRORS as error:
            raise self._problem("read", path, error) from None

    async def head(self, path: str) -> int | None:
        """Tell an object's size in bytes; None if it is absent."""
        _checked(path)
        try:
            meta = await obstore.head_async(self._backend, path)
        except FileNotFoundError as error:
            await self._check_absence(error)
            return None
        except _BACKEND_ERRORS as error:
            raise self._problem("read", path, error) from None
        return meta["size"]

    async def stream(self, path: str) -> AsyncIterator[bytes]:
        """Read an object in pieces of about 1 MiB; an absent one is a `StoreProblem` here."""
        _checked(path)
        try:
            result = await obstore.get_async(self._backend, path)
            pieces = aiter(result.stream(min_chunk_size=_STREAM_BYTES))
        except _BACKEND_ERRORS as error:
            raise self._problem("read", path, error) from None
        while True:
            try:
                piece = bytes(await anext(pieces))
            except StopAsyncIteration:
                return
            except _BACKEND_ERRORS as error:
                raise self._problem("read", path, error) from None
            yield piece

    async def put(self, path: str, content: bytes) -> None:
        """Write an object whole, over an older one if there is one; nobody ever sees a part of it."""
        _checked(path)
        await self._check_root()
        try:
            await obstore.put_async(self._backend, path, content, attributes=self._attributes(path))
        except _BACKEND_ERRORS as error:
            raise self._problem("write", path, error) from None
        await self._make_durable(path)

    async def put_by_content(self, path: str, content: bytes) -> None:
        """Write an object whose name is made from its content, unless it is there; who may only write, writes."""
        try:
            there = await self.head(path)
        except StoreProblem:
            # A caller's role may put inputs and read none of them (docs/access.md).
            there = None
        if there != len(content):
            await self.put(path, content)

    async def put_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Write an object from pieces, in constant memory.

        Nothing becomes visible unless the iterator ended normally: its own exception, or a cancelled task, abandons
        the write, and an older object stays. The iterator runs in the caller's task and context. (obstore's
        `put_async` would run it elsewhere, and leave it and the upload behind when cancelled.)
        """
        _checked(path)
        await self._check_root()
        try:
            writer = obstore.open_writer_async(
                self._backend, path, attributes=self._attributes(path), buffer_size=_PART_BYTES, max_concurrency=2
            )
        except _BACKEND_ERRORS as error:
            raise self._problem("write", path, error) from None
        try:
            async for chunk in chunks:
                try:
                    await writer.write(chunk)
                except _BACKEND_ERRORS as error:
                    raise self._problem("write", path, error) from None
        except BaseException as error:
            # To leave the writer with an exception is to abandon what was written; the first problem counts.
            with contextlib.suppress(*_BACKEND_ERRORS):
                await writer.__aexit__(type(error), error, error.__traceback__)
            raise
        try:
            # What fits into the buffer is written now, all of it: the folder may have gone since the first chunk.
            await self._check_root()
        except StoreProblem as problem:
            with contextlib.suppress(*_BACKEND_ERRORS):
                await writer.__aexit__(type(problem), problem, problem.__traceback__)
            raise
        try:
            await writer.close()
        except _BACKEND_ERRORS as error:
            raise self._problem("write", path, error) from None
        await self._make_durable(path)

    async def create(self, path: str, content: bytes) -> bool:
        """Write an object only if there is none, atomically among all writers. For small records: it is kept in memory.

        Returns:
            True if this call created it, False if there is one already. After a lost answer that one may be ours:
            who must know puts a nonce into the record.
        """
        _checked(path)
        await self._check_root()
        for attempt in range(_CREATE_TRIES):
            try:
                await obstore.put_async(
                    self._backend,
                    path,
                    content,
                    attributes=self._attributes(path),
                    mode="create",
                    use_multipart=False,
                )
            except AlreadyExistsError:
                # S3 answers 409, which obstore reports like this too, when two writers met and neither may have won.
                if await self.head(path) is not None:
                    # Whoever created it may have died before it was durable, and we are about to believe it.
                    await self._make_durable(path)
                    return False
            except _BACKEND_ERRORS as error:
                raise self._problem("write", path, error) from None
            else:
                await self._make_durable(path)
                return True
            await asyncio.sleep(_CREATE_PAUSE_SECONDS * 2**attempt)
        raise StoreProblem(
            f"{self.uri_of(path)} could not be created: the store says that it exists and that it does not;"
            " it will be tried again",
            retryable=True,
        )

    async def delete(self, path: str) -> None:
        """Delete an object; an absent one is no problem."""
        _checked(path)
        try:
            await obstore.delete_async(self._backend, path)
        except FileNotFoundError as error:
            await self._check_absence(error)
        except _BACKEND_ERRORS as error:
            raise self._problem("delete", path, error) from None

    async def entries(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """Every object below a path, in no order, and when it was written by the store's clock."""
        _checked(prefix)
        await self._check_root()  # a folder that vanished must not look like an empty one
        try:
            async for batch in obstore.list(self._backend, prefix=prefix):
                for meta in batch:
                    yield meta["path"], meta["last_modified"]
        except _BACKEND_ERRORS as error:
            raise self._problem("list", prefix, error) from None

    async def probe(self) -> None:
        """Prove that this store can be written, read and deleted in, and that it honours create-if-absent.

        Raises:
            StoreProblem: saying what to do.
        """
        path = f"probe/{uuid.uuid4().hex}"
        first, second = b"first", b"second"
        # Where the answer to the first attempt was lost, the client's own next one finds the name taken, by us.
        if not await self.create(path, first) and await self.get(path) != first:
            raise StoreProblem(
                f"the store {self.url} says that a new name is taken: it cannot hold the submission ledger",
                retryable=False,
            )
        created_again = await self.create(path, second)
        kept = await self.get(path)
        await self.delete(path)
        if created_again or kept != first:
            raise StoreProblem(
                f"the store {self.url} ignores If-None-Match (create only if absent), and the submission ledger needs"
                " it to never pay twice: use a store that honours it",
                retryable=False,
            )
        if await self.get(path) is not None:
            raise StoreProblem(f"the store {self.url} does not delete what it is asked to delete", retryable=False)

    def _attributes(self, path: str) -> dict[str, str] | None:
        # A local disk has no content types, and obstore refuses them there.
        content_type = _CONTENT_TYPES.get(Path(path).suffix)
        if self._root is not None or content_type is None:
            return None
        return {"Content-Type": content_type}

    async def _check_root(self) -> None:
        """Never write into, or believe in the emptiness of, a folder that went away: a disk that was unmounted."""
        if self._root is None:
            return
        if self._root_is is None or await asyncio.to_thread(_which_folder, self._root) != self._root_is:
            raise StoreProblem(
                f"the store's folder {self._root} is gone: mount or restore it (from a copy: restart the worker too)",
                retryable=True,
            )

    async def _check_absence(self, error: Exception) -> None:
        if "NoSuchBucket" in str(error):
            raise self._problem("read", "", error) from None
        await self._check_root()

    async def _make_durable(self, path: str) -> None:
        if self._root is not None:
            # The backend makes a folder that is gone anew: what was written into such a one does not count.
            await self._check_root()
            try:
                await asyncio.to_thread(_fsync, self._root, path)
            except OSError as error:
                raise self._problem("write", path, error) from None

    def _problem(self, verb: str, path: str, error: Exception) -> StoreProblem:
        where = f"{self.url}/{path}" if path else self.url
        text = str(error)
        if "No space left" in text or "os error 28" in text or "quota exceeded" in text.lower():
            # Often it is freed without us, by what tidies the disk: every step tries again until its time is over.
            return StoreProblem(
                f"no space left on the disk that holds {self._root or self.url}: free some;"
                " nothing is lost, it will be tried again",
                retryable=True,
            )
        absent = isinstance(error, FileNotFoundError)
        if "NoSuchBucket" in text or "ContainerNotFound" in text or (absent and verb == "write"):
            gone = f"the bucket of {self.url} does not exist: create it, or correct the URL"
            if self._root is not None:
                gone = f"the store's folder {self._root} is gone: mount or restore it"
            return StoreProblem(gone, retryable=True, needs_operator=self._root is None)
        if _lacks_credentials(text):
            return StoreProblem(
                f"no credentials for {self.url}: set them in the environment (for S3 AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY)",
                retryable=True,
                needs_operator=True,
            )
        detail = _first_line(error)
        if isinstance(error, (PermissionError, PermissionDeniedError, UnauthenticatedError)) or _NOT_PERMITTED.search(
            text
        ):
            return StoreProblem(
                f"no permission to {verb} {where} ({detail}): give the worker that permission",
                retryable=True,
                needs_operator=True,
            )
        if absent:
            return StoreProblem(f"{where} is not in the store", retryable=False)
        retryable = not isinstance(error, (InvalidPathError, NotSupportedError, NotImplementedError, ValueError))
        return StoreProblem(f"cannot {verb} {where}: {detail}", retryable=retryable)


def _checked(path: str) -> str:
    """Refuse a path that could mean something else somewhere: `..`, an empty segment, a control character."""
    for segment in path.split("/"):
        if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
            raise StoreProblem(
                f"{path[:200]!r} is no path in the store: use segments of letters, digits and ._=+@,-", retryable=False
            )
    return path


def _s3_endpoint(config: dict[str, Any]) -> str:
    """Tell which endpoint obstore will use, in the order in which it looks."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return str(config.get("endpoint") or next((os.environ[name] for name in names if os.environ.get(name)), ""))


def _without_query(uri: str) -> str:
    return uri.partition("?")[0][:200]


def _lacks_credentials(text: str) -> bool:
    # Without credentials obstore asks the cloud's metadata service, which is not there on other machines.
    return "169.254.169.254" in text or "/latest/api/token" in text or "metadata.google.internal" in text


def _first_line(error: Exception) -> str:
    """Say in one short line what obstore says in many: the cloud's own code and message where there are any."""
    text = str(error)
    code = re.search(r"<Code>([^<]+)</Code>", text)
    message = re.search(r"<Message>([^<]+)</Message>", text)
    line = ": ".join(found.group(1) for found in (code, message) if found) or next(iter(text.splitlines()), "")
    # Signed links live behind a question mark.
    return re.sub(r"\?\S+", "", line or type(error).__name__)[:300]


def _fsync(root: Path, path: str) -> None:
    """Flush a file and every folder from it up to the store's own: obstore's local store never does."""
    target = root / path
    while True:
        _fsync_folder(target)
        if target == root:
            return
        target = target.parent


def _fsync_folder(target: Path) -> None:
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _which_folder(root: Path) -> tuple[int, int] | None:
    """What tells a folder from another one at the same place: a disk that was unmounted, or a folder made anew."""
    try:
        status = root.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
