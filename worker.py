"""The worker: settings -> clients -> activities -> Temporal. `python worker.py`; SIGTERM drains it."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TypedDict

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import Interceptor, Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import SandboxImportNotificationPolicy

from activities.clocks import CompareClocks, WorkerClock
from activities.delivery import DeliveryActivities
from activities.log_context import LogContext
from activities.polling import PollingActivities
from activities.submission import SubmissionActivities
from longtake import __version__
from longtake.client import VideoClient
from longtake.delivery.download import Fetcher
from longtake.delivery.public_network import needless_private_addresses
from longtake.gateway.account import AccountClient, ConsoleAccess
from longtake.gateway.client import GatewayClient
from longtake.gateway.extension import ExtensionClient
from longtake.observability import http_tracing as tracing
from longtake.observability.logs import configure_logging
from longtake.observability.metrics import ACTIVITIES, SUBMISSION_ACTIVITIES, WORKFLOW, start_at_zero
from longtake.observability.running_generations import watch_running_generations
from longtake.private_files import keep_files_private
from longtake.settings import Settings, SettingsProblem
from longtake.storage import Store, StoreProblem
from longtake.submission.errors import LedgerError
from longtake.submission.ledger import SubmissionLedger
from longtake.temporal.connection import TemporalProblem, connect, sdk_runtime
from longtake.temporal.key_ring import PayloadUnreadable
from longtake.temporal.ledger_registration import claim
from longtake.temporal.names import DEPLOYMENT, SUBMISSION_TASK_QUEUE, TASK_QUEUE, WORKFLOW_TYPE
from longtake.temporal.search_attributes import HOW_TO_CREATE_ATTRIBUTES, missing_search_attributes
from workflows.generate_video import GenerateVideoWorkflow
from workflows.input_guard import SingleInputGuard
from workflows.ledger_registration import LedgerRegistrationWorkflow

logger = logging.getLogger("longtake.worker")

DRAIN_MARGIN = timedelta(seconds=45)
"""Over the longest submitting exchange, for connecting before it and the ledger after it: a draining worker finishes
what it sends, so that no restart leaves a submission in doubt."""

"""The name of the Worker Deployment, for `temporal worker deployment …`."""

CONNECT_PATIENCE = timedelta(seconds=10)
"""For a Temporal that is not there when a worker starts; after it, whoever started the worker tries again."""
HEARTBEAT_THROTTLE = timedelta(seconds=4)
"""The SDK would hold heartbeats back for four fifths of their time-out, and the evidence that rides in them too."""


class WorkflowSetup(TypedDict):
    """What worker, tests and replayer must give the SDK alike."""

    workflows: list[type]
    workflow_runner: SandboxedWorkflowRunner
    interceptors: list[Interceptor]


def workflow_setup() -> WorkflowSetup:
    """The workflows, their sandbox, and what stands before it: for worker, tests and replayer alike."""
    return WorkflowSetup(
        workflows=[GenerateVideoWorkflow, LedgerRegistrationWorkflow],
        workflow_runner=sandbox(),
        interceptors=[SingleInputGuard(), LogContext()],
    )


def sandbox() -> SandboxedWorkflowRunner:
    """The workflow sandbox.

    The workflow passes its imports through, because two copies of a model are two types; what they load in turn has
    been loaded by this module already, so a module that slips into the sandbox by mistake is an error.
    """
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_import_notification_policy(
            SandboxImportNotificationPolicy.WARN_ON_DYNAMIC_IMPORT
            | SandboxImportNotificationPolicy.RAISE_ON_UNINTENTIONAL_PASSTHROUGH
        )
    )


def deployment(settings: Settings) -> WorkerDeploymentConfig:
    """Which build this is; with `LONGTAKE_BUILD_ID` Temporal decides which build gets which work.

    Generations that run move on to the current build: what they have paid for is to profit from its fixes, and none of
    them waits for a build that is gone. `docs/adr/0014-worker-versions.md` says more.
    """
    # Without a version the first worker of a process hashes every loaded module (0.6 s), so there is always one.
    version = WorkerDeploymentVersion(deployment_name=DEPLOYMENT, build_id=settings.build_id or __version__)
    if settings.build_id is None:
        return WorkerDeploymentConfig(version=version, use_worker_versioning=False)
    return WorkerDeploymentConfig(
        version=version, use_worker_versioning=True, default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE
    )


class Part(StrEnum):
    """What a process may be restricted to, so that looks and downloads can grow without more submissions at once."""

    SUBMISSION = "submission"
    GENERAL = "general"


@asynccontextmanager
async def running_workers(client: Client, settings: Settings, only: Part | None = None) -> AsyncIterator[None]:
    """The workers of this process, polling, for the time of the block; leaving it drains them.

    Args:
        client: Connected.
        settings: The environment.
        only: One part; another process must do the other.

    Raises:
        SettingsProblem: The gateway is not configured.
        StoreProblem: The store cannot hold the ledger.
        WrongLedger: The namespace belongs to another ledger than the store's; nothing polls.
    """
    async with AsyncExitStack() as stack:
        submission, polling, delivery = await _activities(client, settings, stack)
        meter = (client.service_client.config.runtime or Runtime.default()).metric_meter
        compare_clocks = CompareClocks(WorkerClock(meter.with_additional_attributes({"namespace": client.namespace})))
        setup = workflow_setup()
        setup["interceptors"].append(compare_clocks)
        drain = settings.submit_timeout + DRAIN_MARGIN
        version = deployment(settings)
        if only is not Part.SUBMISSION:
            general = Worker(
                client,
                task_queue=TASK_QUEUE,
                activities=[
                    submission.prepare_generation,
                    submission.record_submission,
                    submission.close_submission,
                    submission.reconcile_submission,
                    submission.resolve_submission,
                    polling.query_generation,
                    delivery.deliver_video,
                ],
                deployment_config=version,
                max_concurrent_activities=64,
                graceful_shutdown_timeout=drain,
                max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                **setup,
            )
            await stack.enter_async_context(general)
        if only is not Part.GENERAL:
            submitting = Worker(
                client,
                task_queue=SUBMISSION_TASK_QUEUE,
                activities=[submission.submit_generation, submission.submit_extension, submission.await_api_key],
                deployment_config=version,
                interceptors=[LogContext(), compare_clocks],
                max_concurrent_activities=settings.submit_concurrency,
                graceful_shutdown_timeout=drain,
                max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            )
            await stack.enter_async_context(submitting)
        yield


async def _activities(
    client: Client, settings: Settings, stack: AsyncExitStack
) -> tuple[SubmissionActivities, PollingActivities, DeliveryActivities]:
    """The activities with their clients, which live as long as the stack."""
    base_url, api_keys = settings.require_gateway()
    tracing.know_gateway(base_url, trace_it=settings.trace_gateway)
    store = Store.open(settings.store_location)
    await store.probe()
    ledger = SubmissionLedger(store, longest_exchange=settings.submit_timeout)
    # Before anything polls: with another store the same keys would be paid again.
    identity = await claim(client, ledger)
    logger.info("ledger in use", extra={"ledger": identity, "store": store.url, "data_dir": str(settings.data_dir)})
    console = None
    if settings.console_token and settings.console_user:
        console = ConsoleAccess(settings.console_token, settings.console_user)
    gateway = await stack.enter_async_context(
        GatewayClient(base_url=base_url, api_keys=api_keys, submit_timeout=settings.submit_timeout)
    )
    account_client = await stack.enter_async_context(
        AccountClient(base_url=base_url, api_key=api_keys[0], console=console)
    )
    extension = extension_fetcher = None
    if settings.extend_url:
        extension = await stack.enter_async_context(
            ExtensionClient(
                base_url=settings.extend_url,
                api_key=settings.extend_api_key or api_keys[0],
                path=settings.extend_path,
                model=settings.extend_model,
                submit_timeout=settings.submit_timeout,
            )
        )
        extension_fetcher = await _fetcher(settings, stack, settings.extend_url, extension)
    fetcher = await _fetcher(settings, stack, base_url, gateway)
    submission = SubmissionActivities(
        gateway=gateway,
        store=store,
        ledger=ledger,
        account_client=account_client,
        policy=settings.policy(),
        extension=extension,
        fetcher=fetcher,
        image_transfer=settings.image_transfer,
        resubmit_not_charged=settings.resubmit_not_charged,
    )
    polling = PollingActivities(gateway=gateway, store=store, account_client=account_client, extension=extension)
    delivery = DeliveryActivities(
        gateway=gateway,
        store=store,
        fetcher=fetcher,
        ledger=ledger,
        extension=extension,
        extension_fetcher=extension_fetcher,
    )
    return submission, polling, delivery


async def _fetcher(
    settings: Settings, stack: AsyncExitStack, url: str, gateway: GatewayClient | ExtensionClient
) -> Fetcher:
    """Downloads; the key that worked last goes to this gateway's own origin only."""

    def key() -> str:
        known = gateway.key_for(url)
        return known.get_secret_value() if known else ""

    return await stack.enter_async_context(
        Fetcher(
            url,
            key,
            allow_private_addresses=settings.allow_private_addresses,
            max_bytes=settings.max_video_mebibytes * 2**20,
        )
    )


async def main(
    ready_file: Path | None, *, stop_with_parent: bool, exit_when_idle: bool, only: Part | None = None
) -> int:
    """Run until SIGTERM or SIGINT, or what the flags say, then drain.

    Returns:
        The exit code: 0, 1 where Temporal is not there (start the worker again later), or 2 where it cannot work as
        configured and another try is pointless.
    """
    # The ids are fields of our log events already; the SDK would add them to each message once more.
    activity.logger.activity_info_on_message = False
    workflow.logger.workflow_info_on_message = False
    configure_logging()
    try:
        settings = Settings.load()
        configure_logging(settings.log_format)
        if needless := await needless_private_addresses(settings):
            logger.warning("private addresses allowed", extra={"error": needless})
        client, missing = await _connect_patiently(settings.metrics_address)
        if missing:
            raise SettingsProblem(
                f"the namespace {client.namespace!r} lacks the search attributes {', '.join(missing)}: "
                f"run `python starter.py setup` once; where the cluster refuses it, {HOW_TO_CREATE_ATTRIBUTES}"
            )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with _measuring(client, settings), running_workers(client, settings, only):
            logger.info(
                "worker ready",
                extra={"version": __version__, "build": settings.build_id, "store": settings.store_location},
            )
            if ready_file:
                ready_file.write_text(str(os.getpid()))
            watchers: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
            if stop_with_parent:
                watchers.append(asyncio.create_task(_parent_gone()))
            if exit_when_idle:
                watchers.append(asyncio.create_task(_idle(client)))
            await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            logger.info("draining: no new work is taken, submissions under way are finished")
    except (LedgerError, PayloadUnreadable, SettingsProblem, StoreProblem, TemporalProblem, ValueError) as error:
        logging.getLogger("longtake").error("%s", error)  # noqa: TRY400 - the message is for a person
        return 1 if isinstance(error, TemporalProblem) else 2
    finally:
        tracing.flush()
    logger.info("worker stopped")
    return 0


async def _connect_patiently(metrics_address: str | None) -> tuple[Client, tuple[str, ...]]:
    """Connect; a Temporal that is just being restarted is waited for.

    Returns:
        The client, and the search attributes that its namespace lacks.

    Raises:
        TemporalProblem: It is not there within `CONNECT_PATIENCE`.
        MetricsAddressUnusable: Metrics cannot be served there.
    """
    deadline = asyncio.get_running_loop().time() + CONNECT_PATIENCE.total_seconds()
    while True:
        try:
            client = await connect(metrics_address=metrics_address)
            missing = await missing_search_attributes(client)
        except TemporalProblem:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(1)
        else:
            return client, missing


@asynccontextmanager
async def _measuring(client: Client, settings: Settings) -> AsyncIterator[None]:
    """Show every counter from the beginning, and what the whole fleet is doing, where metrics are served at all."""
    if settings.metrics_address is None:
        yield
        return
    meter = sdk_runtime(settings.metrics_address).metric_meter
    here = {"namespace": client.namespace, "task_queue": TASK_QUEUE}
    start_at_zero(meter.with_additional_attributes(here | {"workflow_type": WORKFLOW_TYPE}), WORKFLOW)
    for name in ACTIVITIES:
        queue = SUBMISSION_TASK_QUEUE if name in SUBMISSION_ACTIVITIES else TASK_QUEUE
        start_at_zero(meter.with_additional_attributes(here | {"task_queue": queue, "activity_type": name}), name)
    running_generations = meter.with_additional_attributes({"namespace": client.namespace})
    watching = asyncio.create_task(watch_running_generations(VideoClient(client), running_generations))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _parent_gone() -> None:
    """Return when the process that started us has ended, however it ended."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(0.5)


async def _idle(client: Client) -> None:
    """Return when no generation runs any more."""
    silent = False
    while True:
        await asyncio.sleep(5)  # the list that is counted here is some moments behind
        try:
            count = await client.count_workflows(f'WorkflowType = "{WORKFLOW_TYPE}" AND ExecutionStatus = "Running"')
        except RPCError as error:
            # Nobody knows whether a generation runs: that is no reason to leave it alone.
            if not silent:
                logger.warning("running generations cannot be counted: %s", error.message)
            silent = True
            continue
        silent = False
        if not count.count:
            return


if __name__ == "__main__":
    keep_files_private()
    parser = argparse.ArgumentParser(description="Run the worker until SIGTERM. Settings: see the README's table.")
    parser.add_argument("--ready-file", type=Path, help="write the process id here once the worker polls")
    parser.add_argument(
        "--only", type=Part, choices=[*Part], help="take this part of the work; another worker must take the other"
    )
    parser.add_argument("--stop-with-parent", action="store_true", help="drain when the parent process has ended")
    parser.add_argument("--exit-when-idle", action="store_true", help="drain when no generation runs any more")
    flags = parser.parse_args()
    code = asyncio.run(
        main(
            flags.ready_file,
            stop_with_parent=flags.stop_with_parent,
            exit_when_idle=flags.exit_when_idle,
            only=flags.only,
        )
    )
    # The SDK's native threads abort a short-lived interpreter at exit now and then (sdk-python issue 300).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
