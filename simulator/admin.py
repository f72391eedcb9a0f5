"""The routes under `/_simulator/`: with which tests and people inspect the simulator and cause faults.

They are served on the CDN's origin too, so that they can be reached while the gateway refuses connections.
"""

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simulator.scenarios import UnknownScenarioError, parse
from simulator.world import ACCOUNT_FAULTS, World

Outage = Callable[[float, str], Awaitable[None]]
OUTAGE_MODES = ("503", "refuse")


class Admin:
    """Looking in, and steering."""

    def __init__(self, world: World, outage: Outage) -> None:
        self._world = world
        self._outage = outage

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("/_simulator/ledger", self._ledger, methods=["GET"]),
            Route("/_simulator/paid", self._paid, methods=["GET"]),
            Route("/_simulator/tasks", self._tasks, methods=["GET"]),
            Route("/_simulator/keys", self._keys, methods=["POST"]),
            Route("/_simulator/quota", self._quota, methods=["POST"]),
            Route("/_simulator/scenario", self._scenario, methods=["POST"]),
            Route("/_simulator/account", self._account_records, methods=["POST"]),
            Route("/_simulator/outage", self._change_outage, methods=["POST"]),
            Route("/_simulator/reset", self._reset, methods=["POST"]),
        ]

    async def _ledger(self, _: Request) -> Response:
        return JSONResponse(self._world.ledger.entries)

    async def _paid(self, _: Request) -> Response:
        return JSONResponse(self._world.ledger.paid())

    async def _tasks(self, _: Request) -> Response:
        now = time.time()
        rows: list[dict[str, Any]] = []
        for task in self._world.tasks:
            states = {"state": task.seen(now).state, "truth": task.truth(now).state}
            rows.append({**dataclasses.asdict(task), "outcome": task.outcome, **states})
        return JSONResponse(rows)

    async def _keys(self, request: Request) -> Response:
        """`{"valid": [...]}`: the keys that are valid from now on."""
        self._world.keys = set((await request.json())["valid"])
        return JSONResponse({"valid": len(self._world.keys)})

    async def _quota(self, request: Request) -> Response:
        """`{"account": N, "key": N}`, either alone or both: what they may spend in all, from now on (a top-up)."""
        body = await request.json()
        self._world.account_quota = int(body.get("account", self._world.account_quota))
        self._world.key_quota = int(body.get("key", self._world.key_quota))
        return JSONResponse({"account": self._world.account_quota, "key": self._world.key_quota})

    async def _scenario(self, request: Request) -> Response:
        """`{"default": "…"}`: the scenario of prompts without a tag, from now on."""
        text = (await request.json())["default"]
        try:
            parse(text)
        except UnknownScenarioError as error:
            return JSONResponse({"error": str(error)}, 400)
        self._world.default_scenario = text
        return JSONResponse({"default": text})

    async def _account_records(self, request: Request) -> Response:
        """`{"open": bool}`: can the records be read; `{"tasks": fault, "log": fault, "fetch": fault}`."""
        body = await request.json()
        faults = {name: body[name] for name in ACCOUNT_FAULTS if name in body}
        for name, fault in faults.items():
            if fault not in ACCOUNT_FAULTS[name]:
                return JSONResponse({"error": f"{name} must be one of {', '.join(ACCOUNT_FAULTS[name])}"}, 400)
        self._world.account_faults.update(faults)
        self._world.account_open = bool(body.get("open", self._world.account_open))
        return JSONResponse({"open": self._world.account_open, **self._world.account_faults})

    async def _change_outage(self, request: Request) -> Response:
        """`{"seconds": N}` (real seconds) or `{"on": bool}`, with `"mode": "503" | "refuse"`."""
        body = await request.json()
        seconds = float(body["seconds"]) if "seconds" in body else float("inf") if body["on"] else 0.0
        mode = body.get("mode", "503")
        if mode not in OUTAGE_MODES:
            return JSONResponse({"error": f"mode must be one of {', '.join(OUTAGE_MODES)}"}, 400)
        await self._outage(seconds, mode)
        return JSONResponse({"seconds": "for ever" if seconds == float("inf") else seconds, "mode": mode})

    async def _reset(self, _: Request) -> Response:
        await self._outage(0.0, "503")
        self._world.reset()
        return JSONResponse({"reset": True})
