"""Where prompts are hidden, the gateway's words go to the store, and Temporal gets codes.

A gateway can repeat a prompt in any form: whole, in part, with other white space, translated. No search finds all of
them, so none of its words may reach Temporal.
"""

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.failures import Step, application_error, code_or_none, may_quote
from longtake.gateway.errors import KeyRefused
from longtake.models import TaskRecord
from longtake.request.prompts import keep_words
from longtake.storage import Store, StoreProblem


async def hiding_error(  # noqa: PLR0913 - each named at the call
    error: Exception, step: Step, *, store: Store, key: str, hidden: bool, gone_for_good: bool = False
) -> ApplicationError:
    """What `application_error` makes of an error; without the gateway's words, where prompts are hidden."""
    instead = await in_the_store(str(error), store=store, key=key) if hidden and may_quote(error) else None
    return application_error(error, step, gone_for_good=gone_for_good, instead=instead)


async def without_words(record: TaskRecord, *, store: Store, key: str) -> TaskRecord:
    """A record whose message is where the gateway's words are; what should be a code and is none is left out."""
    return record.model_copy(
        update={
            "error_message": record.error_message and await in_the_store(record.error_message, store=store, key=key),
            "error_code": code_or_none(record.error_code),
            "gateway_status": code_or_none(record.gateway_status) or "",
        }
    )


def without_gateways_words(refusal: KeyRefused) -> KeyRefused:
    """A refusal as other generations may be told of it: which one it is, the status and the code."""
    code = code_or_none(refusal.code)
    said = ", ".join(str(part) for part in (refusal.status, code) if part)
    return type(refusal)(f"the key was refused (HTTP {said})", status=refusal.status, code=code)


async def in_the_store(words: str, *, store: Store, key: str) -> str:
    """Keep the words, and say where they are."""
    try:
        path = await keep_words(store, key, words)
    except StoreProblem as error:
        activity.logger.warning("the gateway's words not kept", exc_info=error)
        return "the gateway's words are hidden, and could not be stored"
    return f"the gateway's words are in the store: {path}"
