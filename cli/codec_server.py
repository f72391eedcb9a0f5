"""The command `codec-server`: encrypts and decrypts for Temporal's UI and the `temporal` command.

It speaks the protocol of Temporal's remote codecs: `POST [/NAMESPACE]/decode` and `/encode`, payloads as protobuf's
JSON. Whoever reaches it can read every payload, so it listens on loopback, answers browsers of the configured origins
only, and requires a token if one is set.
"""

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payloads
from uvicorn import Config, Server

from cli.addresses import host_and_port, is_loopback
from cli.embedded import ui_origins
from cli.output import CommandProblem, Exit
from cli.session import load_settings
from longtake.settings import Settings
from longtake.temporal.codec import EncryptionCodec, Place
from longtake.temporal.connection import is_configured
from longtake.temporal.key_ring import KeyRing, PayloadUnreadable

MAX_BODY_BYTES = 64 * 2**20
"""The UI sends the payloads of a page of history at once; none of them is above 2 MiB."""


async def serve(data_dir: Path | None, *, unprotected: bool) -> Exit:
    """Run `codec-server` until Ctrl-C.

    Raises:
        CommandProblem: It is not configured, it would be open to everybody, or its address is unusable.
    """
    settings = load_settings(data_dir)
    host, port = _address(settings, unprotected=unprotected)
    origins = settings.codec_origins or (() if is_configured() else ui_origins(settings.data_dir))
    token = settings.codec_token.get_secret_value() if settings.codec_token else None
    app = application(KeyRing(settings.encryption_keys), origins, token)
    # Requests and answers are secret, so there is no access log.
    server = Server(Config(app, host=host, port=port, access_log=False, log_level="warning", lifespan="off"))
    sys.stderr.write(
        f"codec server at http://{settings.codec_server} for {', '.join(origins) or 'no browser'} and the temporal "
        f"command; {'requires LONGTAKE_CODEC_TOKEN' if token else 'requires no token'}. Press Ctrl-C to stop.\n"
    )
    try:
        with contextlib.suppress(asyncio.CancelledError):  # SIGTERM, which is how it is meant to end
            await server.serve()
    except SystemExit:  # uvicorn raises this if it cannot start, and has printed why
        raise CommandProblem(Exit.USAGE, "InvalidSettings", f"cannot listen on {settings.codec_server}") from None
    return Exit.DELIVERED


def application(ring: KeyRing, origins: Sequence[str] = (), token: str | None = None) -> Starlette:
    """The server's routes.

    Args:
        ring: The keys.
        origins: The UIs whose pages may read the answers.
        token: The bearer token that a request must have; None requires none.
    """
    codec = EncryptionCodec(ring)

    async def convert(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and origin not in origins:
            return PlainTextResponse("this origin is not in LONGTAKE_CODEC_ORIGINS", 403)
        if token is not None and not _has_token(request, token):
            return PlainTextResponse("send LONGTAKE_CODEC_TOKEN as `Authorization: Bearer …` (--codec-auth)", 401)
        body = await _read(request)
        if body is None:
            return PlainTextResponse(f"send at most {MAX_BODY_BYTES} bytes", 413)
        # Encryption binds a payload to the namespace; the protocol does not name the workflow.
        namespace = request.path_params.get("namespace") or request.headers.get("x-namespace")
        sealing = codec.at(Place(namespace)) if namespace else codec
        work = codec.decode if request.url.path.endswith("/decode") else sealing.encode
        try:
            given = ParseDict(json.loads(body), Payloads()).payloads
            converted = Payloads(payloads=await work(given))
        except PayloadUnreadable as error:
            return PlainTextResponse(str(error), 400)
        except (ParseError, ValueError, AttributeError, RecursionError):
            return PlainTextResponse('the body is not {"payloads": […]}', 400)
        return Response(MessageToJson(converted), media_type="application/json")

    paths = ("/encode", "/decode", "/{namespace}/encode", "/{namespace}/decode")
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["POST"],
        allow_headers=["authorization", "content-type", "x-namespace"],
        allow_credentials=True,
        # Browsers ask for this before a page from elsewhere, such as Temporal Cloud's UI, may call this machine.
        allow_private_network=True,
    )
    return Starlette(routes=[Route(path, convert, methods=["POST"]) for path in paths], middleware=[cors])


async def _read(request: Request) -> bytes | None:
    """The body; None if it is too long, whatever its Content-Length says."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _has_token(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "").encode()
    return secrets.compare_digest(given, f"Bearer {token}".encode())


def _address(settings: Settings, *, unprotected: bool) -> tuple[str, int]:
    """Where to listen.

    Raises:
        CommandProblem: The address or the keys are not set, or everybody could connect.
    """
    missing = [
        name
        for name, value in (
            ("LONGTAKE_ENCRYPTION_KEYS", settings.encryption_keys),
            ("LONGTAKE_CODEC_SERVER", settings.codec_server),
        )
        if not value
    ]
    if missing or settings.codec_server is None:
        message = f"set {' and '.join(missing)}: the codec server needs the keys and an address, such as 127.0.0.1:8081"
        raise CommandProblem(Exit.USAGE, "InvalidSettings", message)
    host, port = host_and_port(settings.codec_server)
    if not (unprotected or settings.codec_token or is_loopback(host)):
        message = (
            f"LONGTAKE_CODEC_SERVER: everybody who reaches {host} could read all payloads. Use 127.0.0.1, set "
            "LONGTAKE_CODEC_TOKEN, or pass --unprotected if a proxy in front authenticates"
        )
        raise CommandProblem(Exit.USAGE, "InvalidSettings", message)
    return host, int(port)
