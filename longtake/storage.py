"""The store for images, prompts, videos and the submission ledger: a disk, S3, GCS or Azure, chosen by URL.

It adds to obstore what obstore lacks: errors that say what to do, fsync on local disks, create-if-absent that is
verified, and streamed writes that a cancellation really abandons. Every other package of longtake may use it.
"""

import asyncio
import contextlib
import os
import re
import uuid
from collections.abc import AsyncIterator, Iterator
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
# The only options of an S3 URL. Keys and tokens are not allowed: the URL appears in results, logs and Temporal.
_URL_OPTIONS = frozenset({"endpoint", "region"})

_PART_BYTES = 5 * 2**20  # S3's minimum for a part of an upload; two are in flight
_STREAM_BYTES = 2**20
_CREATE_TRIES = 5
_CREATE_PAUSE_SECONDS = 0.05

# A clip may have 2 GiB, so a transfer may take ten minutes; a silent connection is closed after 30 seconds.
_CLIENT_OPTIONS: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "10m"}
# For short faults only: Temporal retries the whole step, visibly.
_RETRY_CONFIG: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}

_CONTENT_TYPES = {
    ".mp4": "video/mp4",
    ".json": "application/json",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}

# obstore's text for EPERM (a sticky folder) and EACCES.
_NOT_PERMITTED = re.compile(r"\(os error (1|13)\)")
# Such names mean the same on a disk, in a URL and in every object store.
_SEGMENT = re.compile(r"[A-Za-z0-9._=+@,-]{1,200}")

_Backend: TypeAlias = LocalStore | S3Store | GCSStore | AzureStore
_BACKEND_ERRORS = (BaseError, OSError, ValueError, NotImplementedError)


class StoreProblem(Exception):
    """The store failed; the message says what to do.

    Attributes:
        retryable: Whether the same call may succeed later. If not, the settings or the request must change.
        needs_operator: Whether that takes an operator: a permission, credentials, a bucket.
    """

    def __init__(self, message: str, *, retryable: bool, needs_operator: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.needs_operator = needs_operator


class Store:
    """Objects by path below one URL. The segments of a path have letters, digits and `._=+@,-`.

    Methods that access the store raise only `StoreProblem`.
    """

    def __init__(self, backend: _Backend, url: str, root: Path | None) -> None:
        """Use `open` instead; tests may bring their own backend."""
        self._backend = backend
        self._root = root
        self._root_id = _device_and_inode(root) if root else None
        self.url = url
        """The store's URL without options and trailing slash."""

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a store without sending anything; `probe` tests it.

        Args:
            url: `file:///folder` or a path (created if missing), `s3://bucket/prefix`, `gs://bucket/prefix` or
                `az://container/prefix`. obstore reads options and credentials of cloud stores from the environment
                (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …). An S3 URL may end in `?endpoint=https://…&region=…`.

        Raises:
            StoreProblem: The URL cannot be used.
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
            root.mkdir(mode=0o700, parents=True, exist_ok=True)  # it will hold links, prompts and videos
            root = root.resolve()
            with contextlib.suppress(OSError):  # a parent without read permission cannot be fsynced
                _fsync_folder(root.parent)
            backend = LocalStore(root)
        except _BACKEND_ERRORS as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise StoreProblem(
                f"the store's folder {root} cannot be created or opened ({why or _first_line(error)}):"
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
            config[name] = value
        options = _CLIENT_OPTIONS.copy()
        if scheme in {"s3", "s3a"}:
            # One DELETE per object: some S3-compatible stores lack the bulk call.
            config["disable_bulk_delete"] = True
            if _s3_endpoint(config).startswith("http://"):
                # An http:// endpoint is explicit: a MinIO on the same network.
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
        """The full URL of a path."""
        return f"{self.url}/{_checked(path)}"

    def path_of(self, uri: str) -> str:
        """The path of a full URL, or of a path.

        Raises:
            StoreProblem: It is outside the store, or is not a valid path.
        """
        if "://" not in uri:
            return _checked(uri)
        if uri.startswith(f"{self.url}/"):
            return _checked(uri.removeprefix(f"{self.url}/"))
        raise StoreProblem(f"{_without_query(uri)} is outside the store {self.url}", retryable=False)

    async def get(self, path: str) -> bytes | None:
        """Read a small object whole; None if it does not exist."""
        with self._access("read", path):
            try:
                result = await obstore.get_async(self._backend, path)
                return bytes(await result.bytes_async())
            except FileNotFoundError as error:
                await self._check_absence(error)
                return None

    async def head(self, path: str) -> int | None:
        """An object's size in bytes; None if it does not exist."""
        with self._access("read", path):
            try:
                return (await obstore.head_async(self._backend, path))["size"]
            except FileNotFoundError as error:
                await self._check_absence(error)
                return None

    async def stream(self, path: str) -> AsyncIterator[bytes]:
        """Read an object in chunks of about 1 MiB. If it does not exist, this raises `StoreProblem`."""
        with self._access("read", path):
            result = await obstore.get_async(self._backend, path)
            chunks = aiter(result.stream(min_chunk_size=_STREAM_BYTES))
        while True:
            try:
                with self._access("read", path):
                    chunk = bytes(await anext(chunks))
            except StopAsyncIteration:
                return
            yield chunk

    async def put(self, path: str, content: bytes) -> None:
        """Write an object whole, and replace an older one. Readers never see a part of it."""
        with self._access("write", path):
            await self._check_root()
            await obstore.put_async(self._backend, path, content, attributes=self._attributes(path))
        await self._make_durable(path)

    async def put_by_content(self, path: str, content: bytes) -> None:
        """Write an object whose name is derived from its content, unless it exists."""
        try:
            size = await self.head(path)
        except StoreProblem:
            size = None  # a client's role may allow writing inputs, and not reading them (docs/access.md)
        if size != len(content):
            await self.put(path, content)

    async def put_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Write an object from chunks, in constant memory.

        The object becomes visible only if the iterator ends normally. If the iterator raises, or the task is
        cancelled, the write is abandoned and an older object stays. The iterator runs in the caller's task and context.
        (obstore's `put_async` runs it elsewhere, and a cancellation leaves it and the upload running.)
        """
        with self._access("write", path):
            await self._check_root()
            writer = obstore.open_writer_async(
                self._backend, path, attributes=self._attributes(path), buffer_size=_PART_BYTES, max_concurrency=2
            )
        try:
            async for chunk in chunks:
                with self._access("write", path):
                    await writer.write(chunk)
            # `close` writes all that fits into the buffer, and the folder may be gone since the first chunk.
            await self._check_root()
        except BaseException as error:
            # An exception makes the writer abandon what it wrote. Its own error would hide the first one.
            with contextlib.suppress(*_BACKEND_ERRORS):
                await writer.__aexit__(type(error), error, error.__traceback__)
            raise
        with self._access("write", path):
            await writer.close()
        await self._make_durable(path)

    async def create(self, path: str, content: bytes) -> bool:
        """Write a small object only if it does not exist, atomically among all writers.

        Returns:
            True if this call created it, False if it exists. After a lost response the existing one may be ours: put a
            nonce into the object to find out.
        """
        await self._check_root()
        for attempt in range(_CREATE_TRIES):
            with self._access("write", path):
                try:
                    await obstore.put_async(
                        self._backend,
                        path,
                        content,
                        attributes=self._attributes(path),
                        mode="create",
                        use_multipart=False,
                    )
                    created = True
                except AlreadyExistsError:
                    created = False
            # obstore also reports S3's 409 like this: two writers met, and perhaps neither won.
            if created or await self.head(path) is not None:
                # The other writer may have died before its object was durable, and the caller will rely on it.
                await self._make_durable(path)
                return created
            await asyncio.sleep(_CREATE_PAUSE_SECONDS * 2**attempt)
        raise StoreProblem(
            f"{self.uri_of(path)} could not be created: the store says both that it exists and that it does not; "
            "longtake will retry",
            retryable=True,
        )

    async def delete(self, path: str) -> None:
        """Delete an object, if it exists."""
        with self._access("delete", path):
            try:
                await obstore.delete_async(self._backend, path)
            except FileNotFoundError as error:
                await self._check_absence(error)

    async def entries(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """Every object below a path, unordered, with its time of writing by the store's clock."""
        await self._check_root()  # a folder that is gone must not look like an empty one
        with self._access("list", prefix):
            async for batch in obstore.list(self._backend, prefix=prefix):
                for meta in batch:
                    yield meta["path"], meta["last_modified"]

    async def probe(self) -> None:
        """Test that the store writes, reads and deletes, and that it honours create-if-absent.

        Raises:
            StoreProblem: It does not; the message says what to do.
        """
        path = f"probe/{uuid.uuid4().hex}"
        first, second = b"first", b"second"
        # If the response to the first attempt was lost, obstore's retry finds the object that we created.
        if not await self.create(path, first) and await self.get(path) != first:
            raise StoreProblem(
                f"the store {self.url} reports that a new object already exists: it cannot hold the submission ledger",
                retryable=False,
            )
        created_again = await self.create(path, second)
        kept = await self.get(path)
        await self.delete(path)
        if created_again or kept != first:
            raise StoreProblem(
                f"the store {self.url} ignores If-None-Match (create only if absent). The submission ledger needs it "
                "to never pay twice: use a store that honours it",
                retryable=False,
            )
        if await self.get(path) is not None:
            raise StoreProblem(f"the store {self.url} does not delete objects", retryable=False)

    @contextlib.contextmanager
    def _access(self, verb: str, path: str) -> Iterator[None]:
        """Check the path, and translate the backend's errors."""
        _checked(path)
        try:
            yield
        except _BACKEND_ERRORS as error:
            raise self._problem(verb, path, error) from None

    def _attributes(self, path: str) -> dict[str, str] | None:
        # obstore refuses content types on a local disk.
        content_type = _CONTENT_TYPES.get(Path(path).suffix)
        if self._root is not None or content_type is None:
            return None
        return {"Content-Type": content_type}

    async def _check_root(self) -> None:
        """Raise if the store's folder is gone, such as an unmounted disk: it is neither writable nor empty."""
        if self._root is None:
            return
        if self._root_id is None or await asyncio.to_thread(_device_and_inode, self._root) != self._root_id:
            raise StoreProblem(
                f"the store's folder {self._root} is gone: mount or restore it (after a restore restart the worker)",
                retryable=True,
            )

    async def _check_absence(self, error: Exception) -> None:
        if "NoSuchBucket" in str(error):
            raise self._problem("read", "", error) from None
        await self._check_root()

    async def _make_durable(self, path: str) -> None:
        if self._root is not None:
            # obstore recreates a folder that is gone, perhaps on the wrong disk: such a write does not count.
            await self._check_root()
            with self._access("write", path):
                await asyncio.to_thread(_fsync, self._root, path)

    def _problem(self, verb: str, path: str, error: Exception) -> StoreProblem:
        where = f"{self.url}/{path}" if path else self.url
        text = str(error)
        if "No space left" in text or "os error 28" in text or "quota exceeded" in text.lower():
            # Other programs may free space, so every step retries until its own timeout.
            return StoreProblem(
                f"no space left on the disk that holds {self._root or self.url}: free some. "
                "Nothing is lost; longtake will retry",
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
    """Refuse a path with `..`, an empty segment or a special character."""
    for segment in path.split("/"):
        if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
            raise StoreProblem(
                f"{path[:200]!r} is not a path in the store: use segments of letters, digits and ._=+@,-",
                retryable=False,
            )
    return path


def _s3_endpoint(config: dict[str, Any]) -> str:
    """The endpoint that obstore will use; it looks in this order."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return str(config.get("endpoint") or next((os.environ[name] for name in names if os.environ.get(name)), ""))


def _without_query(uri: str) -> str:
    return uri.partition("?")[0][:200]


def _lacks_credentials(text: str) -> bool:
    # Without credentials obstore asks the cloud's metadata service, which only the cloud's machines have.
    return "169.254.169.254" in text or "/latest/api/token" in text or "metadata.google.internal" in text


def _first_line(error: Exception) -> str:
    """One short line: the cloud's own code and message, if there are any, else obstore's first line."""
    text = str(error)
    code = re.search(r"<Code>([^<]+)</Code>", text)
    message = re.search(r"<Message>([^<]+)</Message>", text)
    line = ": ".join(found.group(1) for found in (code, message) if found) or next(iter(text.splitlines()), "")
    # The query of a signed link is a secret.
    return re.sub(r"\?\S+", "", line or type(error).__name__)[:300]


def _fsync(root: Path, path: str) -> None:
    """Sync a file and every folder from it up to the root to the disk; obstore does not."""
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


def _device_and_inode(root: Path) -> tuple[int, int] | None:
    """The folder's device and inode: they tell it from a mount point or a new folder at the same path."""
    try:
        status = root.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
