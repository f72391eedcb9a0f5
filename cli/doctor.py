"""The command `doctor`: checks everything against the live parts and says what to do for each finding."""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cli.embedded import EmbeddedProblem, embedded_server
from cli.exits import CommandProblem, Exit, print_json
from cli.generations import load_settings
from cli.session import connect_when_healthy
from longtake.catalog import MODELS
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import AnswerUnreadable, GatewayError, KeyRefused
from longtake.keyring import KeyRing
from longtake.settings import Settings, SettingsProblem
from longtake.storage import Store, StoreProblem
from longtake.temporal import TemporalProblem, connect, is_configured, missing_search_attributes, target

_SUCCESS = 200


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    part: str
    good: bool
    what: str
    to_do: str = ""
    unreachable: bool = False
    """Whether Temporal or the gateway cannot be reached: exit code 4."""


async def run(data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run all checks; a check that fails does not keep the others from running."""
    try:
        settings = load_settings(data_dir)
    except CommandProblem as problem:
        findings = [Finding("settings", good=False, what=problem.message, to_do="Mend these variables first.")]
    else:
        checks: list[Callable[[Settings], Awaitable[Finding]]] = [_settings, _temporal, _gateway, _store]
        findings = [await check(settings) for check in checks]
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            sys.stdout.write(f"{'ok  ' if finding.good else 'FAIL'}  {finding.part}: {finding.what}\n")
            if finding.to_do:
                sys.stdout.write(f"      to do: {finding.to_do}\n")
    if all(finding.good for finding in findings):
        return Exit.DELIVERED
    return Exit.UNREACHABLE if any(finding.unreachable for finding in findings) else Exit.FAILED


async def _settings(settings: Settings) -> Finding:
    try:
        settings.require_gateway()
    except SettingsProblem as error:
        return Finding("settings", good=False, what=str(error), to_do="See the table of settings in the README.")
    key = KeyRing(settings.encryption_keys).current
    encryption = f"encrypted with the key {key!r}" if key else "not encrypted"
    what = f"read; data folder {settings.data_dir}; what Temporal stores is {encryption}"
    return Finding("settings", good=True, what=what)


async def _temporal(settings: Settings) -> Finding:
    try:
        if not is_configured():
            with embedded_server(settings.data_dir, binary=settings.temporal_binary) as server:
                await connect_when_healthy(server.address)
            return Finding("Temporal", good=True, what="the embedded server starts (no TEMPORAL_ADDRESS is set)")
        where = target()
        missing = await missing_search_attributes(await connect())
    except (TemporalProblem, EmbeddedProblem) as error:
        return Finding("Temporal", good=False, what=str(error), unreachable=True)
    if missing:
        what = f"{where.address} lacks the search attributes {', '.join(missing)}"
        return Finding("Temporal", good=False, what=what, to_do="Run `python starter.py setup` once.")
    return Finding(
        "Temporal", good=True, what=f"{where.address}, namespace {where.namespace}, search attributes are there"
    )


async def _gateway(settings: Settings) -> Finding:
    """A free request or two with each key."""
    part = "gateway"
    try:
        base_url, keys = settings.require_gateway()
        async with GatewayClient(base_url=base_url, api_keys=keys) as gateway:
            await gateway.check_key()
            offered = await gateway.list_models()
    except (SettingsProblem, ValueError) as error:
        return Finding(part, good=False, what=str(error))
    except GatewayError as error:
        return _gateway_trouble(part, error)
    missing = [name for name in MODELS if name not in offered]
    note = f"the key may not use {', '.join(missing)}" if missing else f"all {len(MODELS)} models are there"
    return Finding(part, good=True, what=f"{gateway.origin} takes the key; {note}")


def _gateway_trouble(part: str, error: GatewayError) -> Finding:
    if isinstance(error, KeyRefused):
        return Finding(part, good=False, what=str(error), to_do="Mend LONGTAKE_GATEWAY_API_KEY or top up the account.")
    if isinstance(error, AnswerUnreadable) and error.status != _SUCCESS:
        return Finding(part, good=True, what=f"it answers; its list of models is closed (HTTP {error.status})")
    to_do = "Mend LONGTAKE_GATEWAY_URL, or try again later."
    return Finding(part, good=False, what=str(error), to_do=to_do, unreachable=True)


async def _store(settings: Settings) -> Finding:
    try:
        await Store.open(settings.store_location).probe()
    except StoreProblem as error:
        return Finding("store", good=False, what=str(error))
    return Finding("store", good=True, what=f"{settings.store_location} can be written and honours create-if-absent")
