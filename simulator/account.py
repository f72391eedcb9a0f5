"""The account's records, which resolve a submission in doubt: tasks, the key's log and usage, models."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simulator import answers
from simulator.tasks import Json, Task
from simulator.world import MODELS, World

_CHARGE, _REFUND = 2, 6
_LOG_ROWS = 1000
_MAX_PER_PAGE = 100


class AccountClient:
    """Routes that cost nothing and are rationed."""

    def __init__(self, world: World) -> None:
        self._world = world

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("/api/task/self", self._rationed(self._tasks, "tasks"), methods=["GET"]),
            Route("/api/log/token", self._rationed(self._log, "log"), methods=["GET"]),
            Route("/api/usage/token/", self._rationed(self._usage, "usage"), methods=["GET"]),
            *([Route("/suno/fetch", self._fetch, methods=["POST"])] if self._world.personality.has_fetch else []),
            Route("/v1/models", self._models, methods=["GET"]),
        ]

    def _rationed(
        self, route: Callable[[Request], Awaitable[Response]], name: str
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            fault = self._world.account_faults.get(name, "")
            if not self._world.account_open:
                response: Response = answers.relay_error(403, "access_denied", "access denied")
            elif wait := self._world.wait_for_a_call(request.url.path):
                response = self._too_many(wait)
            elif fault.isdigit():
                response = self._too_many(60) if fault == "429" else _closed(int(fault))
            else:
                response = await route(request)
            self._world.record(request, response.status_code, kind="account", **({"fault": fault} if fault else {}))
            return response

        return answer

    def _too_many(self, wait: float) -> Response:
        """Stock's 429: no body, and no word of when; newer builds say when."""
        headers = {"Retry-After": str(math.ceil(wait))} if self._world.settings.rate_retry_after else None
        return Response(status_code=429, headers=headers)

    async def _fetch(self, request: Request) -> Response:
        """Many tasks in one call, whatever their platform; ids that the gateway does not know are left out."""
        response = await self._fetched(request)
        self._world.record(request, response.status_code, kind="fetch")
        return response

    async def _fetched(self, request: Request) -> Response:
        world, fault = self._world, self._world.account_faults.get("fetch", "")
        if fault == "404":
            return answers.proxy_error(404, "Invalid URL (POST /suno/fetch)")
        if not world.key_ok(request):
            return world.personality.invalid_key()
        if fault == "403":
            return answers.new_api_error(403, "This token has no access to model suno_music", "access_denied")
        if fault:
            return answers.relay_error(int(fault), "get_tasks_failed", "database is locked")
        try:
            ids = (await request.json())["ids"]
            wanted = {one for one in ids if isinstance(one, str)}
        except (ValueError, KeyError, TypeError):
            return answers.relay_error(400, "invalid_request", "invalid JSON")
        found = [task for task in world.tasks.recorded() if task.task_id in wanted and task.outcome != "task_missing"]
        rows = [self._envelope(request, task) for task in found]
        # An empty body of ids is an empty list in stock, ids of which none is known a null.
        return JSONResponse({"code": "success", "message": "", "data": rows or (None if wanted else [])})

    def _envelope(self, request: Request, task: Task) -> Json:
        moment = task.seen(time.time())
        base_url = str(request.base_url)
        envelope = task.envelope(moment, lambda one, kind: self._world.link(request, one, kind), base_url)
        return self._world.personality.envelope(envelope, task, moment)

    async def _tasks(self, request: Request) -> Response:
        settings, query = self._world.settings, request.query_params
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token != settings.access_token or request.headers.get("new-api-user") != str(settings.user_id):
            return self._world.personality.invalid_token()
        try:
            start, end = float(query.get("start_timestamp") or 0), float(query.get("end_timestamp") or "inf")
            page, size = int(query.get("p") or 1), min(int(query.get("page_size") or 10), _MAX_PER_PAGE)
        except ValueError:
            return JSONResponse({"success": False, "message": "invalid parameter"}, 400)
        if self._world.account_faults.get("tasks") == "database_error":
            data = {"page": page, "page_size": size, "total": 0, "items": []}
            return JSONResponse({"success": True, "message": "", "data": data})
        found = [
            task
            for task in self._world.tasks.recorded()
            if start <= int(task.submitted_at) <= end and task.outcome != "task_missing"
        ]
        found.reverse()
        rows = [self._row(request, task) for task in found[(page - 1) * size : page * size]]
        data = {"page": page, "page_size": size, "total": len(found), "items": rows}
        return JSONResponse({"success": True, "message": "", "data": data})

    def _row(self, request: Request, task: Task) -> Json:
        return self._world.personality.list_row(self._envelope(request, task), task)

    async def _log(self, request: Request) -> Response:
        if not self._world.key_ok(request):
            return self._world.personality.invalid_key_at_console()
        now, personality = time.time(), self._world.personality
        rows: list[dict[str, Any]] = []
        for task in self._world.tasks.recorded():
            if "other_key" in task.script:
                continue
            row = {"created_at": int(task.submitted_at), "model_name": task.model, "quota": task.quota, "type": _CHARGE}
            rows.append({**row, **personality.charge(task)})
            if task.refunded(now):
                reason = self._envelope(request, task)["fail_reason"]
                ended = {"created_at": int(task.seen(now).ended_at), "type": _REFUND}
                rows.append({**row, **ended, **personality.refund(task, reason)})
        rows.sort(key=lambda row: int(row["created_at"]), reverse=True)
        return JSONResponse({"success": True, "message": "", "data": rows[:_LOG_ROWS]})

    async def _usage(self, request: Request) -> Response:
        if not self._world.key_ok(request):
            return self._world.personality.invalid_key_at_console()
        granted, used = self._world.account_quota, self._world.used_quota()
        data = {
            "object": "token_usage",
            "name": "simulator",
            "total_granted": granted,
            "total_used": used,
            "total_available": granted - used,
            "unlimited_quota": False,
            "expires_at": 0,
        }
        return JSONResponse({"code": True, "message": "ok", "data": data})

    async def _models(self, request: Request) -> Response:
        ok = self._world.key_ok(request)
        self._world.record(request, 200 if ok else 401, kind="models")
        if not ok:
            return self._world.personality.invalid_key()
        rows = [{"id": name, "object": "model", "created": 1626777600, "owned_by": "custom"} for name in MODELS]
        return JSONResponse({"success": True, "object": "list", "data": rows})


def _closed(status: int) -> Response:
    return JSONResponse({"success": False, "message": f"HTTP {status}"}, status)
