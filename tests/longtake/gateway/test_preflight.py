"""The free look before paying: a gateway with closed routes passes, a web site does not."""

import json
from collections.abc import Mapping

import httpx
import pytest
from pydantic import SecretStr

from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError, InvalidResponse, KeyRefused
from longtake.gateway.preflight import Preflight
from tests.unread import UnreadAnswers

Answer = tuple[int, object]
MODELS, TASK = "/v1/models", "/v1/videos/task_of_longtake_preflight"
OFFERED = (200, {"data": [{"id": "veo_3_1-fast-remix"}]})
PAGE = "<!DOCTYPE html><title>Not found</title>"
NO_TASK = (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})


async def check(answers: Mapping[str, Answer], *, times: int = 1) -> list[str]:
    """Check; the paths that were asked for."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        status, body = answers[request.url.path]
        content = body if isinstance(body, str) else json.dumps(body)
        return httpx.Response(status, text=content)

    transport = UnreadAnswers(answer)
    async with GatewayClient(
        base_url="http://gateway.test", api_keys=[SecretStr("sk-1")], transport=transport
    ) as client:
        preflight = Preflight(client)
        for _ in range(times):
            await preflight.check()
    return asked


async def test_a_gateway_is_asked_once_for_a_while() -> None:
    assert await check({MODELS: OFFERED}, times=3) == [MODELS]


@pytest.mark.parametrize("closed", [(404, PAGE), (404, {"error": {"message": "Invalid URL"}}), (405, "")])
async def test_where_the_list_is_closed_a_task_is_asked_for(closed: Answer) -> None:
    assert await check({MODELS: closed, TASK: NO_TASK}, times=3) == [MODELS, TASK]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_what_fails_by_itself_proves_nothing(status: int) -> None:
    assert await check({MODELS: (status, PAGE)}) == [MODELS]
    assert await check({MODELS: (404, PAGE), TASK: (status, PAGE)}) == [MODELS, TASK]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({MODELS: (200, PAGE)}, InvalidResponse),
        ({MODELS: (404, PAGE), TASK: (404, PAGE)}, InvalidResponse),
        ({MODELS: (404, PAGE), TASK: (200, PAGE)}, InvalidResponse),
        ({MODELS: (401, {"error": {"message": "invalid token"}})}, KeyRefused),
        ({MODELS: (404, PAGE), TASK: (401, {"error": {"message": "invalid token"}})}, KeyRefused),
    ],
)
async def test_a_web_site_and_a_refused_key_are_reported_before_paying(
    answers: Mapping[str, Answer], error: type[GatewayError]
) -> None:
    with pytest.raises(error):
        await check(answers)
