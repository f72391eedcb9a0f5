"""Prompts in the store: what Temporal gets is a path, and what comes back is exactly the text that was stored."""

import hashlib
from pathlib import Path

import pytest

from longtake.models import GenerateVideoInput
from longtake.request.prompts import read_prompts, store_prompts
from longtake.request.rules import MAX_PROMPT_CHARACTERS, InvalidRequest, prompt_path
from longtake.storage import Store

REQUEST = GenerateVideoInput(model="veo_3_1-fast-remix", prompt="a pier 🌊", prompt_extend="the tide")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


async def test_a_request_with_stored_prompts_holds_paths_and_comes_back(store: Store) -> None:
    stored = await store_prompts(store, REQUEST)
    assert stored.prompt == f"prompts/{hashlib.sha256(REQUEST.prompt.encode()).hexdigest()}.txt"
    assert await read_prompts(store, stored) == REQUEST
    assert await store_prompts(store, stored) == stored, "twice is once"


async def test_texts_are_read_without_the_store(store: Store) -> None:
    assert await read_prompts(store, REQUEST) == REQUEST


@pytest.mark.parametrize("field", ["prompt", "prompt_extend"])
@pytest.mark.parametrize(
    ("path", "content"),
    [
        (prompt_path("never stored"), None),
        (prompt_path("this"), b"that"),
        (prompt_path("this"), b"\xff\xfe"),
        (prompt_path("  "), b"  "),
        (prompt_path("this"), b"x" * (4 * MAX_PROMPT_CHARACTERS + 1)),
        (prompt_path("é" * (MAX_PROMPT_CHARACTERS + 1)), ("é" * (MAX_PROMPT_CHARACTERS + 1)).encode()),
    ],
    ids=["absent", "another text", "not UTF-8", "empty", "too many bytes", "too many characters"],
)
async def test_a_stored_prompt_that_cannot_be_used_names_its_field(
    store: Store, field: str, path: str, content: bytes | None
) -> None:
    if content is not None:
        await store.put(path, content)
    with pytest.raises(InvalidRequest) as refused:
        await read_prompts(store, REQUEST.model_copy(update={field: path}))
    assert {problem.field for problem in refused.value.problems} == {field}
