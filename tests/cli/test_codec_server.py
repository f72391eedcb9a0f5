"""The codec server's answers: to whom, and to whom not."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from temporalio.api.common.v1 import Payload, Payloads

from cli.codec_server import MAX_BODY_BYTES, application
from longtake.temporal.codec import EncryptionCodec, Place
from longtake.temporal.key_ring import KeyRing, PayloadUnreadable, new_key, parse_keys

RING = KeyRing(parse_keys(new_key("k1")))
UI = "http://127.0.0.1:8233"
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data='"a secret 穿山甲"'.encode())


def as_json(*payloads: Payload) -> dict[str, Any]:
    return MessageToDict(Payloads(payloads=payloads))


def client(token: str | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application(RING, (UI,), token))
    return httpx.AsyncClient(transport=transport, base_url="http://codec")


@pytest.fixture
async def codec() -> AsyncIterator[httpx.AsyncClient]:
    async with client() as found:
        yield found


@pytest.mark.parametrize("prefix", ["", "/default"])
async def test_it_decodes_and_encodes(codec: httpx.AsyncClient, prefix: str) -> None:
    sealed = await EncryptionCodec(RING).encode([PLAIN])
    answer = await codec.post(f"{prefix}/decode", json=as_json(*sealed, PLAIN), headers={"x-namespace": "default"})
    assert answer.status_code == 200
    assert list(ParseDict(answer.json(), Payloads()).payloads) == [PLAIN, PLAIN]
    encoded = await codec.post(f"{prefix}/encode", json=as_json(PLAIN))
    assert "secret" not in encoded.text
    assert await EncryptionCodec(RING).decode(ParseDict(encoded.json(), Payloads()).payloads) == [PLAIN]


async def test_it_opens_what_belongs_to_any_workflow_and_seals_for_the_namespace(codec: httpx.AsyncClient) -> None:
    sealed = await EncryptionCodec(RING, place=Place("films", "video-a")).encode([PLAIN])
    answer = await codec.post("/decode", json=as_json(*sealed), headers={"x-namespace": "films"})
    assert list(ParseDict(answer.json(), Payloads()).payloads) == [PLAIN]
    strict = EncryptionCodec(RING, strict=True)
    for path, headers in (("/encode", {"x-namespace": "films"}), ("/films/encode", {})):
        encoded = await codec.post(path, json=as_json(PLAIN), headers=headers)
        payloads = ParseDict(encoded.json(), Payloads()).payloads
        assert await strict.at(Place("films", "video-a")).decode(payloads) == [PLAIN]
        with pytest.raises(PayloadUnreadable):
            await strict.at(Place("other", "video-a")).decode(payloads)


async def test_a_key_that_is_missing_is_named(codec: httpx.AsyncClient) -> None:
    sealed = await EncryptionCodec(KeyRing(parse_keys(new_key("gone")))).encode([PLAIN])
    answer = await codec.post("/decode", json=as_json(*sealed))
    assert answer.status_code == 400
    assert "the key 'gone', which is not in LONGTAKE_ENCRYPTION_KEYS (it has 'k1')" in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'"x"',
        b'{"payloads": 1}',
        b'{"payloads": [{"data": 1}]}',
        b'{"x": []}',
        b"[" * 100_000,
        b'{"payloads": ' + b"[" * 100_000,
    ],
)
async def test_what_it_cannot_read_is_refused(codec: httpx.AsyncClient, body: bytes) -> None:
    answer = await codec.post("/decode", content=body, headers={"content-length": str(len(body))})
    assert (answer.status_code, "payloads" in answer.text) == (400, True)


@pytest.mark.parametrize("named", [{}, {"content-length": "10"}, {"content-length": "x"}])
async def test_what_is_too_long_is_not_read(codec: httpx.AsyncClient, named: dict[str, str]) -> None:
    chunk = bytes(2**20)
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += len(chunk)
            yield chunk

    assert (await codec.post("/decode", content=chunks(), headers=named)).status_code == 413
    assert sent <= MAX_BODY_BYTES + 2 * len(chunk)


async def test_only_the_configured_ui_may_ask_from_a_browser(codec: httpx.AsyncClient) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-namespace"}
    ours = await codec.options("/decode", headers={"origin": UI, **asks})
    assert (ours.status_code, ours.headers["access-control-allow-origin"]) == (200, UI)
    answer = await codec.post("/decode", json=as_json(PLAIN), headers={"origin": UI})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, UI)

    evil = "http://evil.example"
    assert (
        "access-control-allow-origin" not in (await codec.options("/decode", headers={"origin": evil, **asks})).headers
    )
    refused = await codec.post("/decode", json=as_json(PLAIN), headers={"origin": evil})
    assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (403, False)
    assert "LONGTAKE_CODEC_ORIGINS" in refused.text


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer tökén".encode("latin-1")}, 401),
        ({"authorization": "Bearer right"}, 200),
    ],
)
async def test_a_token_has_to_be_shown(shown: dict[str, Any], status: int) -> None:
    async with client("right") as codec:
        answer = await codec.post("/decode", json=as_json(PLAIN), headers=shown)
        assert answer.status_code == status
        assert status == 200 or "--codec-auth" in answer.text


async def test_there_is_nothing_to_get(codec: httpx.AsyncClient) -> None:
    assert (await codec.get("/decode")).status_code == 405
    assert (await codec.get("/")).status_code == 404
