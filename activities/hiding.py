"""Where prompts are hidden, the gateway's words go to the store, and Temporal gets codes.

A gateway can repeat a prompt in any form: whole, in part, with other white space, translated. No search finds all of
them, so none of its words may reach Temporal.
"""

from dataclasses import dataclass

from temporalio import activity

from activities.failures import code_or_none
from longtake.delivery.task_records import store_gateway_words
from longtake.gateway.errors import KeyRefused
from longtake.models import TaskRecord
from longtake.storage import Store, StoreProblem


@dataclass(frozen=True)
class HiddenWords:
    """Where the gateway's words about one generation go."""

    store: Store
    key: str

    async def keep(self, words: str) -> str:
        """Keep the words in the store; returns what to show instead."""
        try:
            path = await store_gateway_words(self.store, self.key, words)
        except StoreProblem as error:
            activity.logger.warning("the gateway's words not kept", exc_info=error)
            return "the gateway's words are hidden, and could not be stored"
        return f"the gateway's words are in the store: {path}"

    async def hide(self, record: TaskRecord) -> TaskRecord:
        """Replace a record's message by where the gateway's words are, and leave out codes that are prose."""
        return record.model_copy(
            update={
                "error_message": record.error_message and await self.keep(record.error_message),
                "error_code": code_or_none(record.error_code),
                "gateway_status": code_or_none(record.gateway_status) or "",
            }
        )


def without_gateways_words(refusal: KeyRefused) -> KeyRefused:
    """A refusal as other generations may see it: its kind, the status and the code."""
    code = code_or_none(refusal.code)
    facts = ", ".join(str(part) for part in (refusal.status, code) if part)
    return type(refusal)(f"the key was refused (HTTP {facts})", status=refusal.status, code=code)
