"""The simulator as a whole: three origins in one process."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simulator import answers
from simulator.account import AccountClient
from simulator.admin import Admin
from simulator.clips import Clip
from simulator.downloads import Downloads
from simulator.gateway import Gateway
from simulator.ledger import Ledger
from simulator.tasks import TaskBook
from simulator.wire import Origin
from simulator.world import SimulatorSettings, World

_USUAL_CLIPS = (Clip(15, 1280, 720), Clip(8, 1280, 720), Clip(15, 1920, 1080), Clip(8, 1920, 1080))
_ADMIN = "/_simulator/"


class _FrontDoor:
    """Names every request of the gateway's origin, and shuts it during an outage."""

    def __init__(self, app: ASGIApp, world: World) -> None:
        self._app = app
        self._world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["state"]["request_id"] = uuid.uuid4().hex
        personality = self._world.personality

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if personality.proxy_pages_are_named or not headers.get("content-type", "").startswith("text/html"):
                    headers["X-Oneapi-Request-Id"] = request_id
                    headers.update(personality.headers())
            await send(message)

        if self._world.out and not scope["path"].startswith(_ADMIN):
            paid = {"kind": "submit", "paid": False} if scope["method"] == "POST" else {}
            self._world.record(Request(scope), 503, fault="outage", **paid)
            await answers.html_page(503)(scope, receive, named)
        else:
            await self._app(scope, receive, named)


class Simulator:
    """A running simulator; made by `serve`.

    Attributes:
        settings: What it was started with.
        world: Everything it holds; the ledger and the tasks are also attributes of their own.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.world = World.load(settings)
        downloads, admin = Downloads(self.world), Admin(self.world, self.outage)
        gateway = Starlette(
            routes=[
                *Gateway(self.world).routes(),
                *downloads.gateway_routes(),
                *AccountClient(self.world).routes(),
                *admin.routes(),
            ]
        )
        self._gateway = Origin(_FrontDoor(gateway, self.world))
        self._cdn = Origin(Starlette(routes=[*downloads.cdn_routes(), *admin.routes()]))
        self._trap = Origin(Starlette(routes=downloads.trap_routes()))
        self._background: set[asyncio.Task[None]] = set()
        self._refusing: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The gateway's base URL."""
        return self._gateway.url

    @property
    def cdn_url(self) -> str:
        """The CDN's origin, where the admin routes are too."""
        return self._cdn.url

    @property
    def ledger(self) -> Ledger:
        """Every request seen."""
        return self.world.ledger

    @property
    def tasks(self) -> TaskBook:
        """Every paid job."""
        return self.world.tasks

    async def start(self) -> None:
        """Listen on all origins."""
        await self._gateway.open(self.settings.host, self.settings.port)
        await self._cdn.open(self.settings.host, self.settings.cdn_port)
        await self._trap.open("127.0.0.1")
        self.world.cdn_url, self.world.trap_url = self._cdn.url, self._trap.url
        if self.settings.warm:
            self._spawn(self._warm())

    async def stop(self) -> None:
        """Stop at once: answers under way are cut off."""
        for task in self._background:
            task.cancel()
        for origin in (self._gateway, self._cdn, self._trap):
            await origin.close()
        self.world.ledger.close()

    async def outage(self, seconds: float, mode: str = "503") -> None:
        """Put the gateway's origin out of order for so many real seconds; 0 ends it.

        With the mode `503` it answers so; with `refuse` nothing listens on its port and open connections are cut.
        """
        if self._refusing is not None:
            self._refusing.cancel()
        if mode == "refuse" and seconds > 0:
            # Closed from a task of its own: closing ends every request of the origin, perhaps the one asking for this.
            self._refusing = self._spawn(self._refuse(seconds))
            return
        self.world.outage_until = time.time() + seconds if seconds else 0.0
        await self._gateway.reopen()

    async def _refuse(self, seconds: float) -> None:
        await asyncio.sleep(0.02)  # lets the answer to the one who asked leave
        await self._gateway.close()
        if seconds != float("inf"):
            await asyncio.sleep(seconds)
            await self._gateway.reopen()

    async def _warm(self) -> None:
        for clip in _USUAL_CLIPS:
            await self.world.clips.content(clip)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


@contextlib.asynccontextmanager
async def serve(settings: SimulatorSettings) -> AsyncIterator[Simulator]:
    """Run a simulator in this process, on this event loop, for the length of the block."""
    simulator = Simulator(settings)
    await simulator.start()
    try:
        yield simulator
    finally:
        await simulator.stop()
