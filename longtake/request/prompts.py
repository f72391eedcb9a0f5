"""Prompts kept out of Temporal: the text lies in the store under its hash, and the request carries its path.

Whatever Temporal shows of such a generation (input, activities, results, failures) holds the path, never the text.
From any language: write the text as UTF-8 to `prompts/<sha256 of these bytes, in hexadecimal>.txt` below the store's
URL, and give that path instead of the text.
"""

from longtake.models import GenerateVideoInput, Problem
from longtake.request.rules import MAX_PROMPT_CHARACTERS, InvalidRequest, is_in_store, prompt_path, prompt_problems
from longtake.storage import Store

_MAX_BYTES = 4 * MAX_PROMPT_CHARACTERS
"""In UTF-8 a character takes at most four."""


async def store_prompts(store: Store, request: GenerateVideoInput) -> GenerateVideoInput:
    """Put a request's prompts into the store, once; the result refers to them.

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
    """The request with the texts themselves, held against the rules for them.

    Raises:
        InvalidRequest: A text is absent, is not the one that was stored under its name, or breaks a rule.
        StoreProblem: The store cannot be read.
    """
    return request.model_copy(
        update={
            "prompt": await read_prompt(store, "prompt", request.prompt),
            "prompt_extend": await read_prompt(store, "prompt_extend", request.prompt_extend),
        }
    )


async def read_prompt(store: Store, field: str, prompt: str) -> str:
    """One prompt's text.

    Args:
        store: Where it may lie.
        field: What to call it in an error.
        prompt: The text itself, or its path.

    Raises:
        InvalidRequest: As `read_prompts`.
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
