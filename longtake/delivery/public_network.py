"""The HTTP client for downloads: through the environment's proxy, else to public addresses only (no SSRF).

Without a proxy this client resolves a name once, checks every address, and connects to one of those: DNS rebinding
gains nothing. A proxy resolves and connects by itself, so this client can check only the name; the proxy's own rules
must protect its network.
"""

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from urllib.request import getproxies

import httpx

from longtake.settings import Settings

ANY_ADDRESS = "longtake_any_address"
"""Request extension: this request may go to private addresses."""

_LOOKUP_SECONDS = 10
_MAX_ADDRESSES_OF_A_FAMILY = 2
"""Addresses to try in turn; a name may have thousands, and each may take a connect timeout."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host: metadata, DNS and health, at an address that looks public
        "192.0.0.0/24",  # protocol assignments (RFC 6890); 192.0.0.192 is Oracle Cloud's metadata
        "64:ff9b:1::/48",  # NAT64 within one network (RFC 8215)
    )
)
_INNER_NAMES = ("localhost", "local", "internal", "home.arpa")
"""Domains that are never public (RFC 6761, 6762, 8375; ICANN's .internal)."""

_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's codes for a certificate that no trusted authority signed."""
_SET_IF_INTENDED = "set LONGTAKE_ALLOW_PRIVATE_ADDRESSES if that is intended"


class AddressRefused(Exception):
    """A link leads to a private address, or, through a proxy, to a private name."""


class HostUnknown(Exception):
    """The host name cannot be resolved."""


def is_public(address: str) -> bool:
    """Whether an IP address is public. An IPv6 address that embeds an IPv4 address counts as that one."""
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


async def needless_private_addresses(settings: Settings) -> str | None:
    """A warning if downloads may reach private addresses although the gateway is public; else None."""
    if not settings.allow_private_addresses or settings.gateway_url is None:
        return None
    try:
        addresses = await _resolve(httpx.URL(settings.gateway_url))
    except (HostUnknown, httpx.InvalidURL):
        return None
    if not any(is_public(address) for address in addresses):
        return None
    return (
        "LONGTAKE_ALLOW_PRIVATE_ADDRESSES is true although the gateway is public: links in its answers can make the "
        "worker read from addresses inside your network"
    )


def environment_proxies() -> dict[str, str | None]:
    """The proxy for each URL pattern, read from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` as httpx does.

    httpx's own function is private. A test compares the two.
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
    """Open the client for downloads. It follows no redirect and keeps no connection.

    The environment names proxies and trusted authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR`). `.netrc` is not read.

    Its requests raise `AddressRefused` or `HostUnknown` before they send anything.
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
    """Why a connection failed, and which environment variable may fix it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = f"its certificate is not accepted ({cause.verify_message[:120]})"
            unknown = cause.verify_code in _UNKNOWN_AUTHORITY
            return f"{said}: if your own authority signed it, set SSL_CERT_FILE" if unknown else said
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
    """Connects to a checked address. `Host`, SNI and certificate verification still use the name."""

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
    """Sends requests for public names to the proxy."""

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
        # Connections are not kept, so one made for this name never serves another name at the same address.
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )


async def _public_addresses(url: httpx.URL) -> list[str]:
    """The addresses to try, in the resolver's order.

    Raises:
        AddressRefused: One address is private.
        HostUnknown: The name has no address.
    """
    addresses = await _resolve(url)
    _check_addresses(url, addresses)
    v4 = [address for address in addresses if ":" not in address][:_MAX_ADDRESSES_OF_A_FAMILY]
    v6 = [address for address in addresses if ":" in address][:_MAX_ADDRESSES_OF_A_FAMILY]
    return [address for address in addresses if address in {*v4, *v6}]


def _check_addresses(url: httpx.URL, addresses: Sequence[str]) -> None:
    for address in addresses:
        if not is_public(address):
            raise AddressRefused(
                f"the host {url.host} has the address {address}, which is not public: {_SET_IF_INTENDED}"
            )


async def _check_name(url: httpx.URL) -> None:
    """Check a name that the proxy will resolve.

    Raises:
        AddressRefused: The name is private, or it resolves to a private address here.
    """
    name = url.raw_host.decode("ascii").rstrip(".").lower()
    literal = _literal(name)
    if literal is not None:
        _check_addresses(url, [literal])
        return
    if "." not in name or name.endswith(tuple(f".{inner}" for inner in _INNER_NAMES)):
        raise AddressRefused(f"the host {url.host} is a name of a private network: {_SET_IF_INTENDED}")
    try:
        addresses = await _resolve(url)
    except HostUnknown:
        return  # behind a proxy, public names often cannot be resolved locally
    _check_addresses(url, addresses)


def _literal(name: str) -> str | None:
    """The address, if the name is one. A proxy may also read old forms such as `127.1` as an address."""
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
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        raise HostUnknown(f"the host {url.host} cannot be resolved") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
