"""The worker: wires settings, clients and activities, and polls Temporal. Run `python worker.py`; SIGTERM drains it."""

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
from functools import partial
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
"""Added to the submission timeout, for connecting before and the ledger after it: a draining worker finishes its
submissions, so that no restart leaves one in doubt."""

"""The name of the Worker Deployment, for `temporal worker deployment …`."""

CONNECT_PATIENCE = timedelta(seconds=10)
"""How long a starting worker waits for Temporal; after it the worker exits, and its supervisor restarts it."""
HEARTBEAT_THROTTLE = timedelta(seconds=4)
"""By default the SDK delays heartbeats by four fifths of their timeout, and with them the state that they carry."""


class WorkflowSetup(TypedDict):
    """The SDK options that worker, tests and replayer must share."""

    workflows: list[type]
    workflow_runner: SandboxedWorkflowRunner
    interceptors: list[Interceptor]


def workflow_setup() -> WorkflowSetup:
    """The workflows, their sandbox and interceptors, for worker, tests and replayer."""
    return WorkflowSetup(
        workflows=[GenerateVideoWorkflow, LedgerRegistrationWorkflow],
        workflow_runner=sandbox(),
        interceptors=[SingleInputGuard(), LogContext()],
    )


def sandbox() -> SandboxedWorkflowRunner:
    """The workflow sandbox.

    The workflow passes its imports through, because two copies of a model are two types. This module has loaded all of
    them already, so a module that enters the sandbox by mistake is an error.
    """
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_import_notification_policy(
            SandboxImportNotificationPolicy.WARN_ON_DYNAMIC_IMPORT
            | SandboxImportNotificationPolicy.RAISE_ON_UNINTENTIONAL_PASSTHROUGH
        )
    )


def deployment(settings: Settings) -> WorkerDeploymentConfig:
    """The worker's version; with `LONGTAKE_BUILD_ID`, Temporal decides which build gets which work.

    Running generations move to the current build, so that they get its fixes and never wait for a build that is gone:
    docs/adr/0014-worker-versions.md.
    """
    # Without a version the first worker of a process hashes every loaded module (0.6 s), so there is always one.
    version = WorkerDeploymentVersion(deployment_name=DEPLOYMENT, build_id=settings.build_id or __version__)
    if settings.build_id is None:
        return WorkerDeploymentConfig(version=version, use_worker_versioning=False)
    return WorkerDeploymentConfig(
        version=version, use_worker_versioning=True, default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE
    )


class Part(StrEnum):
    """What a process can be limited to: polls and downloads scale without more concurrent submissions."""

    SUBMISSION = "submission"
    GENERAL = "general"


@asynccontextmanager
async def running_workers(client: Client, settings: Settings, only: Part | None = None) -> AsyncIterator[None]:
    """The workers of this process, polling, for the time of the block; the end of the block drains them.

    Args:
        client: Connected.
        settings: The environment.
        only: Run this part only; another process must run the other one.

    Raises:
        SettingsProblem: The gateway is not configured.
        StoreProblem: The store cannot hold the ledger.
        WrongLedger: The namespace belongs to another ledger than the store's; no worker starts.
    """
    async with AsyncExitStack() as stack:
        submission, polling, delivery = await _activities(client, settings, stack)
        meter = (client.service_client.config.runtime or Runtime.default()).metric_meter
        compare_clocks = CompareClocks(WorkerClock(meter.with_additional_attributes({"namespace": client.namespace})))
        setup = workflow_setup()
        setup["interceptors"].append(compare_clocks)
        worker = partial(
            Worker,
            client,
            deployment_config=deployment(settings),
            graceful_shutdown_timeout=settings.submit_timeout + DRAIN_MARGIN,
            max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        )
        if only is not Part.SUBMISSION:
            general = worker(
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
                max_concurrent_activities=64,
                **setup,
            )
            await stack.enter_async_context(general)
        if only is not Part.GENERAL:
            submitting = worker(
                task_queue=SUBMISSION_TASK_QUEUE,
                activities=[submission.submit_generation, submission.submit_extension, submission.await_api_key],
                interceptors=[LogContext(), compare_clocks],
                max_concurrent_activities=settings.submit_concurrency,
            )
            await stack.enter_async_context(submitting)
        yield


async def _activities(
    client: Client, settings: Settings, stack: AsyncExitStack
) -> tuple[SubmissionActivities, PollingActivities, DeliveryActivities]:
    """The activities with their clients, which the stack closes."""
    base_url, api_keys = settings.require_gateway()
    tracing.know_gateway(base_url, trace_it=settings.trace_gateway)
    store = Store.open(settings.store_location)
    await store.probe()
    ledger = SubmissionLedger(store, longest_exchange=settings.submit_timeout)
    # Before any worker polls: with another ledger, the same keys would be paid again.
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
    """Downloads. Only the gateway's own origin gets the API key that worked last."""

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
    ready_file: Path | None, *, stop_with_parent: int | None, exit_when_idle: bool, only: Part | None = None
) -> int:
    """Run until SIGTERM or SIGINT, or until a flag's condition holds; then drain.

    Returns:
        The exit code: 0; 1 if Temporal is unavailable (start the worker again later); 2 if the worker is misconfigured.
    """
    # The ids are fields of our log events; the SDK would repeat them in each message.
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
                f"run `python starter.py setup` once; if the cluster refuses it, {HOW_TO_CREATE_ATTRIBUTES}"
            )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with _exporting_metrics(client, settings), running_workers(client, settings, only):
            logger.info(
                "worker ready",
                extra={"version": __version__, "build": settings.build_id, "store": settings.store_location},
            )
            if ready_file:
                ready_file.write_text(str(os.getpid()))
            watchers: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
            if stop_with_parent is not None:
                watchers.append(asyncio.create_task(_parent_gone(stop_with_parent)))
            if exit_when_idle:
                watchers.append(asyncio.create_task(_idle(client)))
            await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            logger.info("draining: taking no new work, finishing running submissions")
    except (LedgerError, PayloadUnreadable, SettingsProblem, StoreProblem, TemporalProblem, ValueError) as error:
        logging.getLogger("longtake").error("%s", error)  # noqa: TRY400 - a traceback would not help the operator
        return 1 if isinstance(error, TemporalProblem) else 2
    finally:
        tracing.flush()
    logger.info("worker stopped")
    return 0


async def _connect_patiently(metrics_address: str | None) -> tuple[Client, tuple[str, ...]]:
    """Connect; wait while Temporal restarts.

    Returns:
        The client, and the search attributes that the namespace lacks.

    Raises:
        TemporalProblem: Temporal is unavailable for `CONNECT_PATIENCE`.
        MetricsAddressUnusable: The worker cannot serve metrics there.
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
async def _exporting_metrics(client: Client, settings: Settings) -> AsyncIterator[None]:
    """Export every counter from zero, and the numbers of running generations, if this worker serves metrics."""
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


async def _parent_gone(parent: int) -> None:
    """Return when the parent process has ended, however it ended, be it before this one began to look."""
    while os.getppid() == parent:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.5)


async def _idle(client: Client) -> None:
    """Return when no generation is running."""
    warned = False
    while True:
        await asyncio.sleep(5)  # the visibility store is eventually consistent
        try:
            count = await client.count_workflows(f'WorkflowType = "{WORKFLOW_TYPE}" AND ExecutionStatus = "Running"')
        except RPCError as error:
            # A generation may be running, so the worker must stay.
            if not warned:
                logger.warning("cannot count running generations: %s", error.message)
            warned = True
            continue
        warned = False
        if not count.count:
            return


if __name__ == "__main__":
    keep_files_private()
    parser = argparse.ArgumentParser(
        description="Run the worker until SIGTERM. docs/configuration.md lists its settings."
    )
    parser.add_argument("--ready-file", type=Path, help="write the process id to this file when the worker polls")
    parser.add_argument(
        "--only",
        type=Part,
        choices=[*Part],
        help="run this part of the work only; another worker must run the other part",
    )
    parser.add_argument(
        "--stop-with-parent", type=int, metavar="PID", help="drain when the parent process, which has this id, ends"
    )
    parser.add_argument("--exit-when-idle", action="store_true", help="drain when no generation is running")
    flags = parser.parse_args()
    code = asyncio.run(
        main(
            flags.ready_file,
            stop_with_parent=flags.stop_with_parent,
            exit_when_idle=flags.exit_when_idle,
            only=flags.only,
        )
    )
    # The SDK's native threads sometimes abort a short-lived interpreter at exit (sdk-python issue 300).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
