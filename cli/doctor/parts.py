"""The checks of `doctor` that need no Temporal. Each looks at one part, pays nothing, and says what to do."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from pydantic import SecretStr
from temporalio.api.common.v1 import Payload, Payloads

from cli.doctor.findings import Finding, Site, ok, problem, warning
from longtake.delivery.download import DownloadsBlocked, Fetcher
from longtake.delivery.public_network import environment_proxies, needless_private_addresses
from longtake.gateway.account import AccountClient, ConsoleAccess
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayBusy, GatewayError, InvalidResponse, KeyRefused, QuotaExhausted
from longtake.gateway.extension import ExtensionClient
from longtake.gateway.preflight import Preflight
from longtake.observability.http_tracing import exporter_names
from longtake.private_files import OTHERS
from longtake.request.rules import MODELS
from longtake.settings import SettingsProblem
from longtake.storage import Store, StoreProblem
from longtake.submission.charges import CLOCK_SKEW
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import SubmissionLedger
from longtake.submission.records import IDENTITY as LEDGER_IDENTITY
from longtake.temporal.codec import EncryptionCodec
from longtake.temporal.key_ring import KeyRing, PayloadUnreadable

Findings = AsyncIterator[Finding]

_QUICK = timedelta(seconds=10)
"""For one answer: a person waits, at a machine that may be busy."""
_SUCCESS = 200
_MEBIBYTE = 2**20
_MIN_FREE_BYTES = 256 * _MEBIBYTE
"""Below it the next video of an ordinary size may not fit."""
_CLOCK_OFF = timedelta(seconds=10)
"""More than the whole seconds of a `Date` and a slow answer explain."""
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OTLP_DEFAULT = "http://localhost:4318"
"""The specification's own, for who only names the exporter."""
_PORTS = {"http": 80, "https": 443}


async def settings(site: Site) -> Findings:
    """Whether what the rest needs is set, and nothing is set that bites later."""
    given = site.settings
    try:
        given.require_gateway()
        yield ok(f"read; data folder {given.data_dir}")
    except SettingsProblem as error:
        if site.distributed and not (given.gateway_url or given.gateway_api_key):
            yield warning("no gateway is set: this machine can only be a client", "Set it where workers run.")
        else:
            yield problem(str(error), "See the table of settings in the README.")
    if site.distributed and not given.store_url:
        yield warning(
            f"LONGTAKE_STORE_URL is not set: the store, and the ledger in it, is {given.store_location}",
            "Set one store for all workers and clients: a worker with a store of its own can pay twice.",
        )
    if (given.console_token is None) != (given.console_user is None):
        yield problem("of LONGTAKE_CONSOLE_TOKEN and LONGTAKE_CONSOLE_USER only one is set", "Set both, or neither.")
    if needless := await needless_private_addresses(given):
        yield warning(needless, "Unset it: only a gateway inside your network, or the simulator, needs it.")


async def store(site: Site) -> Findings:
    """Whether it can be written, and can hold the ledger."""
    location = site.settings.store_location
    try:
        await Store.open(location).probe()
    except StoreProblem as error:
        yield problem(str(error), "Mend the store: nothing is submitted without it.")
    else:
        yield ok(f"{location} can be written and honours create-if-absent")


async def ledger(site: Site) -> Findings:
    """Which ledger the store holds."""
    there = Store.open(site.settings.store_location)
    if await there.head(LEDGER_IDENTITY) is None:
        yield ok("none yet: `starter.py setup` or the first worker makes it")
        return
    try:
        identity = await SubmissionLedger(there, longest_exchange=site.settings.submit_timeout).identity()
    except LedgerError as error:
        yield problem(str(error), "Restore the store from a copy: nothing is submitted without its ledger.")
    else:
        yield ok(f"{identity}; on every machine with workers it must be the same")


def _folders(site: Site) -> list[Path]:
    """Where store or embedded server lie on a disk of ours."""
    folders = [] if site.distributed else [site.settings.data_dir]
    location = urlsplit(site.settings.store_location)
    if location.scheme in {"", "file"}:
        folders.append(Path(unquote(location.path)))
    return folders


async def permissions(site: Site) -> Findings:
    """Whether others on this machine can read what lies on its disk."""
    folders = _folders(site)
    for folder in filter(Path.exists, folders):
        # Below a folder that shuts them out, modes do not matter.
        if all(path.stat().st_mode & OTHERS for path in (folder, *folder.parents)):
            yield warning(
                f"everybody on this machine can read {folder}, where videos and signed links lie",
                f"Shut them out: chmod o= {folder} (docs/access.md says how to share it with a group).",
            )
        else:
            yield ok(f"others on this machine cannot enter {folder}")


async def disk(site: Site) -> Findings:
    """Whether the next videos fit, where store or embedded server lie on a disk of ours."""
    folders = _folders(site)
    location = urlsplit(site.settings.store_location)
    for folder in folders:
        there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        free = shutil.disk_usage(there).free
        what = f"{free // _MEBIBYTE:,} MiB are free for {folder}"
        largest = site.settings.max_video_mebibytes * _MEBIBYTE
        if free < _MIN_FREE_BYTES:
            yield problem(what, "Free some: videos that are paid for cannot be stored. Never delete from submit/.")
        elif free < largest:
            yield warning(f"{what}, less than LONGTAKE_MAX_VIDEO_MEBIBYTES", "Free some, or use a larger disk.")
        else:
            yield ok(what)
    if not folders:
        yield ok(f"a store by {location.scheme}:// has no disk of ours")


async def gateway(site: Site) -> Findings:
    """A free request with each key."""
    if not (site.settings.gateway_url and site.settings.gateway_api_key):
        return
    url, keys = site.settings.require_gateway()
    for place, key in enumerate(keys, 1):
        named = f"key {place} of {len(keys)}" if len(keys) > 1 else "the key"
        role = " (pays)" if place == 1 and len(keys) > 1 else ""
        finding = await _poll(url, key, named + role, "LONGTAKE_GATEWAY")
        yield finding
        if finding.unreachable:
            return  # it is the same for every key
    if urlsplit(url).scheme == "http" and not _is_loopback(url):
        yield warning("LONGTAKE_GATEWAY_URL begins with http://: the key can be read on its way", "Use https://.")


async def downloads(site: Site) -> Findings:
    """Whether downloads find a way out: they go by the same proxies, and trust the same authorities, as what pays."""
    given = site.settings
    try:
        urls = [url for url in (given.gateway_url, given.extend_url) if url]
        for url in urls:
            async with Fetcher(url) as fetcher:
                await fetcher.preflight()
    except DownloadsBlocked as error:
        yield problem(str(error), "Set it for the workers: what cannot be downloaded is not ordered.")
    except (ValueError, ImportError, OSError) as error:
        # httpx's words for a URL, a proxy or a file of authorities that it cannot use
        yield problem(f"not tried: {error}", "Mend the gateway's URL, HTTPS_PROXY, SSL_CERT_FILE or SSL_CERT_DIR.")
    else:
        if urls:
            proxies = {proxy for proxy in environment_proxies().values() if proxy}
            yield ok("a connection can be made" + (", where it takes one by the proxy" if proxies else ""))


async def extension(site: Site) -> Findings:
    """The gateway that retries extensions, if there is one: the free request, nothing else can be tried unpaid."""
    given = site.settings
    if not given.extend_url:
        yield ok("LONGTAKE_EXTEND_URL is not set: failed extensions are not paid for again")
        return
    key = given.extend_api_key or next(iter(given.gateway_api_key), SecretStr(""))
    try:
        client = ExtensionClient(
            base_url=given.extend_url, api_key=key, path=given.extend_path, model=given.extend_model
        )
        await client.aclose()
    except ValueError as error:
        yield problem(str(error), "Mend the setting that it names.")
        return
    yield await _poll(given.extend_url, key, "the key", "LONGTAKE_EXTEND")


async def account_client(site: Site) -> Findings:
    """Whether they would be heard if the outcome of a submission were unknown."""
    given = site.settings
    if not (given.gateway_url and given.gateway_api_key):
        return
    console = None
    if given.console_token and given.console_user:
        console = ConsoleAccess(given.console_token, given.console_user)
    else:
        yield ok("LONGTAKE_CONSOLE_TOKEN is not set: a submission of unknown outcome always waits for a person")
    now = datetime.now(UTC)
    async with AccountClient(base_url=given.gateway_url, api_key=given.gateway_api_key[0], console=console) as both:
        said = await both.ask(model=next(iter(MODELS)), since=now - timedelta(minutes=1), until=now)
    tasks, log = said.notes
    if console is not None and said.tasks is not None:
        yield ok(tasks)
    elif console is not None and said.retry_after:
        yield warning(tasks, "Ask again later.")
    elif console is not None:
        yield problem(tasks, "Renew LONGTAKE_CONSOLE_TOKEN in the gateway's console, for LONGTAKE_CONSOLE_USER.")
    if said.charges is None:
        yield warning(log, "Nothing, if the gateway keeps it closed: an unknown charge is then looked up by hand.")
    else:
        yield ok(log)


async def clock(site: Site) -> Findings:
    """Whether this machine's clock agrees with the gateway's: witnesses are asked about minutes."""
    if not (site.settings.gateway_url and site.settings.gateway_api_key):
        return
    url, keys = site.settings.require_gateway()
    async with GatewayClient(base_url=url, api_keys=keys[:1], query_timeout=_QUICK) as client:
        began = datetime.now(UTC)
        try:
            said = (await client.get_once("/v1/models", headers={})).headers.get("date", "")
        except GatewayError:
            yield warning("not checked: the gateway does not answer", "Mend the gateway's check first.")
            return
        middle = began + (datetime.now(UTC) - began) / 2
    try:
        theirs = parsedate_to_datetime(said)
    except ValueError:
        yield ok("it tells no time")
        return
    if theirs.tzinfo is None:  # RFC 5322's "-0000"
        theirs = theirs.replace(tzinfo=UTC)
    yield judge_clock("the gateway", theirs - middle)


def judge_clock(whose: str, ahead: timedelta) -> Finding:
    """What a difference of two clocks means.

    Args:
        whose: The other clock's owner.
        ahead: By how much the other clock is ahead of this machine's.
    """
    seconds = abs(ahead.total_seconds())
    order = "ahead of" if ahead > timedelta(0) else "behind"
    to_do = "Set this machine's clock (NTP): who paid for what is found by the time."
    if abs(ahead) > CLOCK_SKEW:
        allowed = f"more than the {CLOCK_SKEW.total_seconds():.0f} s that evidence allows for"
        return problem(f"{whose} is {seconds:.0f} s {order} this machine, {allowed}", to_do)
    if abs(ahead) > _CLOCK_OFF:
        return warning(f"{whose} is {seconds:.0f} s {order} this machine", to_do)
    return ok(f"{whose} and this machine agree within {_CLOCK_OFF.total_seconds():.0f} s")


async def encryption(site: Site) -> Findings:
    """Whether every key of the ring opens what it has sealed, and the codec server has the same keys."""
    given = site.settings
    if not given.encryption_keys:
        yield ok("LONGTAKE_ENCRYPTION_KEYS is not set: Temporal stores prompts and results readable")
        return
    plain = Payload(metadata={"encoding": b"json/plain"}, data=b'"longtake doctor"')
    sealed = {key.id: (await EncryptionCodec(KeyRing([key])).encode([plain]))[0] for key in given.encryption_keys}
    try:
        await EncryptionCodec(KeyRing(given.encryption_keys)).decode(list(sealed.values()))
    except PayloadUnreadable as error:
        yield problem(str(error), "Mend LONGTAKE_ENCRYPTION_KEYS.")
        return
    first, *others = sealed
    also = f"; {', '.join(map(repr, others))} only decrypt" if others else ""
    yield ok(f"on: the key {first!r} encrypts{also}")
    if given.codec_server:
        yield await _ask_codec_server(f"http://{_here(given.codec_server)}", given.codec_token, plain, sealed)


async def _ask_codec_server(url: str, token: SecretStr | None, plain: Payload, sealed: dict[str, Payload]) -> Finding:
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    body = MessageToDict(Payloads(payloads=sealed.values()))
    try:
        async with httpx.AsyncClient(timeout=_QUICK.total_seconds(), trust_env=False) as client:
            answer = await client.post(f"{url}/decode", json=body, headers=headers)
    except httpx.HTTPError:
        to_do = "Start it with `starter.py codec-server`, if it is to run on this machine."
        return warning(f"no codec server answers at {url}: the UI shows ciphertext", to_do)
    if answer.status_code != _SUCCESS:
        to_do = "Give the codec server the keys and the token of this environment, and start it again."
        return problem(f"the codec server at {url} refuses (HTTP {answer.status_code}): {answer.text[:200]}", to_do)
    try:
        opened = list(ParseDict(answer.json(), Payloads()).payloads)
    except (ParseError, ValueError, AttributeError):
        opened = []
    if opened != [plain] * len(sealed):
        return problem(f"what answers at {url} is no codec server of these keys", "Mend LONGTAKE_CODEC_SERVER.")
    return ok(f"the codec server at {url} opens payloads of every key")


async def metrics(site: Site) -> Findings:
    """Whether they are served, where a worker of this machine is to serve them."""
    address = site.settings.metrics_address
    if not address:
        yield ok("LONGTAKE_METRICS_ADDRESS is not set: none are served")
        return
    if not site.distributed:
        yield ok("embedded workers serve none")
        return
    url = f"http://{_here(address)}/metrics"
    try:
        async with httpx.AsyncClient(timeout=_QUICK.total_seconds(), trust_env=False) as client:
            answer = await client.get(url)
    except httpx.HTTPError:
        yield warning(f"nothing answers at {url}", "Nothing, if no worker runs on this machine; else start it again.")
        return
    if "longtake_" in answer.text:
        yield ok(f"a worker serves them at {url}")
    else:
        yield problem(f"what answers at {url} is no worker of ours", "Give LONGTAKE_METRICS_ADDRESS a port of its own.")


async def traces(_site: Site) -> Findings:
    """Whether the collector of the standard variables takes connections."""
    endpoint = _collector(os.environ)
    if not endpoint:
        yield ok("no OTEL_EXPORTER_OTLP_ENDPOINT is set, or they are switched off: none are sent")
        return
    try:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 4317)
    except ValueError:
        host, port = "", 0
    if not host:
        yield problem("OTEL_EXPORTER_OTLP_ENDPOINT is no address", "Mend it: http://collector:4318.")
        return
    try:
        async with asyncio.timeout(_QUICK.total_seconds()):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (OSError, TimeoutError):
        yield warning(
            f"no collector takes connections at {host}:{port}: spans are lost, generations are not",
            "Start it, mend OTEL_EXPORTER_OTLP_ENDPOINT, or set OTEL_SDK_DISABLED=true.",
        )
    else:
        yield ok(f"a collector takes connections at {host}:{port}")


def _collector(environment: Mapping[str, str]) -> str:
    """Where the standard variables of OpenTelemetry send spans by OTLP; empty where they send none."""
    if "otlp" not in exporter_names(environment):
        return ""
    given = (environment.get(name, "").strip() for name in _OTLP_VARIABLES)
    return next(filter(None, given), _OTLP_DEFAULT)


async def _poll(url: str, key: SecretStr, named: str, setting: str) -> Finding:
    """Ask for the models with one key, which is free."""
    try:
        async with GatewayClient(base_url=url, api_keys=[key], query_timeout=_QUICK) as client:
            taken = f"{client.origin} takes {named}"
            try:
                offered = await client.list_models()
            except InvalidResponse as error:
                if error.status == _SUCCESS:
                    raise  # a web page
                await Preflight(client).ask_for_a_task()  # whether it is a gateway at all
                return ok(f"it answers {named}; its list of models is closed (HTTP {error.status})")
    except (GatewayError, ValueError) as error:
        return _failing(error, named, setting)
    missing = [name for name in MODELS if name not in offered]
    if setting != "LONGTAKE_GATEWAY":
        return ok(taken)
    if missing:
        return warning(f"{taken}, which may not use {', '.join(missing)}", "Nothing, if none is wanted.")
    return ok(f"{taken}; all {len(MODELS)} models are there")


def _failing(error: GatewayError | ValueError, named: str, setting: str) -> Finding:
    """What it means that the models cannot be asked for."""
    said = _naming(error, setting)
    mend_key = f"Mend {setting}_API_KEY, or top up the account."
    match error:
        case KeyRefused(status=403, code=None):
            to_do = f"Nothing, if the gateway keeps its list of models closed. Else: {mend_key}"
            return warning(f"{named}: {said}", to_do)
        case QuotaExhausted():
            return problem(f"{named}: {said}", "Top up the account, or give the key a larger share of it.")
        case KeyRefused():
            return problem(f"{named}: {said}", mend_key)
        case GatewayBusy():
            return warning(f"{named}: {said}", "Ask again later.")
        case GatewayError():
            return problem(said, f"Mend {setting}_URL, or try again later.", unreachable=True)
        case _:
            return problem(said, "Mend the setting that it names.")


def _naming(error: Exception, setting: str) -> str:
    """The error, with the names of the settings that count here."""
    return str(error).replace("LONGTAKE_GATEWAY", setting)


def _here(address: str) -> str:
    """Where this machine reaches what listens on an address: on all of them means on loopback too."""
    host, _, port = address.rpartition(":")
    try:
        unspecified = ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        unspecified = False
    if not unspecified:
        return address
    return f"[::1]:{port}" if host.startswith("[") else f"127.0.0.1:{port}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
