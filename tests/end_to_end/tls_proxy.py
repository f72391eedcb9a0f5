"""A TLS front for Temporal's plain gRPC port, with its own authority: what a cluster beyond loopback has before it.

It terminates TLS with ALPN `h2`, asks for a client's certificate if it is set to, and hands each call on. Calls
without the API key, where it wants one, and of a service that is not for its clients it refuses itself, as gRPC does.
"""

import asyncio
import contextlib
import ipaddress
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import NoSuchStreamError

_CHUNK_BYTES = 2**16
_DAY = timedelta(days=1)
_Headers = Sequence[tuple[str, str] | tuple[bytes, bytes]]
_Refusal = Callable[[dict[str, str]], tuple[int, str] | None]


@dataclass(frozen=True)
class Certificate:
    """The files of a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority of our own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.cert = folder / f"{name}.pem"
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        made = (
            self._builder(self._name, self._key.public_key(), _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, client: bool = False, expired: bool = False, dns: str = "localhost") -> Certificate:
        """A certificate for a server on 127.0.0.1 and of a DNS name, or for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(dns)]
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        made = (
            self._builder(_named(name), key.public_key(), -_DAY if expired else _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        files.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, good_for: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * _DAY)
            .not_valid_after(now + good_for)
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass
class Seen:
    """What the proxy has seen of its clients."""

    calls: set[str] = field(default_factory=set)
    """The methods called, such as `/temporal.api.workflowservice.v1.WorkflowService/PollWorkflowTaskQueue`."""
    client_certificates: set[str] = field(default_factory=set)
    authorizations: set[str] = field(default_factory=set)


@contextlib.asynccontextmanager
async def tls_proxy(
    target: str,
    server: Certificate,
    *,
    client_authority: Path | None = None,
    api_key: str | None = None,
    closed_service: tuple[str, int] | None = None,
) -> AsyncIterator[tuple[str, Seen]]:
    """Its address, and what it sees.

    Args:
        target: The address of the plain server.
        server: What it shows.
        client_authority: Clients must show a certificate of this authority.
        api_key: Calls must carry it as `authorization: Bearer …`.
        closed_service: A gRPC service that no client may call, and the gRPC status that says so.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.cert, server.key)
    context.set_alpn_protocols(["h2"])
    if client_authority:
        context.load_verify_locations(client_authority)
        context.verify_mode = ssl.CERT_REQUIRED
    proxy = _Proxy(target, f"Bearer {api_key}" if api_key else None, closed_service)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=context)
    port: int = listening.sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{port}", proxy.seen
    finally:
        listening.close()
        await proxy.close()
        await listening.wait_closed()


class _Proxy:
    def __init__(self, target: str, authorization: str | None, closed_service: tuple[str, int] | None) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._authorization = authorization
        self._closed_service = closed_service
        self._connections: set[asyncio.Task[None]] = set()
        self.seen = Seen()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the two has gone, or the test is over
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def close(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("peercert")
        if shown:
            self.seen.client_certificates.add(dict(part[0] for part in shown["subject"])["commonName"])
        from_server, to_server = await asyncio.open_connection(self._host, int(self._port))
        client = _Side(reader, writer, client_side=False)
        server = _Side(from_server, to_server, client_side=True)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(client.pass_on(server, self._refusal))
                ways.create_task(server.pass_on(client))
        except* OSError:
            pass
        finally:
            to_server.transport.abort()

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """The gRPC status and message for a call that may not pass."""
        self.seen.calls.add(headers[":path"])
        self.seen.authorizations.add(headers.get("authorization", ""))
        if self._authorization not in (None, headers.get("authorization")):
            return 16, "invalid API key"
        if self._closed_service and headers[":path"].startswith(f"/{self._closed_service[0]}/"):
            return self._closed_service[1], "Request unauthorized."
        return None


@dataclass
class _Rest:
    """What a call still has to say after its headers."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    trailers: _Headers | None = None


class _Side:
    """One of the two HTTP/2 connections; a call has the same stream id on both."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client_side: bool) -> None:
        self._reader, self._writer = reader, writer
        self._http = H2Connection(H2Configuration(client_side, validate_inbound_headers=False))
        self._http.initiate_connection()
        self._refused: set[int] = set()
        self._rests: defaultdict[int, _Rest] = defaultdict(_Rest)

    async def pass_on(self, other: "_Side", refusal: _Refusal = lambda _: None) -> None:
        """Say to the other side what is said here, until one of the two ends.

        Raises:
            ConnectionError: Always: the end.
        """
        self._write()
        while data := await self._reader.read(_CHUNK_BYTES):
            for event in self._http.receive_data(data):
                with contextlib.suppress(NoSuchStreamError):  # a call that the other side has given up
                    self._hand_on(event, other, refusal)
            self._write()
            other._write()
        raise ConnectionError("closed")

    def _hand_on(self, event: Event, other: "_Side", refusal: _Refusal) -> None:
        ended = getattr(event, "stream_ended", None) is not None
        match event:
            case ConnectionTerminated():
                raise ConnectionError("closed")
            case RequestReceived() if refused := refusal({_text(k): _text(v) for k, v in event.headers}):
                self._refused.add(event.stream_id)
                headers = {":status": "200", "content-type": "application/grpc", "grpc-status": str(refused[0])}
                self._http.send_headers(
                    event.stream_id, [*headers.items(), ("grpc-message", refused[1])], end_stream=True
                )
            case RequestReceived() | ResponseReceived():
                other._http.send_headers(event.stream_id, event.headers, end_stream=ended)
            case DataReceived():
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if event.stream_id not in self._refused:
                    rest = other._rests[event.stream_id]
                    rest.data += event.data
                    rest.ended = ended
            case TrailersReceived():
                rest = other._rests[event.stream_id]
                rest.trailers, rest.ended = event.headers, True
            case StreamReset():
                other._rests.pop(event.stream_id, None)
                other._http.reset_stream(event.stream_id, event.error_code)

    def _write(self) -> None:
        """Write what there is room for: the other end says how much."""
        for stream_id in list(self._rests):
            try:
                if self._is_said(stream_id, self._rests[stream_id]):
                    del self._rests[stream_id]
            except NoSuchStreamError:
                del self._rests[stream_id]
        self._writer.write(self._http.data_to_send())

    def _is_said(self, stream_id: int, rest: _Rest) -> bool:
        while rest.data:
            room = min(self._http.local_flow_control_window(stream_id), self._http.max_outbound_frame_size)
            if room <= 0:
                return False
            self._http.send_data(stream_id, bytes(rest.data[:room]))
            del rest.data[:room]
        if rest.trailers:
            self._http.send_headers(stream_id, rest.trailers, end_stream=True)
        elif rest.ended:
            self._http.end_stream(stream_id)
        return rest.ended


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
