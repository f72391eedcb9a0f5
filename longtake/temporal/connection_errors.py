"""Why Temporal cannot be reached, in words: what its client says, and what a person can do about it."""

import re
from typing import Final, NamedTuple


class _Cause(NamedTuple):
    said: str
    """A pattern of what the SDK's core says: rustls' and tonic's names of errors."""
    what: str
    to_do: str


_TLS: Final = (
    _Cause(
        r"UnknownIssuer|BadSignature",
        "its certificate is of an authority that is not trusted here",
        "set TEMPORAL_TLS_SERVER_CA_CERT_PATH (in a profile: tls.server_ca_cert_path) to that authority's certificate",
    ),
    _Cause(
        r"InvalidCertificate\(Expired",
        "its certificate has expired",
        "it must be renewed there, unless this machine's clock is wrong",
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
_DEFAULT_TO_DO: Final = "check TEMPORAL_ADDRESS, or leave it out to use the embedded server"
_MAX_REASON: Final = 200


def explain(said: str, *, tls: bool, client_certificate: bool) -> str:
    """One sentence for a connection that failed.

    Args:
        said: What the client says.
        tls: Whether it was to speak TLS.
        client_certificate: Whether it had a certificate to show.
    """
    for cause in _TLS:
        if re.search(cause.said, said):
            return f"{cause.what}: {cause.to_do}"
    if _CLOSED.search(said):
        return _closed(tls=tls, client_certificate=client_certificate)
    reason = said.splitlines()[0][:_MAX_REASON] if said else "no reason was given"
    return f"cannot be reached ({reason}): {_DEFAULT_TO_DO}"


def _closed(*, tls: bool, client_certificate: bool) -> str:
    """A server that wants a certificate, or a better one, closes the connection and often does not say why."""
    files = "TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH"
    if not tls:
        return "it closes the connection at once: if it wants TLS, set TEMPORAL_TLS=true (or a profile's tls)"
    if not client_certificate:
        return f"it closes the connection: it asks for a client certificate, set {files} (tls.client_cert_path, …)"
    return (
        "it closes the connection: it does not take the client certificate; has it expired, or is it of an authority "
        f"that is not known there? Renew what {files} name"
    )
