"""What the submission ledger raises, as one tree.

    LedgerError
    ├── LedgerUnavailable      the store did not answer, refused, or is not the ledger that was expected
    │   └── WrongLedger        the store holds another ledger
    ├── KeyReused              the key was used for another request
    ├── TaskOwned              the task id belongs to another generation
    ├── SendSuspended          the process was stopped or asleep just before sending
    ├── SlotTaken              another attempt took the slot in the same moment
    ├── SubmissionClosed       the submission was closed before this attempt could send
    ├── SubmissionInDoubt      an earlier attempt may still be sending: wait
    └── OutcomeUnknown         a request may have reached the gateway, and no response says what it made

Only after `OutcomeUnknown` may this call itself have sent anything.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from longtake.gateway.errors import GatewayError

if TYPE_CHECKING:
    from longtake.submission.records import Response  # which raises these errors


class LedgerError(Exception):
    """The root; nothing was sent unless a subclass says otherwise."""


class LedgerUnavailable(LedgerError):
    """The store did not answer, refused, or is another one than before; nothing was sent.

    Attributes:
        needs_operator: True where waiting does not help: a permission, a wrong URL, a store that was emptied.
    """

    def __init__(self, message: str, *, needs_operator: bool = False) -> None:
        super().__init__(message)
        self.needs_operator = needs_operator


class WrongSide(StrEnum):
    """Which side has another ledger than it should."""

    WORKER = "worker"
    """This worker (or client) has another store than the one that the namespace belongs to."""
    GENERATION = "generation"
    """The worker's store is the namespace's; the generation began with another ledger."""
    UNKNOWN = "unknown"
    """Nothing says which ledger the namespace belongs to."""


class WrongLedger(LedgerUnavailable):
    """The store holds another ledger than the expected one; nothing was sent. Another worker may have the right one.

    Attributes:
        side: Whose ledger is the wrong one.
    """

    def __init__(self, message: str, *, side: WrongSide) -> None:
        super().__init__(message)
        self.side = side


class KeyReused(LedgerError):
    """The key was used for another request; nothing was sent."""


class TaskOwned(LedgerError):
    """The task id belongs to another generation; nothing was changed."""


class SendSuspended(LedgerError):
    """The process was stopped or asleep just before sending; nothing was sent, and the slot is closed."""


class SlotTaken(LedgerError):
    """Another attempt took the slot in the same moment; this one sent nothing."""


class SubmissionClosed(LedgerError):
    """The submission was closed before this attempt could send: it sent nothing and never will."""


class SubmissionInDoubt(LedgerError):
    """An earlier attempt sent, or was about to, and may still be alive; this one sent nothing.

    Attributes:
        wait: When to check again for its outcome.
    """

    def __init__(self, message: str, wait: timedelta) -> None:
        super().__init__(message)
        self.wait = wait


class OutcomeUnknown(LedgerError):
    """A request may have reached the gateway, and no response says what it made.

    Attributes:
        slot: The slot that it holds.
        sent_at: When it left, by its writer's clock.
        cause: What the gateway's client raised, where this very attempt sent it.
        request_id: The gateway's id of the request, where it responded.
        status: The HTTP status, where it responded.
    """

    def __init__(
        self,
        message: str,
        *,
        slot: int,
        sent_at: datetime,
        cause: GatewayError | None = None,
        response: "Response | None" = None,
    ) -> None:
        super().__init__(message)
        self.slot = slot
        self.sent_at = sent_at
        self.cause = cause
        self.request_id = response.request_id if response else None
        self.status = response.status if response else None
