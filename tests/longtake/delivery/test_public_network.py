"""The way of a download: proxies, private authorities, and names that lead where they should not. All on loopback."""

import hashlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.delivery import public_network
from longtake.delivery.download import DownloadsBlocked, Fetcher
from longtake.delivery.public_network import environment_proxies, is_public
from longtake.models import DeliveryReceipt
from longtake.storage import Store
from tests.end_to_end.tls_proxy import Authority
from tests.longtake.delivery.test_download import Reply, Request, WebServer, answer, bring, failure, whole
from tests.longtake.loopback import Names, Proxy
from tests.longtake.media_samples import mp4

CDN = "cdn.example"
GATEWAY = "http://127.0.0.1:9"
"""Nobody listens there."""
NOT_HERE: list[list[str]] = [[]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def clip() -> bytes:
    return mp4(seconds=15, layout="faststart")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Names]:
    def know(**answers: list[list[str]]) -> Names:
        known = Names({name.replace("_", "."): list(given) for name, given in answers.items()})
        monkeypatch.setattr(socket, "getaddrinfo", known.getaddrinfo)
        return known

    return know


@pytest.fixture
def public_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 and 127.0.0.3 count as public here; 127.0.0.1 is the inner network."""

    def judge(address: str) -> bool:
        return address in {"127.0.0.2", "127.0.0.3"} or is_public(address)

    monkeypatch.setattr(public_network, "is_public", judge)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """A private authority that this machine is told to trust."""
    made = Authority(tmp_path, "a company's own")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.cert))
    return made


def tls(authority: Authority, name: str) -> ssl.SSLContext:
    files = authority.issue("server", dns=name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def at(web: WebServer) -> str:
    return web.url.partition("://")[2]


def is_whole(receipt: DeliveryReceipt, clip: bytes) -> bool:
    return receipt.video.sha256 == hashlib.sha256(clip).hexdigest()


# --- Without a proxy: the address that was judged is the one that is reached ----------------------------------------


@pytest.mark.usefixtures("public_loopback")
async def test_a_name_that_resolves_differently_the_second_time_reaches_nothing_inside(
    store: Store, clip: bytes, names: Callable[..., Names]
) -> None:
    known = names(cdn_example=[["127.0.0.2"], ["127.0.0.1"]])
    async with (
        Fetcher(GATEWAY) as fetcher,
        WebServer([whole(clip)]) as inside,
        WebServer([whole(clip)], host="127.0.0.2", port=int(port_of(inside.url))) as cdn,
    ):
        receipt = await bring(store, fetcher, f"http://{CDN}:{port_of(inside.url)}/clip.mp4")
    assert is_whole(receipt, clip)
    assert inside.requests == []
    assert [request.headers["host"] for request in cdn.requests] == [f"{CDN}:{port_of(inside.url)}"]
    assert known.asked == [CDN], "it is resolved once"


@pytest.mark.usefixtures("public_loopback")
async def test_a_redirect_to_a_name_that_turns_inwards_reaches_nothing_inside(
    store: Store, clip: bytes, names: Callable[..., Names]
) -> None:
    names(cdn_example=[["127.0.0.2"]], turning_example=[["127.0.0.2"], ["127.0.0.1"]])
    async with WebServer([whole(clip)]) as inside, Fetcher(GATEWAY) as fetcher:
        port = port_of(inside.url)
        moved = answer("302 Found", Location=f"http://turning.example:{port}/")
        async with WebServer([moved, answer("404 Not Found")], host="127.0.0.2", port=int(port)) as cdn:
            await failure(store, fetcher, f"http://{CDN}:{port}/clip.mp4")
    assert inside.requests == []
    assert len(cdn.requests) == 2


@pytest.mark.usefixtures("public_loopback")
async def test_one_inner_address_among_public_ones_is_enough_to_refuse(
    store: Store, clip: bytes, names: Callable[..., Names]
) -> None:
    names(cdn_example=[["127.0.0.2", "127.0.0.1"]])
    async with WebServer([whole(clip)], host="127.0.0.2") as cdn, Fetcher(GATEWAY) as fetcher:
        problem = await failure(store, fetcher, f"http://{CDN}:{port_of(cdn.url)}/clip.mp4")
    assert cdn.requests == []
    assert "which is not public" in problem.attempts[0][1]


@pytest.mark.usefixtures("public_loopback")
async def test_the_next_address_is_tried_where_one_does_not_answer(
    store: Store, clip: bytes, names: Callable[..., Names]
) -> None:
    names(cdn_example=[["127.0.0.3", "127.0.0.2"]])
    async with WebServer([whole(clip)], host="127.0.0.2") as cdn, Fetcher(GATEWAY) as fetcher:
        assert is_whole(await bring(store, fetcher, f"http://{CDN}:{port_of(cdn.url)}/clip.mp4"), clip)


@pytest.mark.usefixtures("public_loopback")
@pytest.mark.parametrize("certified", [CDN, "other.example"])
async def test_the_name_still_goes_into_tls_and_is_held_against_the_certificate(
    store: Store, clip: bytes, names: Callable[..., Names], authority: Authority, certified: str
) -> None:
    names(cdn_example=[["127.0.0.2"]])
    context, asked = tls(authority, certified), list[str | None]()
    context.sni_callback = lambda _, name, __: asked.append(name)
    async with WebServer([whole(clip)], host="127.0.0.2", tls=context) as cdn, Fetcher(GATEWAY) as fetcher:
        url = f"https://{CDN}:{port_of(cdn.url)}/clip.mp4"
        if certified == CDN:
            assert is_whole(await bring(store, fetcher, url), clip)
        else:
            problem = await failure(store, fetcher, url)
            assert "certificate" in problem.attempts[0][1]
            assert cdn.requests == []
    assert asked == [CDN]


@pytest.mark.usefixtures("public_loopback")
async def test_an_authority_that_is_not_trusted_is_reported_with_what_to_set(
    store: Store, clip: bytes, names: Callable[..., Names], tmp_path: Path
) -> None:
    names(cdn_example=[["127.0.0.2"]])
    unknown = tls(Authority(tmp_path, "nobody knows it"), CDN)
    async with WebServer([whole(clip)], host="127.0.0.2", tls=unknown) as cdn, Fetcher(GATEWAY) as fetcher:
        problem = await failure(store, fetcher, f"https://{CDN}:{port_of(cdn.url)}/clip.mp4")
    assert "SSL_CERT_FILE" in problem.attempts[0][1]


@pytest.mark.parametrize(
    "address", ["168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254", "64:ff9b:1::1"]
)
def test_the_clouds_own_metadata_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert not is_public(f"::ffff:{address}") if ":" not in address else True


# --- By a proxy -----------------------------------------------------------------------------------------------------


async def test_downloads_go_by_the_proxy_and_trust_the_private_authority(
    store: Store,
    clip: bytes,
    names: Callable[..., Names],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that a machine has which reaches the world by its company's proxy only: no name server, no route."""
    names(cdn_example=NOT_HERE)
    async with (
        WebServer([whole(clip)], tls=tls(authority, CDN)) as cdn,
        Proxy({f"{CDN}:443": at(cdn)}) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with Fetcher(GATEWAY) as fetcher:
            receipt = await bring(store, fetcher, f"https://{CDN}/clip.mp4?Signature=secret")
    assert is_whole(receipt, clip)
    assert proxy.asked == [f"CONNECT {CDN}:443"]


async def test_plain_downloads_go_by_their_proxy_with_its_password(
    store: Store, clip: bytes, names: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    names(cdn_example=NOT_HERE)
    async with (
        WebServer([whole(clip)]) as cdn,
        Proxy({f"{CDN}:80": at(cdn)}, credentials="Basic bWU6cHc=") as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", "http://me:pw@"))
        async with Fetcher(GATEWAY) as fetcher:
            receipt = await bring(store, fetcher, f"http://{CDN}/clip.mp4")
    assert is_whole(receipt, clip)
    assert proxy.asked == [f"GET http://{CDN}/clip.mp4"]


@pytest.mark.usefixtures("public_loopback")
async def test_hosts_that_need_no_proxy_are_reached_without_one(
    store: Store, clip: bytes, names: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    names(cdn_example=[["127.0.0.2"]])
    async with Proxy({}) as proxy, WebServer([whole(clip)], host="127.0.0.2") as cdn:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", f"inside.example,{CDN}")
        async with Fetcher(GATEWAY) as fetcher:
            assert is_whole(await bring(store, fetcher, f"http://{CDN}:{port_of(cdn.url)}/clip.mp4"), clip)
    assert proxy.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "2130706433",
        "0x7f.1",
        "127.1",
        "017700000001",
        "169.254.169.254",
        "168.63.129.16",
        "localhost",
        "localhost.",
        "api.localhost",
        "metadata",
        "metadata.google.internal",
        "printer.local",
        "inner.example",
    ],
)
@pytest.mark.parametrize("redirected", [False, True])
async def test_a_proxy_is_not_asked_for_names_of_an_inner_network(
    store: Store, names: Callable[..., Names], monkeypatch: pytest.MonkeyPatch, host: str, *, redirected: bool
) -> None:
    names(cdn_example=NOT_HERE, inner_example=[["10.0.0.7"]])
    moved = answer("302 Found", Location=f"http://{host}/x")
    async with WebServer([moved]) as cdn, Proxy({f"{CDN}:80": at(cdn)}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with Fetcher(GATEWAY) as fetcher:
            problem = await failure(store, fetcher, f"http://{CDN}/" if redirected else f"http://{host}/x")
    assert proxy.asked == ([f"GET http://{CDN}/"] if redirected else [])
    assert "LONGTAKE_ALLOW_PRIVATE_ADDRESSES" in problem.attempts[0][1]


async def test_a_proxy_that_refuses_is_named(
    store: Store, names: Callable[..., Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    names(cdn_example=NOT_HERE)
    async with Proxy({}, refusal="403 Blocked by policy") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with Fetcher(GATEWAY) as fetcher:
            problem = await failure(store, fetcher, f"https://{CDN}/clip.mp4")
    assert "403" in problem.attempts[0][1]
    assert "HTTPS_PROXY" in problem.attempts[0][1]


async def test_no_netrc_is_read(store: Store, clip: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password pw\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with WebServer([whole(clip)]) as web, Fetcher(GATEWAY, allow_private_addresses=True) as fetcher:
        await bring(store, fetcher, web.url)
    assert "authorization" not in web.requests[0].headers


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": "proxy:3128", "ALL_PROXY": "http://all:1"},
        {"http_proxy": "http://lower:1", "no_proxy": "a.example, .b.example,,localhost"},
        {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.1,10.0.0.0/8,::1,fd00::/8,https://c.example:8443"},
        {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.example,*"},
    ],
)
def test_the_environment_is_read_as_by_the_client_that_pays(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from httpx._utils import get_environment_proxies  # noqa: PLC0415 - what the paying client uses

    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert environment_proxies() == get_environment_proxies()


# --- Before anything is paid ----------------------------------------------------------------------------------------


async def test_the_free_check_goes_the_way_of_downloads(
    names: Callable[..., Names], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(gateway_example=NOT_HERE)
    async with (
        WebServer([answer("404 Not Found")], tls=tls(authority, "gateway.example")) as gateway,
        Proxy({"gateway.example:443": at(gateway)}) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with Fetcher("https://gateway.example/v1", lambda: "sk-secret") as fetcher:
            await fetcher.preflight()
            await fetcher.preflight()
    assert proxy.asked == ["CONNECT gateway.example:443"], "a good answer is remembered"
    assert "authorization" not in gateway.requests[0].headers


async def test_the_free_check_names_what_to_set(
    names: Callable[..., Names], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names(gateway_example=NOT_HERE)
    unknown = tls(Authority(tmp_path, "nobody knows it"), "127.0.0.1")
    async with WebServer([answer("200 OK")], tls=unknown) as gateway, Fetcher(f"https://{at(gateway)}") as fetcher:
        with pytest.raises(DownloadsBlocked, match="SSL_CERT_FILE"):
            await fetcher.preflight()
    async with Fetcher("https://gateway.example") as fetcher:
        with pytest.raises(DownloadsBlocked, match="HTTPS_PROXY"):
            await fetcher.preflight()
    async with Proxy({}, credentials="Basic x") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with Fetcher("http://gateway.example") as fetcher:
            with pytest.raises(DownloadsBlocked, match="HTTP_PROXY"):
                await fetcher.preflight()


async def test_a_gateway_that_is_reached_and_does_not_answer_well_proves_nothing() -> None:
    async def hang_up(_: Request, reply: Reply) -> None:
        reply.reset()

    for reply in (hang_up, answer("301 Moved", Location="htts:p//other.example/")):
        async with WebServer([reply]) as gateway, Fetcher(gateway.url) as fetcher:
            await fetcher.preflight()
