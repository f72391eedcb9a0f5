"""Getting the video: the gateway's `/content`, the CDN's signed links, and a trap that nobody should visit."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from math import inf

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from simulator import answers
from simulator.clips import Clip
from simulator.ledger import Entry
from simulator.tasks import LinkKind, Task
from simulator.wire import WireFault, head
from simulator.world import World

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_SMALL = {True: (1280, 720), False: (720, 1280)}
_DRIPS = 50
_FAULTS = (
    "html_file",
    "truncated",
    "truncated_chunked",
    "truncated_unframed",
    "truncated_framed",
    "download_reset",
    "download_stall",
    "slow",
    "download_404",
    "download_502",
)
_FULL_SECONDS, _FIRST_SECONDS = 15, 8


class Downloads:
    """The routes that hand out files."""

    def __init__(self, world: World) -> None:
        self._world = world

    def gateway_routes(self) -> list[Route]:
        """On the gateway's origin: `/content`, with the key."""
        return [Route("/v1/videos/{task_id}/content", self._content, methods=["GET"])]

    def cdn_routes(self) -> list[Route]:
        """On the CDN's origin: signed links, never a key."""
        return [Route("/cdn/{kind}/{name}.mp4", self._cdn, methods=["GET", "HEAD"])]

    def trap_routes(self) -> list[Route]:
        """On the trap's origin: every request is a violation."""
        return [Route("/{path:path}", self._trap, methods=["GET", "HEAD", "POST"])]

    async def _content(self, request: Request) -> Response:
        world, given = self._world, request.path_params["task_id"]
        task = world.tasks.by_task_id(given)
        if task is None:
            task = world.tasks.by_middleware_id(given)
            if task is not None and not {"result_url_works", "result_url_only"} & task.script.words:
                task = None  # a stock gateway does not know the middleware's id
        refusal = self._content_refusal(request, task, given)
        if refusal is not None or task is None:
            status = refusal.status_code if refusal else 0
            world.record(request, status, kind="content", task_id=task.task_id if task else given)
            return refusal or WireFault("close")
        if "content_redirect" in task.script:
            world.record(request, 302, kind="content", task_id=task.task_id)
            return RedirectResponse(world.link(request, task, "extend"), 302)
        return await self._file(request, task, "extend", "content")

    def _content_refusal(self, request: Request, task: Task | None, given: str) -> Response | None:
        personality = self._world.personality
        if not self._world.key_ok(request):
            return personality.invalid_key()
        if task is None or not task.recorded:
            return personality.no_content()
        if "no_content_route" in task.script or ("result_url_only" in task.script and given == task.task_id):
            return answers.relay_error(404, "not_found", "Invalid URL")
        if "content_502" in task.script:
            return answers.html_page(502)
        now = time.time()
        moment = task.truth(now) if {"recovers", "heals"} & task.script.words else task.seen(now)
        if moment.state != "completed" or task.outcome == "task_missing":
            envelope = task.envelope(moment, lambda one, kind: self._world.link(request, one, kind), "")
            return personality.not_completed(personality.envelope(envelope, task, moment)["status"], moment)
        return None

    async def _cdn(self, request: Request) -> Response:
        kind: LinkKind = "extend" if request.path_params["kind"] == "extend" else "video"
        task = self._world.tasks.by_middleware_id(request.path_params["name"])
        refusal = self._link_refusal(request, task)
        if refusal is not None or task is None:
            status = refusal.status_code if refusal else 0
            self._record(request, "cdn", status, kind="download", task_id=task.task_id if task else "")
            return refusal or WireFault("close")
        target = self._redirect(request, task, kind)
        if target:
            self._record(request, "cdn", 302, kind="download", task_id=task.task_id)
            return RedirectResponse(target, 302)
        return await self._file(request, task, kind, "cdn")

    def _link_refusal(self, request: Request, task: Task | None) -> Response | None:
        query, script = request.query_params, task.script if task else None
        expires, serial = query.get("Expires", ""), query.get("Key-Pair-Id", "")
        if query.get("Signature") != self._world.signature(request.url.path, expires, serial):
            return _denied("SignatureDoesNotMatch")
        if task is None or script is None:
            return Response("not found", 404)
        if float(expires) < time.time() or "links_expired" in script:
            return _denied("Request has expired")
        if "link_403" in script and script.applies("links", int(serial), 1):
            return _denied("AccessDenied")
        return None

    def _redirect(self, request: Request, task: Task, kind: LinkKind) -> str:
        if "link_private" in task.script:
            return "http://169.254.169.254/latest/meta-data/"
        if "link_loopback" in task.script:
            return f"{self._world.trap_url}/private"
        if "link_redirect" in task.script and "hop" not in request.query_params:
            return f"{self._world.link(request, task, kind)}&hop=1"
        return ""

    async def _trap(self, request: Request) -> Response:
        self._record(request, "trap", 200, kind="trap", violation="a redirect to a private address was followed")
        return Response("private")

    def _record(self, request: Request, origin: str, status: int, **more: str | bool | int) -> Entry:
        """Write down a request to an origin that must never see a key."""
        given = [*request.headers.values(), str(request.url)]
        if "authorization" in request.headers or any(map(self._world.shows_a_key, given)):
            more = {"violation": "a key was sent to another host than the gateway", **more}
        return self._world.record(request, status, **{"origin": origin, **more})

    async def _file(self, request: Request, task: Task, kind: LinkKind, origin: str) -> Response:
        task.downloads += request.method == "GET"
        script = task.script
        fault = next((word for word in _FAULTS if word in script), "")
        if script.params.get("where", "both") not in {"both", origin} or not script.applies(
            "downloads", task.downloads, inf
        ):
            fault = ""
        content = await self._world.clips.content(_clip(task, kind))
        content_ranges = "range_content" in script or self._world.personality.forwards_range
        ranges = content_ranges if origin == "content" else "range_ignored" not in script
        start, stop = _range(request, len(content)) if ranges else (0, len(content))
        lying = ranges and "range_lying" in script and "range" in request.headers
        answer = self._broken(fault, content, task) if fault else _whole(content, start, stop, ranges=ranges)
        if lying and not fault:
            answer = _lie(content)
        more: dict[str, str | bool | int] = {"kind": "download", "task_id": task.task_id, "clip": kind, "fault": fault}
        if origin == "cdn":
            self._record(request, origin, answer.status_code, **more)
        else:
            self._world.record(request, answer.status_code, **more)
        return answer

    def _broken(self, fault: str, content: bytes, task: Task) -> Response:
        half = content[: len(content) // 2]
        chunk = f"{len(half):x}\r\n".encode() + half + b"\r\n"
        video = {"content-type": "video/mp4"}
        sized = {**video, "content-length": str(len(content))}
        pause_seconds = self._world.real_seconds(task.script.number("drip", 10)) / _DRIPS
        broken: dict[str, Callable[[], Response]] = {
            "html_file": lambda: HTMLResponse("<!doctype html><html><body>Please enable JavaScript</body></html>"),
            "download_404": lambda: Response("not found", 404),
            "download_502": lambda: answers.html_page(502),
            "truncated": lambda: WireFault("close", head(200, sized) + half),
            "truncated_framed": lambda: Response(half, media_type="video/mp4"),
            "truncated_chunked": lambda: WireFault(
                "close", head(200, {**video, "transfer-encoding": "chunked"}) + chunk
            ),
            "truncated_unframed": lambda: WireFault("close", head(200, {**video, "connection": "close"}) + half),
            "download_reset": lambda: WireFault("reset", head(200, sized) + half),
            "download_stall": lambda: WireFault("hang", head(200, sized) + half),
            "slow": lambda: StreamingResponse(_drip(content, pause_seconds), headers=sized),
        }
        return broken[fault]()


def _clip(task: Task, kind: LinkKind) -> Clip:
    width, height = task.picture
    if "small" in task.script:
        width, height = _SMALL[width > height]
    full = kind == "extend" and "short" not in task.script
    return Clip(_FULL_SECONDS if full else _FIRST_SECONDS, width, height, sound="silent" not in task.script)


def _range(request: Request, size: int) -> tuple[int, int]:
    """The bytes asked for, as start and stop; everything when the header is absent or no single range.

    An unsatisfiable range starts at or after its stop.
    """
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if not wanted or wanted.group(0) == "bytes=-" or request.headers.get("if-range", _etag(size)) != _etag(size):
        return 0, size
    first, last = wanted.groups()
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


def _etag(size: int) -> str:
    return f'"clip-{size}"'


def _whole(content: bytes, start: int, stop: int, *, ranges: bool) -> Response:
    size = len(content)
    headers = {"accept-ranges": "bytes", "etag": _etag(size)} if ranges else {}
    if start >= stop:
        return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
    if stop - start == size:
        return Response(content, headers=headers, media_type="video/mp4")
    headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(content[start:stop], 206, headers, media_type="video/mp4")


def _lie(content: bytes) -> Response:
    size, part = len(content), content[: len(content) // 3]
    headers = {"content-range": f"bytes 0-{len(part) - 1}/{size}", "etag": _etag(size)}
    return Response(part, 206, headers, media_type="video/mp4")


def _denied(reason: str) -> Response:
    body = f"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>{reason}</Message></Error>"
    return Response(body, 403, media_type="application/xml")


async def _drip(content: bytes, pause_seconds: float) -> AsyncIterator[bytes]:
    step = len(content) // _DRIPS + 1
    for start in range(0, len(content), step):
        await asyncio.sleep(pause_seconds)
        yield content[start : start + step]
