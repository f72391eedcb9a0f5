from collections.abc import AsyncIterator

import pytest_asyncio

from tests.workflows.rig import Rig, SharedRig, running_rig


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_rig() -> AsyncIterator[SharedRig]:
    """One server for all: it starts once, and a test needs only a workflow id of its own."""
    async with SharedRig() as shared:
        yield shared


@pytest_asyncio.fixture(loop_scope="session")
async def rig(shared_rig: SharedRig) -> AsyncIterator[Rig]:
    rig = await shared_rig.healthy()
    yield rig
    await rig.clean_up()


@pytest_asyncio.fixture(loop_scope="session")
async def own_rig() -> AsyncIterator[Rig]:
    """A server for one test: where a workflow ends while an activity is under way, its time stops for good."""
    async with running_rig() as rig:
        yield rig
        await rig.clean_up()


@pytest_asyncio.fixture(loop_scope="session")
async def forgetful_rig() -> AsyncIterator[Rig]:
    """Its worker keeps no workflow in memory, so that another one can take over."""
    async with running_rig(cached=0) as rig:
        yield rig
        await rig.clean_up()
