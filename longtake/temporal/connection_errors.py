"""Explains connection errors of Temporal's client, and says what to do."""

import re
from textwrap import shorten
from typing import Final, NamedTuple


class _Cause(NamedTuple):
    pattern: str
    """Pattern of the SDK core's message: error names of rustls and tonic."""
    reason: str
    advice: str


_TLS: Final = (
    _Cause(
        r"UnknownIssuer|BadSignature",
        "its certificate is signed by an authority that this machine does not trust",
        "set TEMPORAL_TLS_SERVER_CA_CERT_PATH (in a profile: tls.server_ca_cert_path) to that authority's certificate",
    ),
    _Cause(
        r"InvalidCertificate\(Expired",
        "its certificate has expired",
        "renew it there, or correct this machine's clock",
    ),
    _Cause(
        r"NotValidForName",
        "its certificate is for another name",
        "set TEMPORAL_ADDRESS to that name, or TEMPORAL_TLS_SERVER_NAME (tls.server_name)",
    ),
    _Cause(
        r"InvalidContentType",
        "it does not speak TLS",
        "set TEMPORAL_TLS=false (tls.disabled = true), or TEMPORAL_ADDRESS to its TLS port",
    ),
    _Cause(
        r"Unauthenticated|PermissionDenied",
        "it refuses the API key",
        "set TEMPORAL_API_KEY (in a profile: api_key) to a key that is valid for this namespace",
    ),
)
_CLOSED: Final = re.compile(r"after connection: .*Error\(Transport|received fatal alert|AlertReceived", re.DOTALL)
_INNERMOST: Final = re.compile(r'(?:message|error): "([^"]+)"')
_DEFAULT_ADVICE: Final = "check TEMPORAL_ADDRESS, or leave it out to use the embedded server"
_MAX_REASON: Final = 200


def explain(message: str, *, tls: bool, client_certificate: bool) -> str:
    """One sentence about a failed connection.

    Args:
        message: The client's message.
        tls: Whether the client used TLS.
        client_certificate: Whether it had a client certificate.
    """
    for cause in _TLS:
        if re.search(cause.pattern, message):
            return f"{cause.reason}: {cause.advice}"
    if _CLOSED.search(message):
        return _closed(tls=tls, client_certificate=client_certificate)
    inner = _INNERMOST.findall(message)  # the operating system's words, inside the wrappings of the SDK's core
    reason = shorten(inner[-1] if inner else message, _MAX_REASON, placeholder=" …") or "no reason was given"
    return f"cannot be reached ({reason}): {_DEFAULT_ADVICE}"


def _closed(*, tls: bool, client_certificate: bool) -> str:
    """A server that requires another client certificate closes the connection, often without a reason."""
    files = "TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH"
    if not tls:
        return "it closes the connection at once: if it requires TLS, set TEMPORAL_TLS=true (or a profile's tls)"
    if not client_certificate:
        return f"it closes the connection: it requires a client certificate: set {files} (tls.client_cert_path, …)"
    return (
        "it closes the connection: it rejects the client certificate, which may have expired or be signed by an "
        f"authority unknown there. Renew the files that {files} name"
    )
