"""The witnesses of an unknown submission: the account's tasks, the key's log and usage, the models."""

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
_MOST_PER_PAGE = 100


class Witnesses:
    """Routes that cost nothing and are rationed."""

    def __init__(self, world: World) -> None:
        self._world = world

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("/api/task/self", self._rationed(self._tasks), methods=["GET"]),
            Route("/api/log/token", self._rationed(self._log), methods=["GET"]),
            Route("/api/usage/token/", self._rationed(self._usage), methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]

    def _rationed(self, route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if not self._world.witnesses_open:
                response: Response = answers.relay_error(403, "access_denied", "access denied")
            elif not self._world.witness_allowed():
                response = Response(status_code=429)
            else:
                response = await route(request)
            self._world.record(request, response.status_code, kind="witness")
            return response

        return answer

    async def _tasks(self, request: Request) -> Response:
        settings, query = self._world.settings, request.query_params
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token != settings.access_token or request.headers.get("new-api-user") != str(settings.user_id):
            return JSONResponse({"success": False, "message": "无权进行此操作，access token 无效"}, 401)
        try:
            start, end = float(query.get("start_timestamp") or 0), float(query.get("end_timestamp") or "inf")
            page, size = int(query.get("p") or 1), min(int(query.get("page_size") or 10), _MOST_PER_PAGE)
        except ValueError:
            return JSONResponse({"success": False, "message": "invalid parameter"}, 400)
        found = [
            task for task in self._world.tasks if start <= int(task.submitted_at) <= end and task.outcome != "task_lost"
        ]
        found.reverse()
        rows = [self._row(request, task) for task in found[(page - 1) * size : page * size]]
        data = {"page": page, "page_size": size, "total": len(found), "items": rows}
        return JSONResponse({"success": True, "message": "", "data": data})

    def _row(self, request: Request, task: Task) -> Json:
        moment = task.seen(time.time())
        envelope = task.envelope(moment, lambda one, kind: self._world.link(request, one, kind), str(request.base_url))
        properties = {"upstream_model_name": task.model, "origin_model_name": task.model}
        return {"submit_time": int(task.submitted_at), "properties": properties, "quota": task.quota, **envelope}

    async def _log(self, request: Request) -> Response:
        if not self._world.key_ok(request):
            return JSONResponse({"success": False, "message": "无效的令牌"}, 401)
        now = time.time()
        rows: list[dict[str, Any]] = []
        for task in self._world.tasks:
            if "other_key" in task.script:
                continue
            row = {"created_at": int(task.submitted_at), "model_name": task.model, "quota": task.quota, "type": _CHARGE}
            rows.append({**row, "other": '{"is_task":true}'})
            if task.refunded(now):
                ended_at = int(task.seen(now).ended_at)
                rows.append(
                    {**row, "created_at": ended_at, "type": _REFUND, "other": f'{{"task_id":"{task.task_id}"}}'}
                )
        rows.sort(key=lambda row: int(row["created_at"]), reverse=True)
        return JSONResponse({"success": True, "message": "", "data": rows[:_LOG_ROWS]})

    async def _usage(self, request: Request) -> Response:
        if not self._world.key_ok(request):
            return JSONResponse({"success": False, "message": "无效的令牌"}, 401)
        granted, used = self._world.settings.granted_quota, self._world.used_quota()
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
            return answers.new_api_error(401, "无效的令牌")
        rows = [{"id": name, "object": "model", "created": 1626777600, "owned_by": "custom"} for name in MODELS]
        return JSONResponse({"success": True, "object": "list", "data": rows})
