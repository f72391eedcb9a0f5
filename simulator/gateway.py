"""The gateway's own routes: submit, remix, query."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simulator import answers, images
from simulator.scenarios import HEADER, SCENARIOS, Script, SubmitFault, UnknownScenarioError, choose
from simulator.tasks import Moment, Task
from simulator.wire import WireFault, gone, half_answer
from simulator.world import MODELS, SIZES, World

_MAX_IMAGES, _MAX_FRAMES = 3, 2
_HUGE_BYTES = 32 * 2**20
_QUERY_POLLS = 2


class RefusedError(Exception):
    """A request the gateway refuses before it costs anything."""

    def __init__(self, answer: Response, reason: str) -> None:
        super().__init__(reason)
        self.answer = answer


@dataclass(frozen=True)
class Order:
    """A submission, taken apart."""

    kind: str
    model: str
    prompt: str
    size: str
    quota: int
    script: Script
    summary: dict[str, Any]
    remixed_from: str = ""


def _refuse(reason: str, code: str = "invalid_request", status: int = HTTPStatus.BAD_REQUEST) -> RefusedError:
    return RefusedError(answers.relay_error(status, code, reason), reason)


class Gateway:
    """The routes that cost money, or return the state of a task."""

    def __init__(self, world: World) -> None:
        self._world = world

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("/v1/videos", self._submit, methods=["POST"]),
            Route("/v1/videos/{video_id}/remix", self._remix, methods=["POST"]),
            Route("/v1/videos/{task_id}", self._query, methods=["GET"]),
            Route("/v1/video/generations/{task_id}", self._query_second, methods=["GET"]),
        ]

    # Submitting

    async def _submit(self, request: Request) -> Response:
        try:
            order = await self._input(request)
        except RefusedError as refused:
            status = refused.answer.status_code
            self._world.record(request, status, kind="submit", paid=False, refused=str(refused))
            return refused.answer
        except ClientDisconnect:
            self._world.record(request, 0, kind="submit", paid=False, refused="the client left before its body's end")
            return WireFault("close")
        finally:
            await request.close()  # the parts' temporary files
        return await self._resolve(request, order)

    async def _input(self, request: Request) -> Order:
        self._authorize(request)
        form = await self._form(request)
        # The gateway takes the body apart and builds it anew: text parts first, then files.
        sent = form.getlist("input_reference[]")
        arrived = [part for part in sent if isinstance(part, str)] + [
            part for part in sent if not isinstance(part, str)
        ]
        fields = {
            name: value for name, value in form.multi_items() if isinstance(value, str) and name != "input_reference[]"
        }
        prompt = _required(fields, "prompt")
        script = self._script(request, prompt)
        prompt_extend = _required(fields, "prompt_extend")
        model = _required(fields, "model")
        if model not in MODELS:
            message = f"No available channel for model {model} under group default (distributor)"
            raise RefusedError(answers.new_api_error(503, message, "model_not_found"), message)
        size = fields.get("size", "")
        if "size" in fields and size not in SIZES:
            raise _refuse("invalid size")
        if len(form.getlist("input_reference")) > 0:
            raise _refuse("input_reference must be written input_reference[]")
        low, high = (1, _MAX_FRAMES) if "-fl" in model else (0, _MAX_IMAGES)
        if not low <= len(sent) <= high:
            raise _refuse(f"{model} takes {low} to {high} images")
        if ("no_image_files" in script or not self._world.takes_files) and not all(isinstance(p, str) for p in sent):
            reason = "binary multipart uploads for input_reference[] are not supported by this channel"
            raise _refuse(f"{reason}; use URL or data URI values", "invalid_media_input")
        try:
            described = {id(part): await images.describe(part) for part in sent}
        except images.BadImageError as error:
            raise _refuse(f"input_reference[]: {error}") from error
        quota = _quota(self._world.settings.price, fields)
        self._affordable(quota)
        known = {"model", "prompt", "prompt_extend", "size"}
        summary = {
            "prompt_extend": prompt_extend,
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            "prompt_extend_sha256": hashlib.sha256(prompt_extend.encode()).hexdigest(),
            "images": [described[id(part)] for part in arrived],
            "images_as_sent": [described[id(part)] for part in sent],
            "unknown_fields": sorted(fields.keys() - known),
            "quota": quota,
        }
        return Order("submit", model, prompt, size, quota, script, summary)

    def _authorize(self, request: Request) -> None:
        if not self._world.key_ok(request):
            raise RefusedError(self._world.personality.invalid_key(), "invalid key")

    def _script(self, request: Request, prompt: str) -> Script:
        try:
            return choose(prompt, request.headers.get(HEADER), self._world.default_scenario)
        except UnknownScenarioError as error:
            raise _refuse(str(error), "simulator_unknown_scenario") from error

    def _affordable(self, quota: int) -> None:
        world, used = self._world, self._world.used_quota()
        if used + quota > world.key_quota:
            raise RefusedError(world.personality.key_is_empty(max(world.key_quota - used, 0), quota), "key's quota")
        if used + quota > world.account_quota:
            left = max(world.account_quota - used, 0)
            raise RefusedError(world.personality.account_is_empty(left, quota), "insufficient quota")

    async def _form(self, request: Request) -> FormData:
        settings = self._world.settings
        size = int(request.headers.get("content-length", 0))
        if settings.proxy_body_bytes and size > settings.proxy_body_bytes:
            raise RefusedError(answers.html_page(413), "larger than the proxy allows")
        if size > settings.max_body_bytes:
            raise _refuse("request body too large", "read_request_body_failed")
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise _refuse("request Content-Type isn't multipart/form-data", "invalid_multipart_form")
        try:
            return await request.form(max_part_size=settings.max_body_bytes)
        except HTTPException as error:
            raise _refuse(f"invalid multipart form: {error.detail}", "invalid_multipart_form") from error

    async def _remix(self, request: Request) -> Response:
        try:
            order = await self._remix_input(request)
        except RefusedError as refused:
            status = refused.answer.status_code
            self._world.record(request, status, kind="remix", paid=False, refused=str(refused))
            return refused.answer
        except ClientDisconnect:
            self._world.record(request, 0, kind="remix", paid=False, refused="the client left before its body's end")
            return WireFault("close")
        return await self._resolve(request, order)

    async def _remix_input(self, request: Request) -> Order:
        self._authorize(request)
        try:
            body = json.loads(await request.body())
        except ValueError:
            raise _refuse("invalid JSON") from None
        if not isinstance(body, dict):
            raise _refuse("invalid JSON")
        prompt, model = _required(body, "prompt"), _required(body, "model")
        script = self._script(request, prompt)
        video_id = request.path_params["video_id"]
        origin = self._world.tasks.by_remix_id(video_id)
        if origin is None or not (self._world.settings.remix or "remix" in origin.script or "remix" in script):
            raise RefusedError(self._world.personality.remix_refused(), "task_origin_not_exist")
        self._affordable(self._world.settings.price)
        summary = {
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            "remixed_from": video_id,
            "quota": self._world.settings.price,
        }
        return Order("remix", model, prompt, origin.size, self._world.settings.price, script, summary, video_id)

    async def _resolve(self, request: Request, order: Order) -> Response:
        """Charge or not, record it, and only then send the response or the fault."""
        world, script = self._world, order.script
        world.attempts[order.kind, order.prompt] += 1
        attempt = world.attempts[order.kind, order.prompt]
        word = script.one("submit fault")
        fault = SCENARIOS[word].fault if word and script.applies("times", attempt, inf) else None
        task: Task | None = None
        if fault is None or (fault.paid and "unpaid" not in script and self._stays_charged(fault, script)):
            task = world.new_task(
                script,
                order.model,
                order.size,
                order.prompt,
                order.quota,
                order.remixed_from,
                request_id=request.state.request_id,
                recorded=not (fault and self._may_be_left(word)),
            )
        world.record(
            request,
            fault.status if fault else 200,
            kind=order.kind,
            model=order.model,
            size=order.size,
            prompt=order.prompt,
            scenario=script.text,
            attempt=attempt,
            fault=word if fault else "",
            paid=task is not None,
            task_id=task.task_id if task else "",
            **order.summary,
        )
        if fault is None:
            assert task is not None  # noqa: S101 (without a fault there is a task: five lines above)
            return self._accepted(request, script, task)
        return await self._faulty(request, script, word, fault, task)

    def _stays_charged(self, fault: SubmitFault, script: Script) -> bool:
        """Whether a POST that went wrong is paid for all the same: an error of the gateway's own may give it back."""
        of_its_own = fault.shape in {"new_api", "relay"}
        return not of_its_own or self._world.personality.charges_failures or "charged" in script

    def _may_be_left(self, word: str) -> bool:
        """Whether this fault keeps the client waiting, and a client that leaves meanwhile cancels its POST."""
        return self._world.personality.notices_leaving and word in {"submit_hang", "submit_delay"}

    def _accepted(self, request: Request, script: Script, task: Task) -> Response:
        personality = self._world.personality
        envelope = self._envelope(request, task, Moment("queued", 0, task.submitted_at, 0))
        flat = personality.submitted(task.flat())
        answer = answers.submission(script.one("submit answer", "submit_flat"), task, envelope, flat)
        answer.headers.update(personality.accepted_headers())
        return answer

    async def _faulty(
        self, request: Request, script: Script, word: str, fault: SubmitFault, task: Task | None
    ) -> Response:
        if self._may_be_left(word) and task is not None:
            return await self._unless_left(request, script, word, task)
        if fault.shape == "delay":
            await asyncio.sleep(self._world.real_seconds(script.number("delay", 30)))
            return self._accepted(request, script, task) if task else answers.html_page(504)
        if word == "submit_half":
            body = json.dumps(task.flat() if task else {"id": "", "status": "queued"}).encode()
            return half_answer(200, _headers(request), body)
        if fault.shape == "wire":
            return WireFault(word.removeprefix("submit_"))
        answer = _error(fault)
        if fault.status == HTTPStatus.TOO_MANY_REQUESTS:
            answer.headers.update(answers.retry_after(script))
        if fault.status == HTTPStatus.TEMPORARY_REDIRECT:
            answer.headers["location"] = request.url.path
        return answer

    async def _unless_left(self, request: Request, script: Script, word: str, task: Task) -> Response:
        """The late answer; where the client leaves before, the POST is given back and the gateway knows no task.

        The middleware may have the job all the same (`/_simulator/tasks` shows it, not `recorded`).
        """
        wait = self._world.real_seconds(script.number("delay", 30)) if word == "submit_delay" else None
        try:
            async with asyncio.timeout(wait):
                await gone(request.receive)
        except TimeoutError:
            self._world.tasks.record(task)
            return self._accepted(request, script, task)
        self._world.record(request, 0, kind="cancelled", task_id=task.task_id, scenario=script.text)
        return WireFault("close")

    # Querying

    async def _query(self, request: Request) -> Response:
        task = self._world.tasks.by_task_id(request.path_params["task_id"])
        if task is None or task.outcome == "task_missing" or not self._world.key_ok(request):
            return self._query_refusal(request, task)
        task.polls += 1
        script, good_polls = task.script, task.script.number("after", 0)
        word = script.one("query")
        faulty = good_polls < task.polls and script.applies("polls", int(task.polls - good_polls), _QUERY_POLLS)
        if word and faulty:
            answer = await self._query_fault(request, task, word)
            self._recorded(request, task, answer.status_code, fault=word)
            return answer
        shape = script.params.get("shape", "")
        if shape in {"S5", "S6"} and not faulty:
            shape = ""
        return self._answer(request, task, task.seen(time.time()), shape)

    async def _query_second(self, request: Request) -> Response:
        """The stock path: no query fault reaches it, and a lost task that `recovers` shows here how it really is."""
        task = self._world.tasks.by_task_id(request.path_params["task_id"])
        if task is None or task.outcome == "task_missing" or not self._world.key_ok(request):
            return self._query_refusal(request, task)
        now = time.time()
        moment = task.truth(now) if "recovers" in task.script else task.seen(now)
        return self._answer(request, task, moment, "S2")

    def _query_refusal(self, request: Request, task: Task | None) -> Response:
        refusal = _not_exist(task) if self._world.key_ok(request) else self._world.personality.invalid_key()
        self._world.record(request, refusal.status_code, kind="query", task_id=request.path_params["task_id"])
        return refusal

    def _recorded(self, request: Request, task: Task, status: int, **more: Any) -> None:
        self._world.record(request, status, kind="query", task_id=task.task_id, scenario=task.scenario, **more)

    def _answer(self, request: Request, task: Task, moment: Moment, shape: str) -> Response:
        body = self._body(self._envelope(request, task, moment), task, shape)
        self._recorded(request, task, 200, state=moment.state, progress=moment.progress)
        return JSONResponse(body)

    def _body(self, envelope: dict[str, Any], task: Task, shape: str = "") -> Any:
        """The answer in the shape that was asked for, else in the personality's own."""
        if shape:
            return answers.shaped(shape, envelope)
        flat = self._world.personality.flat(envelope, task, self._world.settings.server_address.rstrip("/"))
        return envelope if flat is None else flat

    def _envelope(self, request: Request, task: Task, moment: Moment) -> dict[str, Any]:
        if not moment.running:
            task.success_polls += 1
        envelope = task.envelope(moment, lambda one, kind: self._world.link(request, one, kind), _base_url(request))
        envelope = self._world.personality.envelope(envelope, task, moment)
        return answers.with_odd_values(task.script, envelope, moment, task.polls)

    async def _query_fault(self, request: Request, task: Task, word: str) -> Response:
        simple: dict[str, Callable[[], Response]] = {
            "task_not_exist": lambda: _not_exist(task),
            "query_401": self._world.personality.invalid_key,
            "query_403": lambda: answers.new_api_error(403, "该令牌已被禁用", "access_denied"),
            "query_429": lambda: answers.new_api_error(429, "当前请求过多", "rate_limit"),
            "query_500": lambda: answers.relay_error(500, "get_task_failed", "database is locked"),
            "query_502": lambda: answers.html_page(502),
            "query_503": lambda: answers.html_page(503),
            "query_504": lambda: answers.html_page(504),
            "query_problem": lambda: answers.problem(524),
            "query_html": lambda: answers.html_page(200),
            "query_not_json": lambda: Response(b"{not json", media_type="application/json"),
            "query_empty": lambda: Response(b"", media_type="application/json"),
            "query_reset": lambda: WireFault("reset"),
            "query_close": lambda: WireFault("close"),
            "query_hang": lambda: WireFault("hang"),
        }
        if word in simple:
            answer = simple[word]()
            if word == "query_429":
                answer.headers.update(answers.retry_after(task.script))
            return answer
        if word == "query_delay":
            await asyncio.sleep(self._world.real_seconds(task.script.number("delay", 30)))
        body = self._body(self._envelope(request, task, task.seen(time.time())), task)
        if word == "query_huge":
            body = {**body, "padding": "x" * _HUGE_BYTES}
        if word == "query_half":
            raw = json.dumps(body).encode()
            return half_answer(200, _headers(request), raw)
        return JSONResponse(body)


def _required(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _refuse(f"{name} is required")
    return value


def _quota(price: int, fields: dict[str, str]) -> int:
    """`seconds` and `duration` multiply the price (field notes: do not send them)."""
    for name in ("seconds", "duration"):
        if name in fields:
            try:
                return int(price * float(fields[name]))
            except ValueError:
                raise _refuse(f"invalid {name}") from None
    return price


def _error(fault: SubmitFault) -> Response:
    if fault.shape == "new_api":
        return answers.new_api_error(fault.status, fault.message, fault.code)
    if fault.shape == "relay":
        return answers.relay_error(fault.status, fault.code, fault.message)
    if fault.shape == "html":
        return answers.html_page(fault.status)
    return Response(status_code=fault.status)


def _not_exist(task: Task | None) -> Response:
    status = int(task.script.params.get("status", 400)) if task else 400
    return answers.relay_error(status, "task_not_exist", "task_not_exist")


def _base_url(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc}"


def _headers(request: Request) -> dict[str, str]:
    return {"content-type": "application/json", "x-oneapi-request-id": request.state.request_id}
