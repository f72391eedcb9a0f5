"""What Temporal is given to store: keys, rotation, tampering, failures, and what was stored before encryption."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import ActivitySerializationContext, DataConverter, WorkflowSerializationContext
from temporalio.exceptions import ApplicationError

from longtake.models import FailureDetails, GenerateVideoInput
from longtake.settings import Settings, SettingsProblem
from longtake.temporal.codec import EncryptionCodec, encrypting
from longtake.temporal.connection import DATA_CONVERTER, data_converter
from longtake.temporal.key_ring import KeyRing, PayloadUnreadable, new_key, parse_keys

ROOT = Path(__file__).parents[3]
OLD, NEW = new_key("old"), new_key("new")
REQUEST = GenerateVideoInput(model="veo_3_1-fast-remix", prompt="a secret pangolin", prompt_extend="it leaves")


def converter(*keys: str) -> DataConverter:
    return encrypting(pydantic_data_converter, KeyRing(parse_keys(",".join(keys)) if keys else ()))


async def test_nothing_of_a_payload_is_readable_and_all_of_it_comes_back() -> None:
    [stored] = await converter(OLD).encode([REQUEST])
    assert b"pangolin" not in stored.SerializeToString()
    assert b"json" not in stored.SerializeToString(), "its own metadata is sealed too"
    assert stored.metadata["encoding"] == b"binary/encrypted"
    assert stored.metadata["encryption-key-id"] == b"old"
    assert await converter(OLD).decode([stored], [GenerateVideoInput]) == [REQUEST]


@settings(deadline=None)
@given(data=st.binary(), metadata=st.dictionaries(st.text(max_size=20), st.binary(max_size=20), max_size=3))
async def test_any_payload_comes_back(data: bytes, metadata: dict[str, bytes]) -> None:
    payload = Payload(metadata=metadata, data=data)
    codec = EncryptionCodec(KeyRing(parse_keys(OLD)))
    assert await codec.decode(await codec.encode([payload])) == [payload]


async def test_a_payload_as_large_as_temporal_takes_comes_back() -> None:
    payload = Payload(metadata={"encoding": b"binary/plain"}, data=os.urandom(2 * 2**20))
    codec = EncryptionCodec(KeyRing(parse_keys(OLD)))
    [stored] = await codec.encode([payload])
    assert stored.ByteSize() < payload.ByteSize() + 200
    assert await codec.decode([stored]) == [payload]


async def test_the_same_payload_never_looks_the_same() -> None:
    first, second = await converter(OLD).encode([REQUEST, REQUEST])
    assert first.data != second.data
    assert first.data[:12] != second.data[:12], "a nonce that repeats breaks the cipher"


async def test_rotation() -> None:
    [old] = await converter(OLD).encode([REQUEST])
    rotated = converter(NEW, OLD)
    [new] = await rotated.encode([REQUEST])
    assert new.metadata["encryption-key-id"] == b"new"
    assert await rotated.decode([old, new], [GenerateVideoInput, GenerateVideoInput]) == [REQUEST, REQUEST]
    # A process that has the new key at the end reads what the others write already, and still writes for all.
    between = converter(OLD, NEW)
    assert await between.decode([new], [GenerateVideoInput]) == [REQUEST]
    assert (await between.encode([REQUEST]))[0].metadata["encryption-key-id"] == b"old"


@pytest.mark.parametrize(("keys", "known"), [((), "it is not set"), ((NEW,), "it has 'new'")], ids=["none", "another"])
async def test_a_key_that_is_missing_is_named(keys: tuple[str, ...], known: str) -> None:
    stored = await converter(OLD).encode([REQUEST])
    with pytest.raises(PayloadUnreadable) as caught:
        await converter(*keys).decode(stored)
    assert "the key 'old'" in str(caught.value)
    assert known in str(caught.value)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("what", ["nonce", "body", "tag", "short", "empty", "key id", "other key"])
async def test_a_payload_that_was_changed_is_refused(what: str) -> None:
    [stored] = await converter(OLD).encode([REQUEST])
    ring = [OLD]
    match what:
        case "nonce":
            stored.data = flipped(stored.data, 0)
        case "body":
            stored.data = flipped(stored.data, 20)
        case "tag":
            stored.data = flipped(stored.data, len(stored.data) - 1)
        case "short":
            stored.data = stored.data[:-1]
        case "empty":
            stored.data = b""
        case "key id":
            # The same secret under another name: the id is authenticated too.
            ring = [OLD, "twin:" + OLD.partition(":")[2]]
            stored.metadata["encryption-key-id"] = b"twin"
        case "other key":
            ring = [new_key("old")]
    with pytest.raises(PayloadUnreadable, match=r"'(old|twin)'"):
        await converter(*ring).decode([stored])


async def test_a_payload_without_a_key_id_is_refused() -> None:
    [stored] = await converter(OLD).encode([REQUEST])
    del stored.metadata["encryption-key-id"]
    with pytest.raises(PayloadUnreadable, match="names no key"):
        await converter(OLD).decode([stored])


async def test_what_was_stored_before_encryption_is_still_read() -> None:
    stored = await DATA_CONVERTER.encode([REQUEST])
    assert b"pangolin" in stored[0].data
    assert await converter(OLD).decode(stored, [GenerateVideoInput]) == [REQUEST]
    anybodys = Payload(metadata={"encoding": b"json/plain"}, data=b'{"model": "m"}')
    assert await converter(OLD).decode([anybodys]) == [{"model": "m"}]


# --- Where a payload belongs ------------------------------------------------------------------------------------------


def at(workflow_id: str, namespace: str = "default") -> WorkflowSerializationContext:
    return WorkflowSerializationContext(namespace=namespace, workflow_id=workflow_id)


def of_activity(workflow_id: str | None) -> ActivitySerializationContext:
    return ActivitySerializationContext(
        namespace="default",
        workflow_id=workflow_id,
        workflow_type="GenerateVideo",
        activity_type="deliver_video",
        activity_id="1",
        activity_task_queue="video-generation",
        is_local=False,
    )


async def test_a_payload_opens_in_its_own_workflow_and_activities_only() -> None:
    ours = converter(OLD)
    [stored] = await ours.with_context(at("video-a")).encode([REQUEST])
    for context in (at("video-a"), of_activity("video-a")):
        assert await ours.with_context(context).decode([stored], [GenerateVideoInput]) == [REQUEST]
    for context in (at("video-b"), of_activity("video-b"), at("video-a", "other")):
        with pytest.raises(PayloadUnreadable, match="somebody moved it"):
            await ours.with_context(context).decode([stored])
    # Whoever is told no place, as the codec server, opens it: it is authentic.
    assert await ours.decode([stored], [GenerateVideoInput]) == [REQUEST]


@pytest.mark.parametrize(
    "forged",
    [
        {"encryption-workflow-id": b"video-b"},
        {"encryption-workflow-id": None},
        {"encryption-workflow-id": None, "encryption-namespace": None},
        {"encryption-workflow-id": b"\xff"},
    ],
)
async def test_a_place_that_was_changed_or_taken_away_is_refused(forged: dict[str, bytes | None]) -> None:
    ours = converter(OLD)
    [stored] = await ours.with_context(at("video-a")).encode([REQUEST])
    for name, value in forged.items():
        if value is None:
            del stored.metadata[name]
        else:
            stored.metadata[name] = value
    for reader in (ours, ours.with_context(at("video-b"))):
        with pytest.raises(PayloadUnreadable):
            await reader.decode([stored])


@settings(deadline=None)
@given(first=st.tuples(st.text(), st.text()), second=st.tuples(st.text(), st.text()))
async def test_no_two_places_are_alike(first: tuple[str, str], second: tuple[str, str]) -> None:
    assume(first != second)
    ring = KeyRing(parse_keys(OLD))
    key_id, sealed = ring.encrypt(b"x", first)
    assert ring.decrypt(key_id, sealed, first) == b"x"
    with pytest.raises(PayloadUnreadable):
        ring.decrypt(key_id, sealed, second)


async def test_failures_are_bound_too() -> None:
    failure = Failure()
    await converter(OLD).with_context(at("video-a")).encode_failure(ApplicationError("a pangolin"), failure)
    with pytest.raises(PayloadUnreadable):
        await converter(OLD).with_context(at("video-b")).decode_failure(failure)


async def test_plain_payloads_are_refused_where_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_ENCRYPTION_KEYS", OLD)
    monkeypatch.setenv("LONGTAKE_REQUIRE_ENCRYPTION", "true")
    strict = data_converter(Settings.load()).with_context(at("video-a"))
    plain = await DATA_CONVERTER.encode([REQUEST])
    with pytest.raises(PayloadUnreadable, match="LONGTAKE_REQUIRE_ENCRYPTION"):
        await strict.decode(plain)
    for sealing in (strict, converter(OLD).with_context(at("video-a"))):
        assert await strict.decode(await sealing.encode([REQUEST]), [GenerateVideoInput]) == [REQUEST]
    # What a client with a key sealed for nothing could stand anywhere.
    with pytest.raises(PayloadUnreadable, match="X-Namespace"):
        await strict.decode(await converter(OLD).encode([REQUEST]))


async def test_failures_are_encrypted_message_trace_and_details() -> None:
    try:
        try:
            raise ValueError("an inner secret pangolin")
        except ValueError as error:
            details = FailureDetails(gateway_message="detailed pangolin")
            raise ApplicationError("a secret pangolin", details, type="GenerationFailed") from error
    except ApplicationError as error:
        failure = Failure()
        await converter(OLD).encode_failure(error, failure)
    assert b"pangolin" not in failure.SerializeToString()
    assert b"test_encryption" not in failure.SerializeToString(), "nor is the trace readable"
    assert failure.application_failure_info.type == "GenerationFailed", "clients match on it"
    decoded = await converter(NEW, OLD).decode_failure(failure)
    assert isinstance(decoded, ApplicationError)
    assert (decoded.message, decoded.type) == ("a secret pangolin", "GenerationFailed")
    assert decoded.details[0]["gateway_message"] == "detailed pangolin"
    assert str(decoded.__cause__) == "ValueError: an inner secret pangolin"


# --- Keys and settings ------------------------------------------------------------------------------------------------

SECRET = base64.b64encode(b"pangolin" * 4).decode()


@pytest.mark.parametrize(
    ("given_keys", "told"),
    [
        (SECRET, "key 1 "),
        (f"a b:{SECRET}", "key 1 "),
        (f"new:{SECRET},", "key 2 "),
        (f"new:{SECRET},a:{SECRET[:-3]}", "key 2 "),
        (f"a:{SECRET[:-2]}ü", "key 1 "),
        (f"a:{SECRET[:24]}", "key 1 has 18 bytes, not 32"),
        (f"a:{SECRET},a:{SECRET}", "key 2 "),
    ],
)
def test_a_bad_key_is_one_clear_error_that_never_shows_it(
    monkeypatch: pytest.MonkeyPatch, given_keys: str, told: str
) -> None:
    monkeypatch.setenv("LONGTAKE_ENCRYPTION_KEYS", given_keys)
    with pytest.raises(SettingsProblem) as caught:
        Settings.load()
    assert "LONGTAKE_ENCRYPTION_KEYS" in str(caught.value)
    assert told in str(caught.value)
    assert SECRET[:12] not in str(caught.value)


def test_keys_are_in_no_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_ENCRYPTION_KEYS", f"a:{SECRET}")
    settings = Settings.load()
    assert [key.id for key in settings.encryption_keys] == ["a"]
    assert not [
        said for said in (repr(settings), str(settings.encryption_keys)) if "pangolin" in said or SECRET in said
    ]


async def test_the_setting_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGTAKE_ENCRYPTION_KEYS", raising=False)
    assert b"pangolin" in (await data_converter(Settings.load()).encode([REQUEST]))[0].data
    monkeypatch.setenv("LONGTAKE_ENCRYPTION_KEYS", f" {NEW} , {OLD} ")
    assert (await data_converter(Settings.load()).encode([REQUEST]))[0].metadata["encryption-key-id"] == b"new"


def python(code: str, **environment: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout


def test_off_it_loads_no_cryptography() -> None:
    used = "import longtake.temporal.connection, sys; from longtake.settings import Settings; Settings.load()"
    assert python(f"{used}; print(*[name for name in sys.modules if name == 'cryptography'])") == "\n"


def test_without_the_package_one_message_says_what_to_install() -> None:
    hide = "import importlib.util as u; u.find_spec = lambda name: None"
    load = "from longtake.settings import *\ntry: Settings.load()\nexcept SettingsProblem as problem: print(problem)"
    told = python(f"{hide}\n{load}", LONGTAKE_ENCRYPTION_KEYS=NEW)
    assert told == ("LONGTAKE_ENCRYPTION_KEYS: needs the package `cryptography`: pip install 'longtake[encryption]'\n")
