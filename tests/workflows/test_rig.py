"""The rig itself: one test must not be able to stop the time of those after it."""

from datetime import timedelta

import pytest

from tests.workflows.rig import Held, Script, SharedRig, again, running


@pytest.mark.asyncio(loop_scope="session")
async def test_a_server_whose_time_stands_still_is_replaced(shared_rig: SharedRig) -> None:
    poisoned = await shared_rig.healthy()
    held = Held(running())
    generation = await poisoned.generate(Script(polls=again(held)))
    await generation.skip_to(held)
    await generation.handle.terminate("while its activity is under way")

    rig = await shared_rig.healthy()
    held.let_go()
    assert rig is not poisoned

    await rig.pass_time(timedelta(days=1))
    assert await shared_rig.healthy() is rig
