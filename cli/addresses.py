"""`host:port` as settings have it: whether only this machine reaches it, and how this machine does."""

from ipaddress import ip_address


def host_and_port(address: str) -> tuple[str, str]:
    """Host and port of `host:port`; an IPv6 host without its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host. A name other than `localhost` counts as reachable by others."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def local_address(address: str) -> str:
    """Where this machine reaches a listener: one that listens on all addresses listens on loopback too."""
    host, port = host_and_port(address)
    try:
        ip = ip_address(host)
    except ValueError:
        return address
    if not ip.is_unspecified:
        return address
    return f"127.0.0.1:{port}" if ip.version == 4 else f"[::1]:{port}"  # noqa: PLR2004 - IPv4
