"""How these tests talk to the simulator."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

KEY = "test-key-1"
Submit = Callable[..., Awaitable[httpx.Response]]


def parts(prompt: str, model: str = "veo_3_1-fast-remix", **fields: str) -> list[tuple[str, Any]]:
    values = {"model": model, "prompt": prompt, "prompt_extend": "the sea grows calm", **fields}
    return [(name, (None, value)) for name, value in values.items()]
