"""How these tests talk to the simulator."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

KEY = "test-key-1"
Submit = Callable[..., Awaitable[httpx.Response]]

_TLS = ssl.create_default_context()


def client(**options: Any) -> httpx.AsyncClient:
    # One TLS context for all: each client's own takes longer to load than most of these tests run.
    return httpx.AsyncClient(verify=_TLS, **options)


def parts(prompt: str, model: str = "veo_3_1-fast-remix", **fields: str) -> list[tuple[str, Any]]:
    values = {"model": model, "prompt": prompt, "prompt_extend": "the sea grows calm", **fields}
    return [(name, (None, value)) for name, value in values.items()]
