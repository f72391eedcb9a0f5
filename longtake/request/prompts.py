"""Keeps prompts out of Temporal: the text is in the store under its hash, and the request has the path.

Temporal then shows the path everywhere, and never the text. In any language: write the text as UTF-8 to
`prompts/<SHA-256 of these bytes, in hexadecimal>.txt` in the store, and use that path as the prompt.
"""

from longtake.models import GenerateVideoInput, Problem
from longtake.request.rules import MAX_PROMPT_CHARACTERS, InvalidRequest, is_in_store, prompt_path, prompt_problems
from longtake.storage import Store

_MAX_BYTES = 4 * MAX_PROMPT_CHARACTERS
"""A UTF-8 character has at most four bytes."""


async def store_prompts(store: Store, request: GenerateVideoInput) -> GenerateVideoInput:
    """Write a request's prompts to the store. The result has their paths.

    Raises:
        StoreProblem: The store cannot be written.
    """
    return request.model_copy(
        update={
            "prompt": await _store(store, request.prompt),
            "prompt_extend": await _store(store, request.prompt_extend),
        }
    )


async def read_prompts(store: Store, request: GenerateVideoInput) -> GenerateVideoInput:
    """The request with its prompts read from the store and checked.

    Raises:
        InvalidRequest: A text is missing, does not match the hash in its name, or breaks a rule.
        StoreProblem: The store cannot be read.
    """
    return request.model_copy(
        update={
            "prompt": await read_prompt(store, "prompt", request.prompt),
            "prompt_extend": await read_prompt(store, "prompt_extend", request.prompt_extend),
        }
    )


async def read_prompt(store: Store, field: str, prompt: str) -> str:
    """The text of a prompt.

    Args:
        store: The store.
        field: Its name in errors.
        prompt: The text, or its path.

    Raises:
        InvalidRequest: See `read_prompts`.
        StoreProblem: The store cannot be read.
    """
    if not is_in_store(prompt):
        return prompt
    size = await store.head(prompt)
    content = await store.get(prompt) if size is not None and size <= _MAX_BYTES else None
    if content is None:
        rule = (
            f"{prompt} is not in the store" if size is None else f"must be at most {MAX_PROMPT_CHARACTERS:,} characters"
        )
        raise InvalidRequest((Problem(field=field, rule=f"{rule}: store it again"),))
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InvalidRequest((Problem(field=field, rule=f"{prompt} must be UTF-8: store it again"),)) from None
    if prompt_path(text) != prompt:
        raise InvalidRequest((Problem(field=field, rule=f"{prompt} is not what its name says: store it again"),))
    if problems := tuple(prompt_problems(field, text)):
        raise InvalidRequest(problems)
    return text


async def _store(store: Store, prompt: str) -> str:
    if is_in_store(prompt):
        return prompt
    path, content = prompt_path(prompt), prompt.encode()
    await store.put_by_content(path, content)
    return path
