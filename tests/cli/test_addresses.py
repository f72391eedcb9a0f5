"""Addresses as settings have them."""

import pytest

from cli.addresses import host_and_port, is_loopback, local_address


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.9.8.7", True), ("::1", True)),
        *(("0.0.0.0", False), ("10.0.0.1", False), ("::", False), ("gateway.example", False), ("", False)),  # noqa: S104 - not bound
    ],
)
def test_loopback(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:80", "[::1]:80"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("name:80", "name:80"),
    ],
)
def test_where_this_machine_reaches_a_listener(address: str, local: str) -> None:
    assert local_address(address) == local


def test_host_and_port() -> None:
    assert host_and_port("[::1]:8081") == ("::1", "8081")
