"""The checks of `doctor` that need no Temporal."""

import asyncio
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from pydantic import SecretStr
from temporalio.api.common.v1 import Payload, Payloads

from cli.addresses import is_loopback, local_address
from cli.doctor.findings import Finding, Findings, Site, ok, problem, warning
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

_QUICK = timedelta(seconds=10)
"""For one response: a person is waiting, perhaps at a busy machine."""
_SUCCESS = 200
_MEBIBYTE = 2**20
_MIN_FREE_BYTES = 256 * _MEBIBYTE
"""With less, the next video of ordinary size may not fit."""
_CLOCK_OFF = timedelta(seconds=10)
"""More than a `Date` in whole seconds and a slow response explain."""
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OTLP_DEFAULT = "http://localhost:4318"
"""The default of the OpenTelemetry specification."""
_PORTS = {"http": 80, "https": 443}


async def settings(site: Site) -> Findings:
    """Whether the required variables are set, and no variable is risky."""
    given = site.settings
    try:
        given.require_gateway()
        yield ok(f"valid; data folder {given.data_dir}")
    except SettingsProblem as error:
        if site.distributed and not (given.gateway_url or given.gateway_api_key):
            yield warning("no gateway is set: this machine is only a client", "Set it on machines with workers.")
        else:
            yield problem(str(error), "Set it; docs/configuration.md lists all settings.")
    if site.distributed and not given.store_url:
        yield warning(
            f"LONGTAKE_STORE_URL is not set: this machine has its own store and ledger, {given.store_location}",
            "Set the same store for all workers and clients: a worker with its own ledger can pay twice.",
        )
    if (given.console_token is None) != (given.console_user is None):
        yield problem("only one of LONGTAKE_CONSOLE_TOKEN and LONGTAKE_CONSOLE_USER is set", "Set both, or neither.")
    if needless := await needless_private_addresses(given):
        yield warning(needless, "Unset it. Only a gateway inside your network, or the simulator, needs it.")


async def store(site: Site) -> Findings:
    """Whether the store is writable, and can hold the ledger."""
    location = site.settings.store_location
    try:
        await Store.open(location).probe()
    except StoreProblem as error:
        yield problem(str(error), "Fix the store: workers submit nothing without it.")
    else:
        yield ok(f"{location} is writable and supports create-if-absent")


async def ledger(site: Site) -> Findings:
    """Which ledger the store holds."""
    there = Store.open(site.settings.store_location)
    if await there.head(LEDGER_IDENTITY) is None:
        yield ok("none yet: `starter.py setup` or the first worker creates it")
        return
    try:
        identity = await SubmissionLedger(there, longest_exchange=site.settings.submit_timeout).identity()
    except LedgerError as error:
        yield problem(str(error), "Restore the store from a backup: workers submit nothing without its ledger.")
    else:
        yield ok(f"{identity}; it must be the same on every machine with workers")


def _folders(site: Site) -> list[Path]:
    """The local folders of the store and the embedded server."""
    folders = [] if site.distributed else [site.settings.data_dir]
    location = urlsplit(site.settings.store_location)
    if location.scheme in {"", "file"}:
        folders.append(Path(unquote(location.path)))
    return folders


async def permissions(site: Site) -> Findings:
    """Whether other users of this machine can read the local folders."""
    folders = _folders(site)
    for folder in filter(Path.exists, folders):
        # Below a folder that others cannot enter, modes do not matter.
        if all(path.stat().st_mode & OTHERS for path in (folder, *folder.parents)):
            yield warning(
                f"other users of this machine can read {folder}, which contains videos and signed links",
                f"Run `chmod o= {folder}` (docs/access.md says how to share it with a group).",
            )
        else:
            yield ok(f"other users of this machine cannot enter {folder}")


async def disk(site: Site) -> Findings:
    """Whether the next videos fit on the disks of the local folders."""
    folders = _folders(site)
    location = urlsplit(site.settings.store_location)
    for folder in folders:
        there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        free = shutil.disk_usage(there).free
        what = f"{free // _MEBIBYTE:,} MiB are free for {folder}"
        largest = site.settings.max_video_mebibytes * _MEBIBYTE
        if free < _MIN_FREE_BYTES:
            yield problem(what, "Free some space: paid videos cannot be stored. Never delete anything in submit/.")
        elif free < largest:
            yield warning(f"{what}, less than LONGTAKE_MAX_VIDEO_MEBIBYTES", "Free some space, or use a larger disk.")
        else:
            yield ok(what)
    if not folders:
        yield ok(f"the store is remote ({location.scheme}://)")


async def gateway(site: Site) -> Findings:
    """Send a free request with each key."""
    if not (site.settings.gateway_url and site.settings.gateway_api_key):
        return
    url, keys = site.settings.require_gateway()
    for place, key in enumerate(keys, 1):
        named = f"key {place} of {len(keys)}" if len(keys) > 1 else "the key"
        role = " (submits)" if place == 1 and len(keys) > 1 else ""
        finding = await _try_key(url, key, named + role, "LONGTAKE_GATEWAY")
        yield finding
        if finding.unreachable:
            return  # the other keys would not reach it either
    if urlsplit(url).scheme == "http" and not is_loopback(urlsplit(url).hostname or ""):
        yield warning("LONGTAKE_GATEWAY_URL is http://: the network can read the API key", "Use https://.")


async def downloads(site: Site) -> Findings:
    """Whether downloads reach the network: they use the same proxies and CA certificates as submissions."""
    given = site.settings
    try:
        urls = [url for url in (given.gateway_url, given.extend_url) if url]
        for url in urls:
            async with Fetcher(url) as fetcher:
                await fetcher.preflight()
    except DownloadsBlocked as error:
        yield problem(str(error), "Set it for the workers: they submit nothing that they could not download.")
    except (ValueError, ImportError, OSError) as error:
        # httpx rejects a URL, a proxy or a file of CA certificates
        yield problem(f"not tried: {error}", "Fix the gateway's URL, HTTPS_PROXY, SSL_CERT_FILE or SSL_CERT_DIR.")
    else:
        if urls:
            proxies = {proxy for proxy in environment_proxies().values() if proxy}
            yield ok("a connection is possible" + (", through the proxy where one applies" if proxies else ""))


async def extension(site: Site) -> Findings:
    """Send a free request to the gateway that retries extensions, if one is set."""
    given = site.settings
    if not given.extend_url:
        yield ok("LONGTAKE_EXTEND_URL is not set: failed extensions are not retried")
        return
    key = given.extend_api_key or next(iter(given.gateway_api_key), SecretStr(""))
    try:
        client = ExtensionClient(
            base_url=given.extend_url, api_key=key, path=given.extend_path, model=given.extend_model
        )
        await client.aclose()
    except ValueError as error:
        yield problem(str(error), "Fix that setting.")
        return
    yield await _try_key(given.extend_url, key, "the key", "LONGTAKE_EXTEND")


async def account_records(site: Site) -> Findings:
    """Whether task list and usage log can be read, which resolve a submission whose response was lost."""
    given = site.settings
    if not (given.gateway_url and given.gateway_api_key):
        return
    console = None
    if given.console_token and given.console_user:
        console = ConsoleAccess(given.console_token, given.console_user)
    else:
        yield ok("LONGTAKE_CONSOLE_TOKEN is not set: a submission in doubt always waits for a person")
    now = datetime.now(UTC)
    async with AccountClient(base_url=given.gateway_url, api_key=given.gateway_api_key[0], console=console) as client:
        account = await client.ask(model=next(iter(MODELS)), since=now - timedelta(minutes=1), until=now)
    tasks, log = account.notes
    if console is not None and account.tasks is not None:
        yield ok(tasks)
    elif console is not None and account.retry_after:
        yield warning(tasks, "Try again later.")
    elif console is not None:
        yield problem(tasks, "Create a new LONGTAKE_CONSOLE_TOKEN in the gateway's console, for LONGTAKE_CONSOLE_USER.")
    if account.charges is None:
        yield warning(log, "Ignore this if the gateway offers no usage log: a person then checks unknown charges.")
    else:
        yield ok(log)


async def clock(site: Site) -> Findings:
    """Whether this machine's clock agrees with the gateway's: the account's records are matched by time."""
    if not (site.settings.gateway_url and site.settings.gateway_api_key):
        return
    url, keys = site.settings.require_gateway()
    async with GatewayClient(base_url=url, api_keys=keys[:1], query_timeout=_QUICK) as client:
        began = datetime.now(UTC)
        try:
            date = (await client.get_once("/v1/models", headers={})).headers.get("date", "")
        except GatewayError:
            yield warning("not checked: the gateway does not answer", "Fix the gateway first.")
            return
        middle = began + (datetime.now(UTC) - began) / 2
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        yield ok("the gateway sends no Date header")
        return
    if theirs.tzinfo is None:  # RFC 5322's "-0000"
        theirs = theirs.replace(tzinfo=UTC)
    yield judge_clock("the gateway", theirs - middle)


def judge_clock(whose: str, ahead: timedelta) -> Finding:
    """Judge the difference of two clocks.

    Args:
        whose: Whose clock the other one is.
        ahead: By how much the other clock is ahead of this machine's.
    """
    seconds = abs(ahead.total_seconds())
    direction = "ahead of" if ahead > timedelta(0) else "behind"
    advice = "Synchronize this machine's clock (NTP): the account's records are matched by time."
    if abs(ahead) > CLOCK_SKEW:
        allowed = f"more than the tolerated {CLOCK_SKEW.total_seconds():.0f} s"
        return problem(f"{whose} is {seconds:.0f} s {direction} this machine, {allowed}", advice)
    if abs(ahead) > _CLOCK_OFF:
        return warning(f"{whose} is {seconds:.0f} s {direction} this machine", advice)
    return ok(f"{whose} and this machine agree within {_CLOCK_OFF.total_seconds():.0f} s")


async def encryption(site: Site) -> Findings:
    """Whether every encryption key works, and the codec server has the same keys."""
    given = site.settings
    if not given.encryption_keys:
        yield ok("LONGTAKE_ENCRYPTION_KEYS is not set: Temporal stores prompts and results unencrypted")
        return
    plain = Payload(metadata={"encoding": b"json/plain"}, data=b'"longtake doctor"')
    sealed = {key.id: (await EncryptionCodec(KeyRing([key])).encode([plain]))[0] for key in given.encryption_keys}
    try:
        await EncryptionCodec(KeyRing(given.encryption_keys)).decode(list(sealed.values()))
    except PayloadUnreadable as error:
        yield problem(str(error), "Fix LONGTAKE_ENCRYPTION_KEYS.")
        return
    first, *others = sealed
    also = f"; {', '.join(map(repr, others))} only decrypt" if others else ""
    yield ok(f"on: the key {first!r} encrypts{also}")
    if given.codec_server:
        yield await _ask_codec_server(f"http://{local_address(given.codec_server)}", given.codec_token, plain, sealed)


async def _ask_codec_server(url: str, token: SecretStr | None, plain: Payload, sealed: dict[str, Payload]) -> Finding:
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    body = MessageToDict(Payloads(payloads=sealed.values()))
    try:
        async with httpx.AsyncClient(timeout=_QUICK.total_seconds(), trust_env=False) as client:
            answer = await client.post(f"{url}/decode", json=body, headers=headers)
    except httpx.HTTPError:
        advice = "Start `starter.py codec-server`, if it should run on this machine."
        return warning(f"no codec server answers at {url}: the UI shows ciphertext", advice)
    if answer.status_code != _SUCCESS:
        advice = "Restart the codec server with the keys and the token of this environment."
        return problem(f"the codec server at {url} answers HTTP {answer.status_code}: {answer.text[:200]}", advice)
    try:
        opened = list(ParseDict(answer.json(), Payloads()).payloads)
    except (ParseError, ValueError, AttributeError):
        opened = []
    if opened != [plain] * len(sealed):
        return problem(f"{url} is not a codec server with these keys", "Fix LONGTAKE_CODEC_SERVER.")
    return ok(f"the codec server at {url} decrypts payloads of every key")


async def metrics(site: Site) -> Findings:
    """Whether a worker on this machine serves metrics."""
    address = site.settings.metrics_address
    if not address:
        yield ok("LONGTAKE_METRICS_ADDRESS is not set: workers serve no metrics")
        return
    if not site.distributed:
        yield ok("embedded workers serve no metrics")
        return
    url = f"http://{local_address(address)}/metrics"
    try:
        async with httpx.AsyncClient(timeout=_QUICK.total_seconds(), trust_env=False) as client:
            answer = await client.get(url)
    except httpx.HTTPError:
        yield warning(
            f"nothing answers at {url}", "Ignore this if no worker runs on this machine; otherwise restart the worker."
        )
        return
    if "longtake_" in answer.text:
        yield ok(f"a worker serves metrics at {url}")
    else:
        yield problem(f"{url} is not a longtake worker", "Set LONGTAKE_METRICS_ADDRESS to an unused port.")


async def traces(_site: Site) -> Findings:
    """Whether the OpenTelemetry collector accepts connections."""
    endpoint = _collector(os.environ)
    if not endpoint:
        yield ok("OTEL_EXPORTER_OTLP_ENDPOINT is not set, or traces are switched off: no spans are sent")
        return
    try:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 4317)
    except ValueError:
        host, port = "", 0
    if not host:
        yield problem("OTEL_EXPORTER_OTLP_ENDPOINT is not a URL", "Set it to a URL such as http://collector:4318.")
        return
    try:
        async with asyncio.timeout(_QUICK.total_seconds()):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (OSError, TimeoutError):
        yield warning(
            f"no collector accepts connections at {host}:{port}: spans are lost, generations are not",
            "Start it, fix OTEL_EXPORTER_OTLP_ENDPOINT, or set OTEL_SDK_DISABLED=true.",
        )
    else:
        yield ok(f"a collector accepts connections at {host}:{port}")


def _collector(environment: Mapping[str, str]) -> str:
    """The OTLP endpoint of the standard OpenTelemetry variables; empty if they send no spans."""
    if "otlp" not in exporter_names(environment):
        return ""
    given = (environment.get(name, "").strip() for name in _OTLP_VARIABLES)
    return next(filter(None, given), _OTLP_DEFAULT)


async def _try_key(url: str, key: SecretStr, named: str, setting: str) -> Finding:
    """List the models with one key, which is free."""
    try:
        async with GatewayClient(base_url=url, api_keys=[key], query_timeout=_QUICK) as client:
            accepted = f"{client.origin} accepts {named}"
            try:
                offered = await client.list_models()
            except InvalidResponse as error:
                if error.status == _SUCCESS:
                    raise  # a web page
                await Preflight(client).ask_for_a_task()  # raises if it is not a gateway
                return ok(f"{accepted}; its list of models is closed (HTTP {error.status})")
    except (GatewayError, ValueError) as error:
        return _failing(error, named, setting)
    missing = [name for name in MODELS if name not in offered]
    if setting != "LONGTAKE_GATEWAY":
        return ok(accepted)
    if missing:
        return warning(f"{accepted}, but not for {', '.join(missing)}", "Ignore this if you do not use them.")
    return ok(f"{accepted}; all {len(MODELS)} models are available")


def _failing(error: GatewayError | ValueError, named: str, setting: str) -> Finding:
    """Why the models cannot be listed, with the names of the settings in question."""
    message = str(error).replace("LONGTAKE_GATEWAY", setting)
    fix_key = f"Fix {setting}_API_KEY, or top up the account."
    match error:
        case KeyRefused(status=403, code=None):
            advice = f"Ignore this if the gateway keeps its list of models closed. Otherwise: {fix_key}"
            return warning(f"{named}: {message}", advice)
        case QuotaExhausted():
            return problem(f"{named}: {message}", "Top up the account, or raise the key's quota.")
        case KeyRefused():
            return problem(f"{named}: {message}", fix_key)
        case GatewayBusy():
            return warning(f"{named}: {message}", "Try again later.")
        case GatewayError():
            return problem(message, f"Fix {setting}_URL, or try again later.", unreachable=True)
        case _:
            return problem(message, "Fix that setting.")
