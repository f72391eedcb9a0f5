"""The names under which Temporal knows our things; clients in any language use the same ones.

This module imports nothing, so a program that needs a name does not pay for the SDK (1.7 s).
"""

import re
from typing import Final

TASK_QUEUE: Final = "video-generation"
SUBMISSION_TASK_QUEUE: Final = "video-generation-submission"
"""The paying activities have their own queue with few slots, so that one crash leaves few submissions in doubt."""
WORKFLOW_TYPE: Final = "GenerateVideo"
LEDGER_WORKFLOW_TYPE: Final = "LedgerRegistration"
LEDGER_WORKFLOW_ID: Final = "longtake-ledger"
"""The one workflow of a namespace that names its submission ledger; see `longtake.temporal.ledger_registration`."""
DEPLOYMENT: Final = "longtake"
"""The Worker Deployment that every versioned worker belongs to."""
DEFAULT_ADDRESS: Final = "localhost:7233"

SEARCH_ATTRIBUTES: Final = (
    "VideoModel",
    "VideoStage",
    "VideoOutcome",
    "VideoAttention",
    "VideoPaid",
    "GatewayTaskId",
)
"""Custom search attributes, each a Keyword; `longtake.temporal.search_attributes` has their typed keys."""

WORKFLOW_ID_PREFIX: Final = "video-"
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,199}")


class InvalidKey(ValueError):
    """The idempotency key cannot name a generation."""


def workflow_id(key: str) -> str:
    """The workflow id of a generation.

    Raises:
        InvalidKey: The key has characters that are unsafe in ids, URLs or file names.
    """
    if not _KEY.fullmatch(key):
        raise InvalidKey(
            "a key has 1 to 200 characters: letters, digits and . _ : @ + = -, and begins with a letter or digit; "
            "hash anything else"
        )
    return f"{WORKFLOW_ID_PREFIX}{key}"


def key_of(workflow_id: str) -> str:
    """The key that a workflow id was made from; an id without our prefix is returned as it is."""
    return workflow_id.removeprefix(WORKFLOW_ID_PREFIX)
