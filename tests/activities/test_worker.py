"""What a worker process decides by itself."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

import worker


class Counting:
    """A client whose server answers these, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers = iter(answers)

    async def count_workflows(self, _: str) -> Any:
        answer = next(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        return SimpleNamespace(count=answer)


async def test_a_server_that_is_away_for_a_moment_ends_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    away = RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
    await worker._idle(cast("Client", Counting(1, away, away, 1, 0)))
    assert len(slept) == 5
    assert [entry.levelname for entry in caplog.records] == ["WARNING"], "said once"
