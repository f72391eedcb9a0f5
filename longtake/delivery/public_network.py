"""How a download reaches a stranger's server: by the proxy that the environment names, else at a public address only.

Without a proxy a name is resolved once, every address is judged, and the connection goes to one that was judged: a name
that resolves differently a moment later gains nothing. Behind a proxy it is the proxy that resolves and connects, so
only the name can be judged here: what it reaches inside its own network is for the proxy's rules to forbid.
"""

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from urllib.request import getproxies

import httpx

ANY_ADDRESS = "longtake_any_address"
"""An extension of a request that may go to addresses that are not public."""

_LOOKUP_SECONDS = 10
_MAX_ADDRESSES_OF_A_FAMILY = 2
"""To be tried one after the other; a name with thousands of them must not keep a download busy."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host: metadata, DNS and health, at an address that looks public
        "192.0.0.0/24",  # for protocols (RFC 6890); 192.0.0.192 is Oracle Cloud's metadata
        "64:ff9b:1::/48",  # NAT64 within one network (RFC 8215)
    )
)
_INNER_NAMES = ("localhost", "local", "internal", "home.arpa")
"""Domains that never lead to the public internet (RFC 6761, 6762, 8375; ICANN's .internal)."""

_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's codes for a certificate that no trusted authority has signed."""
_SET_IF_INTENDED = "set LONGTAKE_ALLOW_PRIVATE_ADDRESSES if that is intended"


class AddressRefused(Exception):
    """A link leads to an address, or by a proxy to a name, that is not public."""


class HostUnknown(Exception):
    """A name that cannot be resolved."""


def is_public(address: str) -> bool:
    """Tell whether an IP address is on the public internet, looking through IPv6 notations of IPv4 addresses."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    is_site_local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or is_site_local)


def environment_proxies() -> dict[str, str | None]:
    """The proxy for each pattern of URLs, as httpx reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.

    httpx keeps its own function to itself; the paying client uses that one, and a test holds the two together.
    """
    given = getproxies()
    mounts: dict[str, str | None] = {}
    for scheme in ("http", "https", "all"):
        if proxy := given.get(scheme):
            mounts[f"{scheme}://"] = proxy if "://" in proxy else f"http://{proxy}"
    for part in given.get("no", "").split(","):
        host = part.strip()
        if host == "*":
            return {}
        if host:
            mounts[_no_proxy_pattern(host)] = None
    return mounts


def _no_proxy_pattern(host: str) -> str:
    if "://" in host:
        return host
    try:
        address = ipaddress.ip_address(host.split("/", maxsplit=1)[0])
    except ValueError:
        return f"all://{host}" if host.lower() == "localhost" else f"all://*{host}"
    return f"all://{host}" if address.version == 4 else f"all://[{host}]"  # noqa: PLR2004 - of the Internet Protocol


def download_client(timeout: httpx.Timeout, limits: httpx.Limits) -> httpx.AsyncClient:
    """Open a client for strangers' servers. It follows no redirect and keeps no connection.

    Proxies come from the environment, and so do the trusted authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR`), as for the
    client that pays; a `.netrc` is not read.

    Raises (from its requests):
        AddressRefused: Before anything is sent.
        HostUnknown: The same.
    """
    tls = httpx.create_ssl_context()
    limits = httpx.Limits(max_connections=limits.max_connections, max_keepalive_connections=0)
    mounts: dict[str, httpx.AsyncBaseTransport | None] = {
        pattern: _ByProxy(httpx.AsyncHTTPTransport(verify=tls, limits=limits, proxy=proxy)) if proxy else None
        for pattern, proxy in environment_proxies().items()
    }
    return httpx.AsyncClient(
        timeout=timeout,
        transport=_Direct(httpx.AsyncHTTPTransport(verify=tls, limits=limits)),
        mounts=mounts,
        trust_env=False,
        follow_redirects=False,
    )


def what_to_set(error: httpx.TransportError) -> str:
    """Say why a connection failed, and what to set where the environment's settings can be the reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = f"its certificate is not accepted ({cause.verify_message[:120]})"
            unknown = cause.verify_code in _UNKNOWN_AUTHORITY
            return f"{said}: for an authority of your own set SSL_CERT_FILE" if unknown else said
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ProxyError):
        said = "".join(letter for letter in str(error)[:80] if letter.isprintable())
        return f"the proxy answered {said}: check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        named = [name for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") if os.environ.get(name)]
        named = named or [name for name in ("https_proxy", "http_proxy", "all_proxy") if os.environ.get(name)]
        if named:
            return f"{type(error).__name__}: check the network, and {', '.join(named)}"
    return type(error).__name__


class _Direct(httpx.AsyncBaseTransport):
    """Connects to the very address that was judged; the name stays in `Host`, SNI and the check of the certificate."""

    def __init__(self, inner: httpx.AsyncHTTPTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if ANY_ADDRESS in request.extensions:
            return await self._inner.handle_async_request(request)
        failure: httpx.TransportError | None = None
        for address in await _public_addresses(request.url):
            try:
                return await self._inner.handle_async_request(_to(address, request))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure or HostUnknown(f"the host {request.url.host} has no address")

    async def aclose(self) -> None:
        await self._inner.aclose()


class _ByProxy(httpx.AsyncBaseTransport):
    """Asks the proxy, for names that can be public."""

    def __init__(self, inner: httpx.AsyncHTTPTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if ANY_ADDRESS not in request.extensions:
            await _check_name(request.url)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _to(address: str, request: httpx.Request) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        # No connection is kept, so none that was made for one name can serve another at the same address.
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )


async def _public_addresses(url: httpx.URL) -> list[str]:
    """Resolve a name, and give the addresses to try.

    Raises:
        AddressRefused: One of them is not public.
        HostUnknown: There are none.
    """
    addresses = await _resolve(url)
    _check_addresses(url, addresses)
    old = [address for address in addresses if ":" not in address][:_MAX_ADDRESSES_OF_A_FAMILY]
    new = [address for address in addresses if ":" in address][:_MAX_ADDRESSES_OF_A_FAMILY]
    return [address for address in addresses if address in {*old, *new}]


def _check_addresses(url: httpx.URL, addresses: Sequence[str]) -> None:
    for address in addresses:
        if not is_public(address):
            raise AddressRefused(
                f"the host {url.host} has the address {address}, which is not public: {_SET_IF_INTENDED}"
            )


async def _check_name(url: httpx.URL) -> None:
    """Judge a name that a proxy will resolve.

    Raises:
        AddressRefused: It is no public name, or it is known to lead to an address that is not public.
    """
    name = url.raw_host.decode("ascii").rstrip(".").lower()
    literal = _literal(name)
    if literal is not None:
        _check_addresses(url, [literal])
        return
    if "." not in name or name.endswith(tuple(f".{inner}" for inner in _INNER_NAMES)):
        raise AddressRefused(f"the host {url.host} has a name of an inner network: {_SET_IF_INTENDED}")
    try:
        addresses = await _resolve(url)
    except HostUnknown:
        return  # where all goes by a proxy, names from outside are often not resolved at all
    _check_addresses(url, addresses)


def _literal(name: str) -> str | None:
    """An address that is written instead of a name; also in old forms such as `127.1`, which a proxy may read so."""
    try:
        return str(ipaddress.ip_address(name.strip("[]").partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        return None


async def _resolve(url: httpx.URL) -> list[str]:
    port = url.port or (443 if url.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_LOOKUP_SECONDS):
            found = await loop.getaddrinfo(url.raw_host.decode("ascii"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a time-out is an OSError too
        raise HostUnknown(f"the host {url.host} is not known") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
