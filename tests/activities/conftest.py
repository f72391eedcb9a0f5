"""Activities as the worker builds them, against the simulator and a store on disk."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from temporalio.testing import ActivityEnvironment

from activities.delivery import DeliveryActivities
from activities.polling import PollingActivities
from activities.submission import SubmissionActivities
from longtake.delivery.download import Fetcher
from longtake.gateway.account import AccountClient, ConsoleAccess
from longtake.gateway.client import GatewayClient
from longtake.gateway.extension import ExtensionClient
from longtake.models import GenerateVideoInput, GenerationPolicy
from longtake.storage import Store
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import SubmissionLedger
from simulator import Simulator, SimulatorSettings, serve
from simulator.personalities import DOCUMENT

API_KEY = "the-key-that-pays"
POLICY = GenerationPolicy(overdue_after=timedelta(minutes=7))
"""Not the default, to see it arrive."""


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture
def like() -> str:
    """Which gateway the simulator is like."""
    return DOCUMENT


@pytest.fixture
def server_address() -> str:
    """Where a gateway that rewrites links believes to be reached: stock's default."""
    return "http://localhost:3000"


@pytest.fixture
async def sim(tmp_path: Path, clips: Path, like: str, server_address: str) -> AsyncIterator[Simulator]:
    # Every generation has ended by the first look; delays are real seconds.
    settings = SimulatorSettings(
        tmp_path / "simulator", API_KEY, cache_dir=clips, seconds=1e-6, like=like, server_address=server_address
    )
    async with serve(settings) as simulator:
        yield simulator


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@dataclass
class Worker:
    """What `worker.py` builds, and one activity environment."""

    gateway: GatewayClient
    store: Store
    fetcher: Fetcher
    account_client: AccountClient
    extension: ExtensionClient
    environment: ActivityEnvironment = field(default_factory=ActivityEnvironment)
    heartbeats: list[tuple[Any, ...]] = field(default_factory=list)
    established: bool = False

    def __post_init__(self) -> None:
        self.environment.on_heartbeat = lambda *details: self.heartbeats.append(details)
        self.environment.info = replace(
            self.environment.info, workflow_id="video-order-1", scheduled_time=datetime.now(UTC)
        )
        self.ledger = SubmissionLedger(self.store, longest_exchange=timedelta(seconds=20))
        self.submission = SubmissionActivities(
            gateway=self.gateway,
            store=self.store,
            ledger=self.ledger,
            account_client=self.account_client,
            policy=POLICY,
            extension=self.extension,
            fetcher=self.fetcher,
        )
        self.polling = PollingActivities(
            gateway=self.gateway, store=self.store, account_client=self.account_client, extension=self.extension
        )
        self.delivery = DeliveryActivities(
            gateway=self.gateway,
            store=self.store,
            fetcher=self.fetcher,
            ledger=self.ledger,
            extension=self.extension,
            extension_fetcher=self.fetcher,
        )

    async def run(self, activity: Callable[..., Any], input: object) -> Any:
        if not self.established:
            self.established = True
            with contextlib.suppress(LedgerError):  # a store that cannot hold it: the activity is to say so
                await self.ledger.establish()
        return await self.environment.run(activity, input)


@dataclass
class Hire:
    """Makes workers and closes them."""

    sim: Simulator
    store: Store
    opened: list[Any] = field(default_factory=list)

    def __call__(
        self,
        *,
        url: str | None = None,
        key: str = API_KEY,
        store: Store | None = None,
        submit_seconds: float = 20,
        allow_private_addresses: bool = True,
    ) -> Worker:
        url = url or self.sim.url
        gateway = GatewayClient(
            base_url=url,
            api_keys=[SecretStr(key)],
            submit_timeout=timedelta(seconds=submit_seconds),
            query_timeout=timedelta(seconds=2),
        )
        fetcher = Fetcher(url, lambda: key, allow_private_addresses=allow_private_addresses)
        account_client = AccountClient(
            base_url=url,
            api_key=SecretStr(key),
            console=ConsoleAccess(SecretStr(self.sim.settings.access_token), str(self.sim.settings.user_id)),
        )
        extension = ExtensionClient(
            base_url=url, api_key=SecretStr(key), model="veo_3_1-extend", submit_timeout=timedelta(seconds=5)
        )
        self.opened += [gateway, fetcher, account_client, extension]
        return Worker(gateway, store or self.store, fetcher, account_client, extension)


@pytest.fixture
async def hire(sim: Simulator, store: Store) -> AsyncIterator[Hire]:
    hire = Hire(sim, store)
    yield hire
    for opened in hire.opened:
        await opened.aclose()


@pytest.fixture
def worker(hire: Hire) -> Worker:
    return hire()


@pytest.fixture
def request_for() -> Callable[..., GenerateVideoInput]:
    def make(tag: str = "ok", **fields: Any) -> GenerateVideoInput:
        return GenerateVideoInput.model_validate(
            {
                "model": "veo_3_1-fast-remix",
                "prompt": f"a storm [sim:{tag}]",
                "prompt_extend": "the sea grows calm",
                "size": "1280x720",
                **fields,
            }
        )

    return make
