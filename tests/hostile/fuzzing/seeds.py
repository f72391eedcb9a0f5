"""Writes the first inputs of the corpus: `python -m tests.hostile.fuzzing.seeds`. Inputs that failed lie beside them.

Each is small, and made here or from the contract's examples.
"""

import base64
import io
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image

from longtake.gateway import wire
from longtake.submission.records import Intent, Outcome, Response
from longtake.temporal.key_ring import KeyRing, parse_keys
from tests.hostile.fuzzing.replayed import CUT
from tests.hostile.fuzzing.targets import CORPUS, ENCRYPTION_KEYS, FORM, KEY, TASK
from tests.longtake.media_samples import mp4

EXAMPLES = Path(__file__).parents[2] / "longtake" / "gateway" / "examples"
_NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


def http(body: bytes | object, status: str = "200 OK", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if "Transfer_Encoding" in headers else [f"Content-Length: {len(content)}"]
    return f"HTTP/1.1 {status}\r\n".encode() + "\r\n".join([*lines, "", ""]).encode() + content


def answers() -> Iterator[tuple[str, bytes]]:
    for path in sorted(EXAMPLES.glob("*.json")):
        yield path.stem, http(path.read_bytes(), X_Oneapi_Request_Id="202607011200")
    yield "chunked", http(b'5\r\n{"tas\r\n4\r\nk_id\r\n9\r\n":"t"}   \r\n0\r\n\r\n', Transfer_Encoding="chunked")
    yield "data-is-text", http({"code": "success", "data": json.dumps({"task_id": TASK, "status": "SUCCESS"})})
    yield "list-of-one", http([{"task_id": TASK, "status": "QUEUED", "progress": "30%", "quota": 1.5e9}])
    yield "not-found", http({"code": "task_not_exist", "message": "no", "data": None}, "400 Bad Request")
    yield "quota", http({"error": {"code": "insufficient_user_quota", "message": KEY, "type": "x"}}, "403 Forbidden")
    yield "busy", http({"error": {"message": "later"}}, "429 Too Many Requests", Retry_After="120")
    yield "page", http(b"<html><title>502 Bad Gateway</title>", "502 Bad Gateway", Content_Type="text/html")
    yield "moved", http(b"", "301 Moved", Location="https://other.example/v1/videos")
    yield "gzip", http(b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\xae\x05\0C\xbf\xa6\xa3\x02\0\0\0", Content_Encoding="gzip")
    yield "empty", http(b"", "204 No Content")
    yield "early", b"HTTP/1.1 103 Early Hints\r\n\r\n" + http({"id": TASK})
    echoed = {"error": {"message": f"Authorization: Bearer {KEY} {FORM.prompt} https://a:b@c.example/?sig=1"}}
    yield "echo", http(echoed, "500 Internal Server Error")


def lists() -> Iterator[tuple[str, bytes]]:
    task = {"task_id": TASK, "submit_time": 1782907200, "status": "SUCCESS", "quota": 5, "progress": "100%"}
    task |= {"properties": {"origin_model_name": FORM.model}}
    row = {"type": 2, "model_name": FORM.model, "created_at": 1782907200, "quota": 5, "other": '{"a": 1}'}
    tasks = http({"success": True, "data": {"items": [task], "total": 1, "page": 1}})
    yield "heard", CUT.join([tasks, http({"success": True, "data": [row, {**row, "type": 6}]})])
    yield "models", http({"data": [{"id": FORM.model}, {"id": 7}]})
    yield "closed", CUT.join([http({"success": False, "message": "no"}), http(b"<html>", Content_Type="text/html")])
    yield "limited", http(b"", "429 Too Many Requests", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")


def downloads() -> Iterator[tuple[str, bytes]]:
    clip = mp4(seconds=0.5, width=64, height=48)
    half = len(clip) // 2
    head = f'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: {len(clip)}\r\n\r\n'.encode()
    rest = {"Content_Range": f"bytes {half}-{len(clip) - 1}/{len(clip)}"}
    yield "whole", http(clip, ETag='"a"')
    yield "resumed", CUT.join([head + clip[:half], http(clip[half:], "206 Partial Content", **rest)])
    yield "moved", CUT.join([http(b"", "302 Found", Location="//cdn2.example/x"), http(clip)])
    yield "inside", http(b"", "302 Found", Location="http://169.254.169.254/latest/meta-data")
    yield "expired", http(b"<Error>Request has expired</Error>", "403 Forbidden")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def videos() -> Iterator[tuple[str, bytes]]:
    for layout in ("plain", "faststart", "fragmented"):
        yield layout, mp4(seconds=0.5, width=64, height=48, layout=layout)
    yield "sizes", box(b"ftyp", b"isom") + box(b"moov", box(b"trak", box(b"tkhd", bytes(84)))) + b"\0\0\0\1mdat"
    yield "page", b"<!DOCTYPE html><title>gone</title>"


def images() -> Iterator[tuple[str, bytes]]:
    for kind, more in (("PNG", {}), ("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("WEBP", {})):
        file = io.BytesIO()
        Image.new("RGB", (16, 12), "teal").save(file, kind, **more)
        yield f"{kind.lower()}{'-'.join(['', *more])}", file.getvalue()


def records() -> Iterator[tuple[str, bytes]]:
    for path in sorted(EXAMPLES.glob("*.json")):
        record = wire.read_task(json.loads(path.read_bytes()), asked_for=TASK, request_id="r1")
        yield path.stem, record.to_json()


def slots() -> Iterator[tuple[str, bytes]]:
    intent = Intent(nonce="n", digest="d", sent_at=_NOW, window_seconds=9, writer="o", model=FORM.model)
    accepted = Outcome(nonce="n", outcome="accepted", task_id=TASK, at=_NOW)
    refused = Outcome(nonce="n", outcome="not_sent", at=_NOW, decided=True, fence=_NOW + timedelta(hours=1))
    answer = Response(nonce="n", at=_NOW, status=502, excerpt="…")
    written = [record.model_dump_json().encode() for record in (intent, accepted, refused, answer)]
    closing = intent.model_copy(update={"closing": True, "fence": _NOW}).model_dump_json().encode()
    yield "accepted", CUT.join(written[:2])
    yield "not-sent", CUT.join([written[0], written[2], b"", written[1]])
    yield "doubt", CUT.join([written[0], b"", written[3]])
    yield "closing", closing
    yield "identity", b'{"identity": "0123456789abcdef"}'


REQUEST = {"model": FORM.model, "prompt": "a", "prompt_extend": "b", "size": "1280x720"}


def everything() -> Iterator[tuple[str, str, bytes]]:
    """Target, name and content."""
    accepted = http({"id": 7, "task_id": TASK, "object": "video", "status": "queued"}, X_Oneapi_Request_Id="r1")
    for name, content in answers():
        yield "query", name, content
        yield "submission", name, content
        yield "errors", name, content.partition(b"\r\n\r\n")[2]
    yield "submission", "accepted", accepted
    for target, made in {
        "lists": lists(),
        "download": downloads(),
        "mp4": videos(),
        "images": images(),
        "records": records(),
        "ledger": slots(),
    }.items():
        for name, content in made:
            yield target, name, content
    waits = ("120", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:00 -0000", "202607011200abc")
    for number, text in enumerate(waits):
        yield "headers", str(number), text.encode()
    png = base64.b64encode(next(content for name, content in images() if name == "png")).decode()
    urls = (
        "https://cdn.example/a.mp4?Expires=1782907200&Signature=x",
        "https://s3.example/a?X-Amz-Date=20260701T120000Z&X-Amz-Expires=3600",
        "https://az.example/a?se=2026-07-01T12%3A00%3A00Z",
        f"data:image/png;base64,{png}",
        "http://[::1]:99999/",
        "file:///store/images/x.png",
        "memory:/videos/a.mp4",
    )
    for number, text in enumerate(urls):
        yield "links", str(number), text.encode()
    yield "settings", "gateway", f"LONGTAKE_GATEWAY_URL=https://g.example/v1\nLONGTAKE_GATEWAY_API_KEY={KEY},b".encode()
    yield (
        "settings",
        "many",
        (
            b"LONGTAKE_STORE_URL=file:///a%20b\nLONGTAKE_METRICS_ADDRESS=[::1]:9464\nLONGTAKE_EXPECTED_SECONDS=150\n"
            b"LONGTAKE_GIVE_UP_AFTER_HOURS=24\nLONGTAKE_LOG_FORMAT=json\nLONGTAKE_HIDE_PROMPTS=1\nLONGTAKE_DATA_DIR=~/x"
        ),
    )
    yield "settings", "keys", f"LONGTAKE_ENCRYPTION_KEYS={ENCRYPTION_KEYS}\nLONGTAKE_GATEWAY_URI=x".encode()
    yield "keys", "one", ENCRYPTION_KEYS.encode()
    yield "keys", "two", f"{ENCRYPTION_KEYS}, k2:{'B' * 43}=".encode()
    _, sealed = KeyRing(parse_keys(ENCRYPTION_KEYS)).encrypt(b"secret", ("another", "video-other"))
    yield "payloads", "moved", sealed
    yield "payloads", "plain", b"\n\x16\n\x08encoding\x12\njson/plain\x12\x02{}"
    yield "requests", "plain", json.dumps(REQUEST).encode()
    frames = [{"uri": "https://example.com/a.png"}, {"uri": "DATA:image/png;base64,AAAA"}]
    more = {"images": frames, "on_extend_failed": "ask", "keep_first": True, "task_id": TASK}
    yield "requests", "more", json.dumps(REQUEST | more).encode()
    yield "requests", "carried", json.dumps({"carried": 1, "key": "k", "input": REQUEST, "policy": {}}).encode()
    for number, decision in enumerate(({"action": "accept"}, {"action": "adopt", "task_id": TASK, "slot": 1})):
        yield "decisions", str(number), json.dumps(decision).encode()
    texts = ("done: full 15.0 s\x1b[2J", "$(touch x) `id` 'a'", "\u202egpj.exe\u2028x", "**b** <b> [a](https://b)")
    for number, text in enumerate(texts):
        yield "sinks", str(number), text.encode()


def write() -> None:
    for target, name, content in everything():
        path = CORPUS / target / f"seed-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    write()
