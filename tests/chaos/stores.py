"""Where a run's clips and its submission ledger lie: a folder, or a bucket behind a faulty network."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from simulator.faultproxy import Fault, FaultProxy
from tests.longtake.s3_server import BUCKET, S3Server

Json = dict[str, Any]

WEATHER = [
    Fault("refuse", probability=0.02),
    # Carried out, and the answer is lost.
    Fault("cut_answer", after_bytes=40, probability=0.02),
    Fault("reset", after_bytes=60, probability=0.02),
    # Not carried out, or only in part.
    Fault("cut_request", after_bytes=300, probability=0.02),
    Fault("latency", seconds=0.2, probability=0.03),
]
AWAY = [Fault("refuse")]


class Store(Protocol):
    """A store that can be taken away."""

    url: str
    """Known once it has been started."""
    environment: Mapping[str, str]
    """What a worker needs besides the URL."""
    recreated: list[str]
    """What was written while it was away. Each such write is told as failed, so that its writer repeats it."""

    async def start(self) -> None:
        """Be there."""

    async def stop(self) -> None:
        """End what was started; whatever has happened."""

    def storm(self) -> None:
        """Faults on the way to it from now on, if there is a way."""

    def calm(self) -> None:
        """No faults any more."""

    def take_away(self) -> None:
        """From now on nothing is there."""

    def bring_back(self) -> None:
        """All is as it was."""

    def lost(self) -> list[str]:
        """Records and clips that were written while it was away and not again since; doubts that the index misses."""

    def read(self, uri: str) -> bytes | None:
        """The clip that a result names; None where it is not there."""

    def clips(self) -> Iterator[tuple[str, Json]]:
        """Every clip that was verified: its URI, and what was written down of it."""


class FolderStore:
    """On local disk; it fails by being renamed away, as a disk that was unmounted."""

    def __init__(self, folder: Path) -> None:
        self.url = folder.as_uri()
        self.environment: Mapping[str, str] = {}
        self.recreated: list[str] = []
        self._folder = folder
        self._away = folder.with_name("store-away")

    async def start(self) -> None:
        """Make the folder."""
        self._folder.mkdir()

    async def stop(self) -> None:
        """Nothing was started."""

    def storm(self) -> None:
        """A disk has no weather."""

    def calm(self) -> None:
        """As ever."""

    def take_away(self) -> None:
        """Rename it."""
        self._folder.rename(self._away)

    def bring_back(self) -> None:
        """Rename it back; what was written meanwhile is kept beside it."""
        if not self._away.exists():
            return
        if self._folder.exists():
            written = [path.relative_to(self._folder) for path in self._folder.rglob("*") if path.is_file()]
            # A probe of a worker that is just starting is no record: nobody looks for it again.
            self.recreated += [str(path) for path in written if path.parts[0] != "probe"]
            self._folder.rename(self._folder.with_name(f"store-recreated-{time.time():.0f}"))
        self._away.rename(self._folder)

    def lost(self) -> list[str]:
        """See `Store`. `records/` is a cache, and an entry of the index `open/` ends with its submission."""
        kept = [path for path in self.recreated if Path(path).parts[0] not in {"probe", "records", "open"}]
        missing = [path for path in kept if not (self._folder / path).exists()]
        # A closing intent sends nothing, and ends without an outcome.
        sent = (one for one in self._folder.glob("submit/*/*/intent") if not json.loads(one.read_text()).get("closing"))
        return missing + [
            f"{slot.relative_to(self._folder)} is open and not in the index"
            for slot in (intent.parent for intent in sent)
            if not (slot / "outcome").exists() and not (self._folder / f"open/{slot.parent.name}.{slot.name}").exists()
        ]

    def read(self, uri: str) -> bytes | None:
        """See `Store`."""
        path = Path(unquote(urlsplit(uri).path))
        return path.read_bytes() if path.is_file() else None

    def clips(self) -> Iterator[tuple[str, Json]]:
        """See `Store`."""
        for path in self._folder.rglob("*.mp4"):
            sidecar = path.with_name(f"{path.name}.json")
            if sidecar.exists():
                yield path.as_uri(), json.loads(sidecar.read_text())["video"]


class BucketStore:
    """S3's protocol (moto's server) behind a proxy that refuses, cuts and resets connections."""

    def __init__(self, seed: int) -> None:
        self.url = ""
        self.environment: Mapping[str, str] = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self.recreated: list[str] = []
        self._s3 = S3Server()
        host, _, port = self._s3.endpoint.removeprefix("http://").partition(":")
        self._proxy = FaultProxy(host, int(port), seed=seed)
        self._end = AsyncExitStack()
        self._weather: list[Fault] = []

    async def start(self) -> None:
        """Start the server and the way to it."""
        self._end.enter_context(self._s3)
        await self._end.enter_async_context(self._proxy)
        self.url = self._s3.url("chaos").replace(self._s3.endpoint, self._proxy.url)

    async def stop(self) -> None:
        """End the server: what lay in it is gone."""
        await self._end.aclose()

    def storm(self) -> None:
        """See `WEATHER`."""
        self._weather = self._proxy.faults = WEATHER

    def calm(self) -> None:
        """Every new connection passes."""
        self._weather = self._proxy.faults = []

    def take_away(self) -> None:
        """Refuse all connections."""
        self._proxy.faults = AWAY

    def bring_back(self) -> None:
        """As it was before."""
        self._proxy.faults = self._weather

    def lost(self) -> list[str]:
        """A bucket is there or not: nothing is written beside it."""
        return []

    def read(self, uri: str) -> bytes | None:
        """See `Store`; not through the proxy."""
        name = unquote(urlsplit(uri).path).removeprefix("/")
        client = self._s3.client
        try:
            content: bytes = client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return content

    def clips(self) -> Iterator[tuple[str, Json]]:
        """See `Store`."""
        for page in self._s3.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for found in page.get("Contents", ()):
                if found["Key"].endswith(".mp4.json"):
                    uri = f"s3://{BUCKET}/{found['Key']}"
                    sidecar = self.read(uri)
                    assert sidecar is not None
                    yield uri.removesuffix(".json"), json.loads(sidecar)["video"]
