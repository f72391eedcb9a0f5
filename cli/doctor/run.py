"""The command `doctor`: checks everything against the live parts and says what to do for each finding.

One small function for each check, in the two tables below. They run side by side, each within `LIMIT_SECONDS`; one that
fails keeps no other from running. Nothing is paid, and nothing is written but the probe of the store.
"""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from cli.commands.generations import load_settings
from cli.doctor import parts as check_parts
from cli.doctor import temporal as check_temporal
from cli.doctor.findings import Finding, Level, Site, TemporalSite, problem, warning
from cli.embedded import START_SECONDS, EmbeddedProblem, embedded_server
from cli.output import CommandProblem, Exit, print_json, write
from cli.session import connect_when_healthy
from longtake.settings import Settings, SettingsProblem
from longtake.storage import StoreProblem
from longtake.temporal.connection import TemporalProblem, connect, is_configured

LIMIT_SECONDS = 20

_S = TypeVar("_S", bound=Site)
_Check = Callable[[_S], AsyncIterator[Finding]]

PARTS: Mapping[str, _Check[Site]] = {
    "settings": check_parts.settings,
    "store": check_parts.store,
    "ledger": check_parts.ledger,
    "disk": check_parts.disk,
    "permissions": check_parts.permissions,
    "gateway": check_parts.gateway,
    "downloads": check_parts.downloads,
    "gateway's clock": check_parts.clock,
    "witnesses": check_parts.account_client,
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
    "generations": check_temporal.open_generations,
    "namespace's ledger": check_temporal.namespace_ledger,
    "ledger and generations": check_temporal.ledger_and_keys,
    "forgotten videos": check_temporal.forgotten,
}


async def run(data_dir: Path | None, *, as_json: bool) -> Exit:
    """Run all checks.

    Returns:
        0 where nothing is a problem, 4 where Temporal or the gateway cannot be reached, else 1.
    """
    try:
        settings = load_settings(data_dir)
        site = Site(settings, distributed=is_configured())
    except (CommandProblem, TemporalProblem) as error:
        findings = [dataclasses.replace(problem(str(error), "Mend this first."), part="settings")]
    else:
        async with AsyncExitStack() as stack:
            parts = [_findings(part, check, site) for part, check in PARTS.items()]
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
    """Connect once, then all checks that need it."""
    first, *others = TEMPORAL
    try:
        client = await _connect(site, stack)
    except (TemporalProblem, EmbeddedProblem) as error:
        lost = problem(str(error), "Mend the connection: generations stand still without Temporal.", unreachable=True)
    except SettingsProblem as error:  # what the connection needs besides, such as the packages of traces
        lost = problem(str(error), "Mend this first.")
    except TimeoutError:
        lost = problem(f"no answer within {LIMIT_SECONDS} s", "Mend TEMPORAL_ADDRESS or the network.", unreachable=True)
    else:
        here = TemporalSite(site.settings, site.distributed, client)
        found = await asyncio.gather(*(_findings(part, check, here) for part, check in TEMPORAL.items()))
        return [finding for group in found for finding in group]
    unchecked = warning("not checked: Temporal cannot be reached", "Mend the connection first.")
    return [
        dataclasses.replace(lost, part=first),
        *(dataclasses.replace(unchecked, part=part) for part in others),
    ]


async def _connect(site: Site, stack: AsyncExitStack) -> Client:
    """The configured Temporal, or the embedded one, which then runs as long as the stack lives."""
    if site.distributed:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await connect()
    settings: Settings = site.settings
    embedded = embedded_server(
        settings.data_dir,
        binary=settings.temporal_binary,
        sha256=settings.temporal_binary_checksum,
        codec=settings.codec_url,
    )
    async with asyncio.timeout(2 * START_SECONDS):  # it has a limit of its own, and is slower than an answer
        server = await asyncio.to_thread(stack.enter_context, embedded)
        return await connect_when_healthy(server.address)


async def _findings(part: str, check: _Check[_S], site: _S) -> list[Finding]:
    """What one check says within its time."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            async for finding in check(site):
                found.append(finding)  # noqa: PERF401 - what was found before a time-out is kept
    except TimeoutError:
        found.append(problem(f"no answer within {LIMIT_SECONDS} s", "Try again; is the network well?"))
    except (StoreProblem, TemporalProblem) as error:
        found.append(problem(str(error), "Mend this first."))
    except RPCError as error:
        # Our queries are wrong only where an attribute in them is missing.
        lacking = error.status is RPCStatusCode.INVALID_ARGUMENT
        to_do = "Mend the search attributes first." if lacking else "May this connection ask for it?"
        found.append(problem(f"Temporal does not say: {error.message}", to_do))
    except Exception as error:  # noqa: BLE001 - one check must not end the others
        # Its words may hold anything; its name does not.
        found.append(problem(f"cannot be checked: {type(error).__name__}", "A defect in longtake: report it."))
    return [dataclasses.replace(finding, part=part) for finding in found]


def _write(findings: list[Finding]) -> None:
    for finding in findings:
        to_do = f" -> {finding.to_do}" if finding.to_do else ""
        write(f"{finding.level:7}  {finding.part}: {finding.what}{to_do}")
    counts = Counter(finding.level for finding in findings)
    write(", ".join(f"{counts[level]} {level}" for level in Level))
