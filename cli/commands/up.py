"""The command `up`: everything embedded, in the foreground."""

import asyncio
from pathlib import Path

from cli.commands.generate import show_ledger
from cli.output import CommandProblem, Exit, say
from cli.session import load_settings, open_session, open_store
from longtake.temporal.connection import is_configured


async def up(data_dir: Path | None) -> Exit:
    """Run `up` until Ctrl-C."""
    settings = load_settings(data_dir)
    if is_configured():
        message = "`up` runs the embedded server, but TEMPORAL_ADDRESS or a profile is set: run `python worker.py`"
        raise CommandProblem(Exit.USAGE, "InvalidRequest", message)
    settings.require_gateway()
    store = open_store(settings)
    async with open_session(settings, worker=True, store=store) as session:
        say(f"Temporal {session.address}, UI {session.ui_url}")
        await show_ledger(settings, store)
        say(f"other clients: TEMPORAL_ADDRESS={session.address}. Press Ctrl-C to drain and stop.")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            say("draining")
    return Exit.DELIVERED
