"""Runs the checks of the two tables below, side by side, each within `LIMIT_SECONDS`, and prints their findings."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from cli.doctor import parts as check_parts
from cli.doctor import temporal as check_temporal
from cli.doctor.findings import Finding, Findings, Level, Site, TemporalSite, problem, warning
from cli.embedded import START_SECONDS, EmbeddedProblem
from cli.output import Exit, print_json, write
from cli.session import connect_when_healthy, load_settings, server_of
from longtake.settings import SettingsProblem
from longtake.storage import StoreProblem
from longtake.temporal.connection import TemporalProblem, connect, is_configured

LIMIT_SECONDS = 20

_S = TypeVar("_S", bound=Site)
_Check = Callable[[_S], Findings]

PARTS: Mapping[str, _Check[Site]] = {
    "settings": check_parts.settings,
    "store": check_parts.store,
    "ledger": check_parts.ledger,
    "disk": check_parts.disk,
    "permissions": check_parts.permissions,
    "gateway": check_parts.gateway,
    "downloads": check_parts.downloads,
    "gateway's clock": check_parts.clock,
    "account records": check_parts.account_records,
    "extensions": check_parts.extension,
    "encryption": check_parts.encryption,
    "metrics": check_parts.metrics,
    "traces": check_parts.traces,
}
TEMPORAL: Mapping[str, _Check[TemporalSite]] = {
    "Temporal": check_temporal.connection,
    "search attributes": check_temporal.search_attributes,
    "workers": check_temporal.workers,
    "versions": check_temporal.versions,
    "Temporal's clock": check_temporal.clock,
    "generations": check_temporal.running_generations,
    "namespace's ledger": check_temporal.namespace_ledger,
    "ledger and generations": check_temporal.ledger_and_keys,
    "lost videos": check_temporal.lost_videos,
}


async def run(data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run `doctor`.

    Returns:
        0 if no finding is a problem, 4 if Temporal or the gateway cannot be reached, else 1.
    """
    try:
        site = Site(load_settings(data_dir), distributed=is_configured())
    except (SettingsProblem, TemporalProblem) as error:
        findings = [dataclasses.replace(problem(str(error), "Fix this first."), check="settings")]
    else:
        async with AsyncExitStack() as stack:
            parts = [_findings(name, check, site) for name, check in PARTS.items()]
            found = await asyncio.gather(*parts, _temporal(site, stack))
        findings = [finding for group in found for finding in group]
    if as_json:
        print_json([finding.document() for finding in findings])
    else:
        _write(findings)
    problems = [finding for finding in findings if finding.level is Level.PROBLEM]
    if not problems:
        return Exit.DELIVERED
    return Exit.UNREACHABLE if any(finding.unreachable for finding in problems) else Exit.FAILED


async def _temporal(site: Site, stack: AsyncExitStack) -> list[Finding]:
    """Connect once, then run all checks that need the connection."""
    first, *others = TEMPORAL
    try:
        client = await _connect(site, stack)
    except (TemporalProblem, EmbeddedProblem) as error:
        advice = "Fix the connection: without Temporal, no generation makes progress."
        failed = problem(str(error), advice, unreachable=True)
    except SettingsProblem as error:  # what the connection also needs, such as the packages for traces
        failed = problem(str(error), "Fix this first.")
    except TimeoutError:
        failed = problem(
            f"no answer within {LIMIT_SECONDS} s", "Fix TEMPORAL_ADDRESS or the network.", unreachable=True
        )
    else:
        connected = TemporalSite(site.settings, site.distributed, client)
        found = await asyncio.gather(*(_findings(name, check, connected) for name, check in TEMPORAL.items()))
        return [finding for group in found for finding in group]
    unchecked = warning("not checked: Temporal cannot be reached", "Fix the connection first.")
    return [
        dataclasses.replace(failed, check=first),
        *(dataclasses.replace(unchecked, check=name) for name in others),
    ]


async def _connect(site: Site, stack: AsyncExitStack) -> Client:
    """The configured Temporal, or the embedded one, which then runs as long as the stack."""
    if site.distributed:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await connect()
    async with asyncio.timeout(2 * START_SECONDS):  # a server takes longer to start than to answer
        server = await asyncio.to_thread(stack.enter_context, server_of(site.settings))
        return await connect_when_healthy(server.address)


async def _findings(name: str, check: _Check[_S], site: _S) -> list[Finding]:
    """The findings of one check, within its time limit."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            async for finding in check(site):
                found.append(finding)  # noqa: PERF401 - what was found before a timeout is kept
    except TimeoutError:
        found.append(problem(f"no answer within {LIMIT_SECONDS} s", "Check the network and try again."))
    except (StoreProblem, TemporalProblem) as error:
        found.append(problem(str(error), "Fix this first."))
    except RPCError as error:
        # Our queries are only invalid if a search attribute in them is missing.
        missing = error.status is RPCStatusCode.INVALID_ARGUMENT
        advice = (
            "Register the search attributes first." if missing else "Check that this connection has the permission."
        )
        found.append(problem(f"Temporal rejects the request: {error.message}", advice))
    except Exception as error:  # noqa: BLE001 - one failed check must not stop the others
        # The message may contain a secret; the type's name does not.
        found.append(problem(f"check failed: {type(error).__name__}", "This is a bug in longtake: report it."))
    return [dataclasses.replace(finding, check=name) for finding in found]


def _write(findings: list[Finding]) -> None:
    for finding in findings:
        advice = f" -> {finding.advice}" if finding.advice else ""
        write(f"{finding.level:7}  {finding.check}: {finding.message}{advice}")
    counts = Counter(finding.level for finding in findings)
    write(", ".join(f"{counts[level]} {level}" for level in Level))
