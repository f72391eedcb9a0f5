"""The command `codec-server`: encrypts and decrypts for Temporal's UI and the `temporal` command.

It speaks the protocol of Temporal's remote codecs: `POST [/NAMESPACE]/decode` and `/encode`, payloads as protobuf's
JSON. Whoever reaches it can read everything, so it listens on loopback, answers browsers of the named origins only, and
asks for a token where there is one.
"""

import ipaddress
import json
import secrets
from collections.abc import Callable, Sequence
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

from cli.commands.generations import load_settings
from cli.embedded import ui_origins
from cli.output import CommandProblem, Exit
from longtake.settings import Settings
from longtake.temporal.codec import EncryptionCodec, Place
from longtake.temporal.connection import is_configured
from longtake.temporal.key_ring import KeyRing, PayloadUnreadable

MAX_BODY_BYTES = 64 * 2**20
"""The UI sends the payloads of a page of history at once; none of them is above 2 MiB."""


async def serve(data_dir: Path | None, *, unprotected: bool, announce: Callable[[str], None]) -> Exit:
    """Answer until interrupted.

    Raises:
        CommandProblem: It is not configured, or its address cannot be used.
    """
    settings = load_settings(data_dir)
    host, port = _address(settings, unprotected=unprotected)
    origins = settings.codec_origins or (() if is_configured() else ui_origins(settings.data_dir))
    token = settings.codec_token.get_secret_value() if settings.codec_token else None
    app = application(KeyRing(settings.encryption_keys), origins, token)
    # Every answer is a secret, and so may a refused one be: no access log.
    server = Server(Config(app, host=host, port=port, access_log=False, log_level="warning", lifespan="off"))
    announce(
        f"codec server http://{settings.codec_server}, answers {', '.join(origins) or 'no browser'} and the temporal "
        f"command, {'asks for LONGTAKE_CODEC_TOKEN' if token else 'asks for no token'}. Ctrl-C ends it."
    )
    try:
        await server.serve()
    except SystemExit:  # uvicorn's way to say that it could not start; it has said why
        raise CommandProblem(Exit.USAGE, "InvalidSettings", f"cannot listen on {settings.codec_server}") from None
    return Exit.DELIVERED


def application(ring: KeyRing, origins: Sequence[str] = (), token: str | None = None) -> Starlette:
    """The server's routes.

    Args:
        ring: Its keys.
        origins: The UIs whose pages may read its answers.
        token: What has to be shown as `Authorization: Bearer …`, if anything.
    """
    codec = EncryptionCodec(ring)

    async def convert(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and origin not in origins:
            return PlainTextResponse("this origin is not in LONGTAKE_CODEC_ORIGINS", 403)
        if token is not None and not _shows(request, token):
            return PlainTextResponse("show LONGTAKE_CODEC_TOKEN as `Authorization: Bearer …` (--codec-auth)", 401)
        body = await _read(request)
        if body is None:
            return PlainTextResponse(f"send at most {MAX_BODY_BYTES} bytes", 413)
        # Only what it seals is bound to the namespace that it is told; it is told no workflow.
        namespace = request.path_params.get("namespace") or request.headers.get("x-namespace")
        sealing = codec.at(Place(namespace)) if namespace else codec
        work = codec.decode if request.url.path.endswith("/decode") else sealing.encode
        try:
            given = ParseDict(json.loads(body), Payloads()).payloads
            converted = Payloads(payloads=await work(given))
        except PayloadUnreadable as error:
            return PlainTextResponse(str(error), 400)
        except (ParseError, ValueError, AttributeError, RecursionError):
            return PlainTextResponse('this is not {"payloads": […]}', 400)
        return Response(MessageToJson(converted), media_type="application/json")

    paths = ("/encode", "/decode", "/{namespace}/encode", "/{namespace}/decode")
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["POST"],
        allow_headers=["authorization", "content-type", "x-namespace"],
        allow_credentials=True,
        # A UI elsewhere (Temporal Cloud's) asks for this before its page may speak to this machine.
        allow_private_network=True,
    )
    return Starlette(routes=[Route(path, convert, methods=["POST"]) for path in paths], middleware=[cors])


async def _read(request: Request) -> bytes | None:
    """The body; None where it is too long, whatever its Content-Length says."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _shows(request: Request, token: str) -> bool:
    shown = request.headers.get("authorization", "").encode()
    return secrets.compare_digest(shown, f"Bearer {token}".encode())


def _address(settings: Settings, *, unprotected: bool) -> tuple[str, int]:
    """Where to listen.

    Raises:
        CommandProblem: It is not set, there are no keys, or it would be open to everybody.
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
    name, _, port = settings.codec_server.rpartition(":")
    host = name.strip("[]")
    if not (unprotected or settings.codec_token or _is_loopback(host)):
        message = (
            f"LONGTAKE_CODEC_SERVER: on {name} anybody who reaches it could read all payloads: use 127.0.0.1, set "
            "LONGTAKE_CODEC_TOKEN, or give --unprotected where something in front of it decides who may ask"
        )
        raise CommandProblem(Exit.USAGE, "InvalidSettings", message)
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
