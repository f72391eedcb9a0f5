"""A gateway that echoes what it was given: no key of ours, whatever it looks like, comes back in any text."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from longtake.gateway.account import AccountClient, ConsoleAccess
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError, InvalidResponse
from longtake.gateway.wire import read_excerpt, read_submission, read_task
from tests.unread import UnreadAnswers

KEYS = ["plain0key0without0prefix0first", "plain0key0without0prefix1second"]
CONSOLE = "console0token0without0prefix"
SECRETS = [*KEYS, CONSOLE]


@pytest.fixture(autouse=True)
async def known() -> Any:
    """Whoever holds a key has told so by making its client."""
    keys = [SecretStr(key) for key in KEYS]
    access = ConsoleAccess(SecretStr(CONSOLE), "7")
    async with (
        GatewayClient(base_url="https://gateway.example", api_keys=keys),
        AccountClient(base_url="https://gateway.example", api_key=keys[0], console=access),
    ):
        yield


ANSWERS: dict[str, Callable[[str], Any]] = {
    "a failure's reason": lambda key: {"status": "FAILURE", "fail_reason": f"bad key {key} given"},
    "an error": lambda key: {"status": "FAILURE", "data": {"error": {"code": key, "message": f"{key}!"}}},
    "a status": lambda key: {"status": key, "data": {"status": key, "model": key}},
    "ids": lambda key: {"status": "SUCCESS", "task_id": key, "id": key, "remix_id": key, "data": {"id": key}},
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_record_shows_no_key(name: str, secret: str) -> None:
    record = read_task(ANSWERS[name](secret), asked_for="task_1", request_id=None)
    assert secret not in record.to_json().decode()
    assert secret not in record.without_links().model_dump_json()


@pytest.mark.parametrize("secret", SECRETS)
def test_a_submission_answered_with_a_key_shows_none(secret: str) -> None:
    for body in ({"message": f"you gave {secret}"}, {"id": secret}, {secret: 1}, {"error": {"message": secret}}):
        with pytest.raises(InvalidResponse) as caught:
            read_submission(body, status=200, request_id=None)
        assert secret not in f"{caught.value} {vars(caught.value)}"
        assert secret not in read_excerpt(str(body).replace("'", '"').encode())


@pytest.mark.parametrize("secret", SECRETS)
def test_no_answer_of_a_gateway_shows_a_key(secret: str) -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        status = int(request.url.path.rsplit("-", 1)[-1]) if "-" in request.url.path else 200
        headers = {"X-Oneapi-Request-Id": secret, "Location": f"https://x.example/{secret}{request.url.path}"}
        return httpx.Response(status, headers=headers, json={"message": f"you gave {secret}", "code": secret})

    async def ask() -> list[GatewayError]:
        errors = []
        transport = UnreadAnswers(echo)
        async with GatewayClient(
            base_url="https://gateway.example", api_keys=[SecretStr(KEYS[0])], transport=transport
        ) as client:
            for call in (*(client.query(f"task-{status}") for status in (200, 400, 401, 404, 429, 500)),):
                try:
                    await call
                except GatewayError as error:
                    errors.append(error)
        return errors

    errors = asyncio.run(ask())
    assert len(errors) == 6
    for error in errors:
        assert secret not in f"{error} {vars(error)}"
