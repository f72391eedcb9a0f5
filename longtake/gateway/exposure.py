"""Whether a gateway is on the public internet, where no download should need a private address."""

import asyncio
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from longtake.settings import Settings

_LOOKUP_SECONDS = 5


async def is_public_gateway(url: str) -> bool:
    """Whether the host of this URL has a public address; False where it cannot be resolved."""
    try:
        host, port = urlsplit(url).hostname or "", urlsplit(url).port
        async with asyncio.timeout(_LOOKUP_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError, ValueError):
        return False
    return any(ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)


async def needless_private_addresses(settings: Settings) -> str | None:
    """A warning, where downloads may reach private addresses although the gateway is public; else None.

    A hostile response of such a gateway could make the worker read from this machine's own network.
    """
    if not settings.allow_private_addresses or settings.gateway_url is None:
        return None
    if not await is_public_gateway(settings.gateway_url):
        return None
    return (
        "LONGTAKE_ALLOW_PRIVATE_ADDRESSES is true, and the gateway is public: links in its answers can make the worker "
        "read from addresses inside your network"
    )
