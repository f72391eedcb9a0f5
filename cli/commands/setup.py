"""The command `setup`: search attributes, and which ledger the namespace belongs to."""

from collections.abc import Callable
from pathlib import Path

from cli.output import CommandProblem, Exit, write
from cli.session import Session, load_settings, open_session, open_store
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import is_configured
from longtake.temporal.key_ring import PayloadUnreadable
from longtake.temporal.ledger_registration import begin_anew, claim, registration
from longtake.temporal.search_attributes import register_search_attributes


async def setup(data_dir: Path | None, *, new_ledger: bool, confirm: Callable[[str], bool]) -> Exit:
    """Run `setup`.

    Args:
        data_dir: `--data-dir`.
        new_ledger: Give the namespace to the configured store's ledger, even if it belongs to another one.
        confirm: Asks the user a yes-or-no question.
    """
    settings = load_settings(data_dir)
    if not is_configured() and not new_ledger:
        write("nothing to do: the embedded server registers everything by itself")
        return Exit.DELIVERED
    async with open_session(settings, worker=False) as session:
        added = await register_search_attributes(session.temporal)
        write(f"registered: {', '.join(added)}" if added else "all search attributes are registered already")
        if is_configured() and settings.store_url is None:
            write("LONGTAKE_STORE_URL is not set here: the first worker registers its ledger")
            return Exit.USAGE if new_ledger else Exit.DELIVERED
        ledger = SubmissionLedger(open_store(settings), longest_exchange=settings.submit_timeout)
        if new_ledger:
            if await _is_registered_or_confirmed(session, ledger, confirm):
                return Exit.DELIVERED
        else:
            await claim(session.temporal, ledger)
        _, registered = await begin_anew(session.temporal, ledger)  # the same ledger: its store may have moved
        write(f"the namespace belongs to the ledger {registered.ledger} in {registered.store}")
    return Exit.DELIVERED


async def _is_registered_or_confirmed(
    session: Session, ledger: SubmissionLedger, confirm: Callable[[str], bool]
) -> bool:
    """Whether the namespace belongs to this ledger already; otherwise the user has confirmed the change.

    Raises:
        CommandProblem: The user has not confirmed.
    """
    identity, registered = await ledger.known_identity(), None
    try:
        registered = await registration(session.temporal)
        owner = f"the ledger {registered.ledger} ({registered.store})" if registered else "no registered ledger"
    except PayloadUnreadable as error:
        owner = f"a ledger that cannot be read here ({error})"
    if registered is not None and registered.ledger == identity:
        write(f"nothing to do: the namespace belongs to the ledger {identity} in {ledger.store_url} already")
        return True
    question = (
        f"The namespace {session.namespace!r} belongs to {owner}. It will belong to "
        f"{f'the ledger {identity}' if identity else 'a new, empty ledger'} in {ledger.store_url}.\n"
        "That ledger does not know what another one has paid for: if you START THE SAME KEY AGAIN, YOU PAY AGAIN. "
        "Stop all workers first.\nContinue?"
    )
    if not confirm(question):
        raise CommandProblem(Exit.USAGE, "NotConfirmed", "nothing was changed; --yes confirms without a question")
    return False
