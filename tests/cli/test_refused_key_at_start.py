"""`generate` with an embedded server asks the gateway first: who wants to wait for the key is not sent away."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from cli.commands.generate import check_gateway
from cli.output import CommandProblem, Exit
from longtake.settings import Settings
from simulator import SimulatorSettings, serve


async def test_only_who_does_not_wait_gets_the_refusal_at_once(tmp_path: Path) -> None:
    async with serve(SimulatorSettings(tmp_path, "the-key-that-pays")) as simulator:
        settings = Settings(gateway_url=simulator.url, gateway_api_key=(SecretStr("another"),))
        with pytest.raises(CommandProblem) as told:
            await check_gateway(settings, wait_for_key=False)
        assert (told.value.code, told.value.kind) == (Exit.USAGE, "SubmissionRefused")
        await check_gateway(settings, wait_for_key=True)
