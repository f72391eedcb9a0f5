"""What the simulator is set to, and everything it holds while it runs."""

import hashlib
import hmac
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request

from simulator.clips import ClipCache
from simulator.ledger import Entry, Ledger
from simulator.personalities import DOCUMENT, PERSONALITIES, Document
from simulator.scenarios import Script
from simulator.tasks import LinkKind, Task, TaskBook

MODELS = (
    "veo_3_1-fast-remix",
    "veo_3_1-fast-fl-remix",
    "veo_3_1-fast-hd-remix",
    "veo_3_1-fast-fl-hd-remix",
    "veo_3_1-hd-remix",
    "veo_3_1-hd-fl-remix",
    "veo_3_1-remix",
    "veo_3_1-fl-remix",
)
SIZES = ("1280x720", "720x1280", "1920x1080", "1080x1920")

_LOG_WINDOW_SECONDS = 20 * 60
_API_WINDOW_SECONDS = 3 * 60

ACCOUNT_FAULTS = {
    "tasks": ("", "database_error", "401", "403", "404", "429", "500"),
    "log": ("", "401", "403", "404", "429", "500"),
    "fetch": ("", "403", "404", "500"),
}
"""What can be wrong with the task list, the usage log and `/suno/fetch`; empty: nothing."""


@dataclass(frozen=True)
class SimulatorSettings:
    """How one simulator is set up.

    Attributes:
        data_dir: Where the ledger, the tasks and (without `cache_dir`) the clips are kept.
        api_key: The first valid key; more can be set while it runs.
        host: Address to listen on.
        port: The gateway's port; 0 for a free one. `cdn_port` likewise for the CDN's origin.
        speed: Divides every simulated duration.
        seconds: Simulated seconds of a generation whose scenario does not say.
        cache_dir: Where rendered clips are kept; may be shared between simulators.
        warm: Whether to render the usual clips at once, in the background.
        scenario: The scenario of a prompt without a tag.
        link_seconds: Simulated lifetime of a signed link.
        price: Quota of a submission.
        granted_quota: What the account may spend before 403 `insufficient_user_quota`.
        key_quota: What each key may spend before 403 `pre_consume_token_quota_failed`.
        like: The personality: which gateway this one is like.
        server_address: Where a personality that rewrites links believes to be reached (stock's default).
        image_files: Whether images may be file parts; None: as the personality has it.
        access_token: The console's token, for `/api/task/self`; `user_id` goes with it.
        account_open: Whether the routes of the account's records are open.
        account_calls: Calls of `/api/log/token` and `/api/usage/token/` per 20 simulated minutes; then 429.
        api_calls: Calls of everything under `/api` per 3 simulated minutes; then 429.
        rate_retry_after: Whether those 429 carry `Retry-After`, as newer builds do.
        remix: Whether `/remix` works for every task.
        max_body_bytes: Above it the gateway answers 400.
        proxy_body_bytes: Above it a proxy before the gateway answers 413 with HTML; 0 for no such proxy.
    """

    data_dir: Path
    api_key: str
    host: str = "127.0.0.1"
    port: int = 0
    cdn_port: int = 0
    speed: float = 1.0
    seconds: float = 120.0
    cache_dir: Path | None = None
    warm: bool = False
    scenario: str = ""
    link_seconds: float = 86_400.0
    price: int = 425_000
    granted_quota: int = 10**12
    key_quota: int = 10**12
    like: str = DOCUMENT
    server_address: str = "http://localhost:3000"
    image_files: bool | None = None
    access_token: str = "simulator-access-token"  # noqa: S105 (a stand-in's token protects nothing)
    user_id: int = 2
    account_open: bool = True
    account_calls: int = 20
    api_calls: int = 360
    rate_retry_after: bool = False
    remix: bool = False
    max_body_bytes: int = 128 * 2**20
    proxy_body_bytes: int = 0


@dataclass
class World:
    """One simulator's state, shared by its origins."""

    settings: SimulatorSettings
    ledger: Ledger
    tasks: TaskBook
    clips: ClipCache
    keys: set[str]
    default_scenario: str
    account_open: bool
    cdn_url: str = ""
    trap_url: str = ""
    outage_until: float = 0.0
    account_quota: int = 0
    key_quota: int = 0
    account_faults: dict[str, str] = field(default_factory=dict)
    calls: dict[str, deque[float]] = field(default_factory=lambda: {"log": deque(), "api": deque()})
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def load(cls, settings: SimulatorSettings) -> "World":
        """Start from what an earlier simulator left in the same directory."""
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(settings.data_dir / "ledger.jsonl")
        world = cls(
            settings=settings,
            ledger=ledger,
            tasks=TaskBook(settings.data_dir / "tasks.jsonl"),
            clips=ClipCache(settings.cache_dir or settings.data_dir / "clips"),
            keys={settings.api_key},
            default_scenario=settings.scenario,
            account_open=settings.account_open,
            account_quota=settings.granted_quota,
            key_quota=settings.key_quota,
        )
        for entry in ledger.submissions():
            if "attempt" in entry:
                world.attempts[entry["kind"], entry["prompt"]] += 1
        return world

    @property
    def personality(self) -> Document:
        """Which gateway this one is like."""
        return PERSONALITIES[self.settings.like]

    @property
    def takes_files(self) -> bool:
        """Whether images may be file parts."""
        given = self.settings.image_files
        return self.personality.takes_files if given is None else given

    @property
    def out(self) -> bool:
        """Whether the gateway is out of order at this moment."""
        return time.time() < self.outage_until

    def real_seconds(self, simulated: float) -> float:
        """A simulated duration in real seconds."""
        return simulated / self.settings.speed

    def key_ok(self, request: Request) -> bool:
        """Whether the request carries a valid key."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key.strip() in self.keys

    def record(self, request: Request, status: int, **more: Any) -> Entry:
        """Write a request to the ledger; call it before the answer leaves. Status 0: no whole answer was sent."""
        traced = {"traceparent": trace} if (trace := request.headers.get("traceparent")) else {}
        return self.ledger.append(
            {
                "origin": "gateway",
                "method": request.method,
                "path": request.url.path,
                "status": status,
                "request_id": getattr(request.state, "request_id", ""),
                "key_ok": self.key_ok(request),
                **traced,
                **more,
            }
        )

    def shows_a_key(self, text: str) -> bool:
        """Whether the text contains a valid key as a separate word."""
        return any(re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", text) for key in self.keys)

    def new_task(  # noqa: PLR0913, PLR0917 (what a job is made of)
        self,
        script: Script,
        model: str,
        size: str,
        prompt: str,
        quota: int,
        remixed_from: str = "",
        *,
        request_id: str = "",
        recorded: bool = True,
    ) -> Task:
        """Make a paid job, which the gateway knows at once or (`recorded`) not yet."""
        seconds = script.number("seconds", self.settings.seconds)
        poll = script.number("gateway_poll", min(15.0, seconds / 8))
        task = Task(
            serial=self.tasks.next_serial(),
            model=model,
            size=size,
            prompt=prompt,
            scenario=script.text,
            seconds=max(self.real_seconds(seconds), 1e-6),
            poll_seconds=max(self.real_seconds(poll), 1e-7),
            quota=quota,
            remixed_from=remixed_from,
            request_id=request_id,
            recorded=recorded,
        )
        return self.tasks.add(task)

    def used_quota(self) -> int:
        """What the account has spent, refunds taken off."""
        now = time.time()
        return sum(task.quota for task in self.tasks.recorded() if not task.refunded(now))

    def link(self, request: Request, task: Task, kind: LinkKind) -> str:
        """A signed link to the CDN, under the name by which the client reached the simulator.

        It is signed afresh, unless the personality keeps links.
        """
        lifetime = self.real_seconds(task.script.number("link_seconds", self.settings.link_seconds))
        now = time.time()
        signed_at = (task.truth(now).ended_at if self.personality.keeps_links else 0) or now
        expires, serial = f"{signed_at + lifetime:.3f}", str(task.success_polls)
        path = f"/cdn/{kind}/{task.middleware_id}.mp4"
        signature = self.signature(path, expires, serial)
        query = f"Expires={expires}&Signature={signature}&Key-Pair-Id={serial}"
        return f"http://{request.url.hostname}:{urlsplit(self.cdn_url).port}{path}?{query}"

    def signature(self, path: str, expires: str, serial: str) -> str:
        """The signature of a link."""
        secret = b"a stand-in's links protect nothing"
        return hmac.new(secret, f"{path} {expires} {serial}".encode(), hashlib.sha256).hexdigest()

    def wait_for_a_call(self, path: str) -> float:
        """Count one call under `/api`; the real seconds until one is allowed again, 0 where this one is."""
        wait = self._count("api", self.settings.api_calls, self.real_seconds(_API_WINDOW_SECONDS))
        if not path.startswith("/api/task/"):
            wait = max(wait, self._count("log", self.settings.account_calls, self.real_seconds(_LOG_WINDOW_SECONDS)))
        return wait

    def _count(self, what: str, most: int, window: float) -> float:
        calls, now = self.calls[what], time.time()
        while calls and calls[0] < now - window:
            calls.popleft()
        calls.append(now)
        return 0.0 if len(calls) <= most else calls[0] + window - now

    def reset(self) -> None:
        """As new, except for what has been rendered."""
        self.ledger.reset()
        self.tasks.reset()
        self.attempts.clear()
        for calls in self.calls.values():
            calls.clear()
        self.account_quota, self.key_quota = self.settings.granted_quota, self.settings.key_quota
        self.account_faults.clear()
        self.keys = {self.settings.api_key}
        self.default_scenario = self.settings.scenario
        self.account_open = self.settings.account_open
        self.outage_until = 0.0
