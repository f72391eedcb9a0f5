"""Every reader of foreign bytes, one function each: it takes any bytes and checks what comes of them.

Only the documented errors may come out, and what is read is sane: bounded, printable where people read it, without the
key. `watchdog.limited` holds each input to its time and memory.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import re
import shlex
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest
from google.protobuf.message import DecodeError
from obstore.store import MemoryStore
from pydantic import SecretStr, ValidationError
from temporalio.api.common.v1 import Payload

from longtake import display
from longtake.delivery import download as delivery
from longtake.delivery import public_network
from longtake.delivery.download import DownloadFailed, Fetcher, Source, SourceFailed
from longtake.delivery.mp4 import Mp4Reader, NotAWholeVideo
from longtake.delivery.task_records import _path, forget_links, load_record, video_directory
from longtake.gateway import wire
from longtake.gateway.account import AccountClient, AccountRecords, ConsoleAccess
from longtake.gateway.client import GatewayClient, SubmissionForm, SubmittedTask
from longtake.gateway.errors import GatewayError, GatewayUnreachable
from longtake.gateway.links import expires_at
from longtake.models import Decision, DeliveryKind, GenerateVideoInput, MediaInfo
from longtake.observability.logs import JsonFormatter, TextFormatter
from longtake.request.images import ImageProblem, check_image_bytes, check_image_url, read_data_uri
from longtake.request.rules import (
    MAX_PROBLEMS,
    InvalidRequest,
    check_request,
    differing_fields,
    expected_size,
    is_task_id,
    request_digest,
    warnings_for,
)
from longtake.settings import Settings, SettingsProblem
from longtake.storage import Store, StoreProblem
from longtake.submission import ledger, records
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import CreateIntent, Submission, SubmissionLedger
from longtake.submission.records import IDENTITY, Intent, Outcome, folder_of, open_path, owner_path, record_path
from longtake.temporal.codec import EncryptionCodec, Place
from longtake.temporal.connection import DATA_CONVERTER
from longtake.temporal.key_ring import KeyRing, PayloadUnreadable, parse_keys
from tests.hostile.fuzzing.replayed import Replay, parts
from workflows.state import GenerationState

KEY: Final = "sk-fuzzed0123456789"
TASK: Final = "task_fuzzed1"
FORM: Final = SubmissionForm(
    model="veo_3_1-fast-remix", prompt="a lighthouse keeper reads", prompt_extend="the lamp goes out at once"
)
GATEWAY_HOST: Final = "gateway.example"
PUBLIC_ADDRESS: Final = "93.184.215.14"
ENCRYPTION_KEYS: Final = "k1:" + "A" * 43 + "="
_MAX_ERROR_CHARS = 2_000
_MAX_FAILURE_CHARS = 100_000
_WINDOW = (datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 7, 2, tzinfo=UTC))
# One name of a store for the lot: its backend is made anew for each input.
_STORE_URL = "memory:"


def one_line(text: str | None, most: int) -> None:
    """What a person is shown of it is one bounded line, and can be written down."""
    if text is None:
        return
    assert len(text) <= most
    assert text.isprintable()
    assert KEY not in text


def told(error: GatewayError) -> None:
    """An error of the gateway's, as people and Temporal get it."""
    one_line(str(error), _MAX_ERROR_CHARS)
    one_line(error.gateway_message, 300)
    one_line(error.code, 256)
    one_line(error.excerpt, wire.MAX_EXCERPT_CHARS)
    assert error.request_id is None or is_task_id(error.request_id)
    assert error.retry_after is None or timedelta(0) < error.retry_after <= wire.MAX_RETRY_AFTER


def sane_record(record: wire.GatewayRecord) -> None:
    shown = record.without_links()
    assert record.task_id == TASK
    assert record.progress is None or 0 <= record.progress <= 100
    for name in (record.remix_id, record.remix_id_extend, record.upstream_task_id, *record.answered_ids):
        assert name is None or is_task_id(name)
    for text in (record.gateway_status, record.inner_status, record.model, record.error_code):
        one_line(text, 256)
    one_line(record.error_message, 300)
    for link in (record.video_url, record.first_video_url, record.result_url):
        assert link is None or (link.isprintable() and re.match("https?://", link, re.IGNORECASE))
    assert wire.GatewayRecord.from_json(record.to_json()) == record
    assert KEY not in shown.model_dump_json()
    assert record.own_task_id.casefold() == TASK.casefold()


def store() -> Store:
    return Store(cast("Any", MemoryStore()), _STORE_URL, None)


class Readers:
    """What the targets share: real clients, which read the input instead of a network. For one event loop."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.replay = Replay()
        self._now = 0.0
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                patch.delenv(name)
        patch.setattr(public_network, "_resolve", self._resolve)  # no name is looked up
        patch.setattr(ledger, "_IDENTITY_TRIES", 1)  # it waits between them
        patch.setattr(records, "_WRITE_TRIES", 1)
        patch.setattr(delivery, "_RECONNECT_PAUSE_SECONDS", 0)
        patch.setitem(sys.modules, "trio", None)  # for each request httpcore looks whether it has been installed since
        tls = ssl.create_default_context()
        patch.setattr(ssl, "create_default_context", lambda *_, **__: tls)  # to load the authorities takes 70 ms
        patch.setattr(logging.getLogger("longtake"), "disabled", True)
        patch.setattr(logging.getLogger("longtake.gateway"), "disabled", True)
        keys = [SecretStr(KEY)]
        base = f"https://{GATEWAY_HOST}"
        self.gateway = GatewayClient(base_url=base, api_keys=keys, transport=self.replay.transport())
        self.account_client = AccountClient(
            base_url=base,
            api_key=keys[0],
            console=ConsoleAccess(SecretStr("console0123456789"), "7"),
            clock=self._clock,
            transport=self.replay.transport(),
        )
        self.fetcher = Fetcher(base, lambda: KEY, max_bytes=8 * 2**20)
        self.fetcher._client._transport = public_network._Direct(self.replay.transport())
        self.ring = KeyRing(parse_keys(ENCRYPTION_KEYS))
        self.targets: Mapping[str, Callable[[bytes], Awaitable[None]]] = {
            "query": self.query,
            "submission": self.submission,
            "lists": self.lists,
            "errors": self.errors,
            "headers": self.headers,
            "links": self.links,
            "download": self.download,
            "mp4": self.mp4,
            "images": self.images,
            "records": self.records,
            "ledger": self.ledger,
            "settings": self.settings,
            "keys": self.keys,
            "payloads": self.payloads,
            "requests": self.requests,
            "decisions": self.decisions,
            "sinks": self.sinks,
        }

    def _clock(self) -> float:
        self._now += 3600  # no limit of calls and nothing that was closed holds up the next input
        return self._now

    @staticmethod
    async def _resolve(url: httpx.URL) -> list[str]:
        literal = public_network._literal(url.raw_host.decode("ascii"))
        return [literal or PUBLIC_ADDRESS]

    # --- What a gateway answers: raw HTTP ----------------------------------------------------------------------------

    async def query(self, data: bytes) -> None:
        self.replay.give([data])
        for second_path in (False, True):
            try:
                sane_record(await self.gateway.query(TASK, second_path=second_path))
            except GatewayError as error:
                told(error)

    async def submission(self, data: bytes) -> None:
        self.replay.give([data])
        asked = 0

        async def before_send() -> None:
            nonlocal asked
            asked += 1

        try:
            answer = await self.gateway.submit(FORM, before_send=before_send)
            assert is_task_id(answer.task_id)
            assert answer.request_id is None or is_task_id(answer.request_id)
        except GatewayError as error:
            told(error)
            for prompt in (FORM.prompt, FORM.prompt_extend):
                assert prompt not in f"{error} {error.excerpt} {error.gateway_message}"
        assert asked == 1
        assert sum(sent.startswith(b"POST ") for _, sent in self.replay.sent) == 1

    async def lists(self, data: bytes) -> None:
        self.replay.give(parts(data, 4))
        since, until = _WINDOW
        said = await self.account_client.ask(model="veo_3_1-fast-remix", since=since, until=until)
        newest = await self.account_client.ask_newest()
        for reported in (said, newest):
            assert AccountRecords.model_validate_json(reported.model_dump_json()) == reported
            for note in reported.notes:
                one_line(note, _MAX_ERROR_CHARS)
            assert all(is_task_id(task.task_id) for task in reported.tasks or ())
            assert all(is_task_id(task.task_id) for task in reported.seen)
            assert reported.retry_after is None or reported.retry_after > timedelta(0)
        try:
            assert all(isinstance(name, str) for name in await self.gateway.list_models())
            await self.gateway.check_key()
        except GatewayError as error:
            told(error)

    async def errors(self, data: bytes) -> None:
        secrets = [KEY, FORM.prompt]
        for headers in ({}, {"Content-Type": "text/html"}):
            facts = wire.read_error(500, headers, data, secrets=secrets)
            one_line(facts.message, 300)
            one_line(facts.code, 256)
            one_line(facts.type, 256)
            assert FORM.prompt not in str(facts)
        excerpt = wire.read_excerpt(data, secrets=secrets)
        one_line(excerpt, wire.MAX_EXCERPT_CHARS)
        assert FORM.prompt not in excerpt

    async def headers(self, data: bytes) -> None:
        text = data.decode("latin-1")
        wait = wire.read_retry_after({"Retry-After": text})
        assert wait is None or timedelta(0) < wait <= wire.MAX_RETRY_AFTER
        name = wire.read_request_id({"x-oneapi-request-id": text}, "x-oneapi-request-id")
        assert name is None or is_task_id(name)

    async def links(self, data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        at = expires_at(text)
        assert at is None or at.tzinfo is not None
        with contextlib.suppress(ImageProblem):
            check_image_url(text)
        if text.lower().startswith("data:"):
            with contextlib.suppress(ImageProblem):
                read_data_uri(text)
        with contextlib.suppress(StoreProblem):
            store().path_of(text)
        with contextlib.suppress(SourceFailed):
            delivery._parse(text)
            delivery._parse(text, base=httpx.URL("https://cdn.example/a/b"))

    async def download(self, data: bytes) -> None:
        """The key goes to the gateway only, and nothing to an address that is not public."""
        self.replay.give(parts(data, 6))
        there = store()

        async def sources() -> AsyncIterator[Source]:
            yield Source("the link", "https://cdn.example/clip.mp4?sig=1")
            yield Source("the gateway", self.gateway.content_url(TASK), with_key=True)

        try:
            receipt = await delivery.deliver(
                store=there,
                fetcher=self.fetcher,
                sources=sources,
                directory=video_directory("fuzzed"),
                kind=DeliveryKind.FULL,
                task_id=TASK,
            )
            path = receipt.video.uri.removeprefix(f"{_STORE_URL}/")
            assert await there.head(path) == receipt.video.bytes
            sane_media(receipt.video)
        except DownloadFailed as error:
            one_line(str(error), _MAX_ERROR_CHARS)
        for host, sent in self.replay.sent:
            assert host == GATEWAY_HOST or public_network.is_public(host)
            assert host == GATEWAY_HOST or KEY.encode() not in sent

    # --- Videos and images -------------------------------------------------------------------------------------------

    async def mp4(self, data: bytes) -> None:
        """In one piece or in many, a file is the same."""
        whole = self._read_mp4([data])
        size = 1 + len(data) // 97
        pieces = self._read_mp4([data[at : at + size] for at in range(0, len(data), size)])
        assert whole == pieces or isinstance(whole, str) == isinstance(pieces, str)

    @staticmethod
    def _read_mp4(pieces: list[bytes]) -> MediaInfo | str:
        reader = Mp4Reader()
        try:
            for piece in pieces:
                reader.feed(piece)
            info = reader.finish()
        except NotAWholeVideo as error:
            one_line(error.reason, 300)
            return error.reason
        sane_media(info)
        return info

    async def images(self, data: bytes) -> None:
        """In the decoder's own process; what it may take is limited there."""
        try:
            image = await asyncio.to_thread(check_image_bytes, data, name="it")
        except ImageProblem as problem:
            one_line(str(problem), 300)
            return
        assert image.width > 0
        assert image.height > 0

    # --- What lies in the store --------------------------------------------------------------------------------------

    async def records(self, data: bytes) -> None:
        there = store()
        try:
            record = wire.GatewayRecord.from_json(data)
        except ValueError as error:
            one_line(str(error), 200)
        else:
            assert wire.GatewayRecord.from_json(record.to_json()) == record
            record.without_links()
            assert record.own_task_id is not None
        await there.put(_path("fuzzed", TASK), data)
        with contextlib.suppress(ValueError):
            await load_record(there, "fuzzed", TASK)
        await forget_links(there, "fuzzed", TASK, kind=DeliveryKind.FULL, keep_first=False)
        with contextlib.suppress(ValidationError):
            delivery._Sidecar.model_validate_json(data)

    async def ledger(self, data: bytes) -> None:
        """Nothing is sent where an intent lies that is not closed."""
        there = store()
        names = ("intent", "outcome", "response", "late")
        found = dict(zip(names, parts(data, len(names)), strict=False))
        for name, content in found.items():
            if content:
                await there.put(record_path(folder_of("fuzzed"), 1, name), content)
        if found.get("intent"):
            await there.put(open_path(folder_of("fuzzed"), 1), found["intent"])
        await there.put(owner_path(TASK), found.get("outcome", b""))
        records = SubmissionLedger(there, longest_exchange=timedelta(seconds=1))
        sent = 0

        async def send(create_intent: CreateIntent) -> SubmittedTask:
            nonlocal sent
            await create_intent()
            sent += 1
            raise GatewayUnreachable("nothing was sent")

        # Reads first, then what writes.
        works: list[Callable[[], Awaitable[object]]] = [
            lambda: records.accepted("fuzzed"),
            lambda: records.is_untouched("fuzzed"),
            lambda: records.outcome_of("fuzzed", 1),
            lambda: records.open_slot("fuzzed"),
            lambda: records.doubt("fuzzed", 1),
            lambda: records.owners_of([TASK, "task_other"]),
            lambda: records.open_submissions("another", "veo_3_1-fast-remix"),
            lambda: records.submit("fuzzed", Submission(digest="d", writer="fuzz", model="m"), send),
            lambda: records.resolve("fuzzed", 1, task_id=TASK, reason="fuzz"),
            lambda: records.close_unsent("fuzzed", fence=datetime.now(UTC), writer="fuzz"),
            lambda: records.adopt("fuzzed", Submission(digest="d", writer="fuzz", model="m"), "task_b"),
        ]
        for work in works:
            with contextlib.suppress(LedgerError, GatewayError):
                await work()
        if sent and found.get("intent") and not Intent.model_validate_json(found["intent"]).closing:
            outcome = Outcome.model_validate_json(found.get("outcome") or b"")
            assert outcome.outcome == "not_sent"
        await there.put(IDENTITY, data)
        with contextlib.suppress(LedgerError):
            await records.known_identity()

    # --- What an operator sets, and what a key opens -----------------------------------------------------------------

    async def settings(self, data: bytes) -> None:
        lines = [line.partition(b"=") for line in data.replace(b"\0", b"").splitlines()[:50]]
        given = {name: value for name, _, value in lines if re.fullmatch(rb"LONGTAKE_[A-Z_]{1,60}", name)}
        before = dict(os.environb)
        os.environb.update(given)
        try:
            found = Settings.load()
            found.policy()
            assert found.store_location
            _ = found.codec_url, found.retries_at_the_gateway
            with contextlib.suppress(SettingsProblem):
                url, keys = found.require_gateway()
                with contextlib.suppress(ValueError):
                    GatewayClient(base_url=url, api_keys=keys, transport=self.replay.transport())
        except SettingsProblem as problem:
            assert KEY not in str(problem)
        finally:
            for name in given:
                del os.environb[name]
            os.environb.update(before)

    async def keys(self, data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        try:
            assert KeyRing(parse_keys(text)).current
        except ValueError as error:
            one_line(str(error), 300)

    async def payloads(self, data: bytes) -> None:
        """Nothing opens that this key has not sealed."""
        try:
            payload = Payload.FromString(data)
        except DecodeError:
            payload = Payload(metadata={"encoding": b"binary/encrypted", "encryption-key-id": b"k1"}, data=data)
        for strict, place in itertools.product((False, True), (Place(), Place("default", "video-fuzzed"))):
            try:
                opened = await EncryptionCodec(self.ring, strict=strict, place=place).decode([payload])
            except PayloadUnreadable as error:
                assert len(str(error)) < _MAX_FAILURE_CHARS
                continue
            assert not strict
            assert opened == [payload]

    # --- What a caller sends -----------------------------------------------------------------------------------------

    @staticmethod
    def _decoded(data: bytes) -> Any:
        payload = Payload(metadata={"encoding": b"json/plain"}, data=data)
        try:
            return DATA_CONVERTER.payload_converter.from_payload(payload)
        except Exception:  # noqa: BLE001 - as the workflow's guard does
            return None

    async def requests(self, data: bytes) -> None:
        decoded = self._decoded(data)
        try:
            request = check_request(decoded)
        except InvalidRequest as error:
            assert 0 < len(error.problems) <= MAX_PROBLEMS
            assert len(str(error)) < _MAX_FAILURE_CHARS
            str(error).encode()
        else:
            assert GenerateVideoInput.model_validate_json(request.model_dump_json()) == request
            assert request_digest(request)
            assert not differing_fields(request, request)
            _ = warnings_for(request), expected_size(request)
        with contextlib.suppress(ValidationError):
            GenerationState.model_validate(decoded)

    async def decisions(self, data: bytes) -> None:
        payload = Payload(metadata={"encoding": b"json/plain"}, data=data)
        try:
            decision = DATA_CONVERTER.payload_converter.from_payload(payload, Decision)
        except Exception as error:  # noqa: BLE001 - the SDK refuses the update with it
            assert len(str(error)) < _MAX_FAILURE_CHARS
        else:
            assert isinstance(decision, Decision)

    # --- Where people read -------------------------------------------------------------------------------------------

    async def sinks(self, data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        for shown in (display.line(text), display.prose(text), display.code(text), display.command("echo", text)):
            assert shown.isprintable()
        for row in display.json_document({text[:50]: text}).split("\n"):
            assert row.isprintable()
        if text.isprintable():
            assert shlex.split(display.command("echo", text)) == ["echo", text]
        record = logging.LogRecord("longtake.fuzz", logging.INFO, __file__, 1, "an event of %s", (text,), None)
        record.said = text
        written = TextFormatter().format(record)
        assert written.isprintable()
        document = JsonFormatter().format(record)
        assert document.isprintable()
        json.loads(document)


def sane_media(info: MediaInfo) -> None:
    assert math.isfinite(info.duration_seconds)
    assert info.duration_seconds >= 0
    assert 0 <= info.width < 2**16
    assert 0 <= info.height < 2**16


CORPUS: Final = Path(__file__).parents[1] / "corpus"


def seeds(name: str) -> list[bytes]:
    """The inputs in the repository: those of `seeds.py`, and all that ever failed."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
