"""A TLS front for Temporal's plain gRPC port, with its own authority: what a cluster beyond loopback has before it.

It terminates TLS with ALPN `h2`, asks for a client's certificate where it is told to, and forwards the bytes. Beside
that it reads along as an HTTP/2 server would, so that it knows the headers of each call, and refuses calls without the
API key where it wants one, as gRPC does.
"""

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

_CHUNK_BYTES = 2**16
_DAY = timedelta(days=1)


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

    def issue(self, name: str, *, client: bool = False, expired: bool = False) -> Certificate:
        """A certificate for a server on 127.0.0.1, or for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
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
    target: str, server: Certificate, *, client_authority: Path | None = None, api_key: str | None = None
) -> AsyncIterator[tuple[str, Seen]]:
    """Its address, and what it sees.

    Args:
        target: The address of the plain server.
        server: What it shows.
        client_authority: Clients must show a certificate of this authority.
        api_key: Calls must carry it as `authorization: Bearer …`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.cert, server.key)
    context.set_alpn_protocols(["h2"])
    if client_authority:
        context.load_verify_locations(client_authority)
        context.verify_mode = ssl.CERT_REQUIRED
    proxy = _Proxy(target, f"Bearer {api_key}" if api_key else None)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=context)
    port: int = listening.sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{port}", proxy.seen
    finally:
        listening.close()
        await proxy.close()
        await listening.wait_closed()


class _Proxy:
    def __init__(self, target: str, authorization: str | None) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._authorization = authorization
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
        eavesdropper = H2Connection(H2Configuration(client_side=False, validate_inbound_headers=False))
        eavesdropper.initiate_connection()
        upstream, to_upstream = await asyncio.open_connection(self._host, int(self._port))
        back = asyncio.ensure_future(_pump(upstream, writer))
        try:
            while data := await reader.read(_CHUNK_BYTES):
                if not all(self._may(eavesdropper, event) for event in eavesdropper.receive_data(data)):
                    back.cancel()
                    writer.write(eavesdropper.data_to_send())
                    await writer.drain()
                    await reader.read()
                    return
                eavesdropper.clear_outbound_data_buffer()
                to_upstream.write(data)
                await to_upstream.drain()
        finally:
            back.cancel()
            to_upstream.transport.abort()

    def _may(self, connection: H2Connection, event: object) -> bool:
        """Whether a call may pass; one that may not gets its answer from here."""
        if not isinstance(event, RequestReceived):
            return True
        headers = {_text(name): _text(value) for name, value in event.headers or ()}
        self.seen.calls.add(headers[":path"])
        self.seen.authorizations.add(headers.get("authorization", ""))
        if self._authorization is None or headers.get("authorization") == self._authorization:
            return True
        refusal = {":status": "200", "content-type": "application/grpc", "grpc-status": "16"}
        assert event.stream_id is not None
        connection.send_headers(
            event.stream_id, [*refusal.items(), ("grpc-message", "invalid API key")], end_stream=True
        )
        return False


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
