"""The namespace's memory of its submission ledger: a workflow that waits for ever and holds a memo."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from longtake.models import LedgerRegistration
    from longtake.temporal.names import LEDGER_WORKFLOW_TYPE


@workflow.defn(name=LEDGER_WORKFLOW_TYPE)
class LedgerRegistrationWorkflow:
    """One workflow task in its whole life, and no command; workers and clients read its memo, without asking it."""

    @workflow.run
    async def run(self, registered: LedgerRegistration) -> None:
        """Show which store the namespace belongs to, and wait.

        Args:
            registered: The same as in the memo, for the page in Temporal's UI.
        """
        workflow.set_current_details(
            f"The generations of this namespace keep their submission ledger in `{registered.store}` "
            f"(`submit/identity`: `{registered.ledger}`). A worker with another store takes nothing here.\n\n"
            "Leave this workflow alone; docs/operations.md says what to do after the store was lost on purpose."
        )
        await workflow.wait_condition(lambda: False)
