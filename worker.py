"""The worker: settings -> clients -> activities -> Temporal. `python worker.py`; SIGTERM drains it."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client
from temporalio.common import WorkerDeploymentVersion
from temporalio.worker import Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import SandboxImportNotificationPolicy

from activities.delivery import DeliveryActivities
from activities.polling import PollingActivities
from activities.submission import SubmissionActivities
from longtake import __version__
from longtake.delivery import Fetcher
from longtake.gateway.client import GatewayClient
from longtake.ledger import SubmissionLedger
from longtake.logs import configure_logging
from longtake.settings import Settings, SettingsProblem
from longtake.storage import Store, StoreProblem
from longtake.temporal import (
    SUBMISSION_TASK_QUEUE,
    TASK_QUEUE,
    TemporalProblem,
    connect,
    missing_search_attributes,
)
from workflows.generate_video import GenerateVideoWorkflow

logger = logging.getLogger("longtake.worker")

DRAIN_MARGIN = timedelta(seconds=10)
"""Over the longest submitting exchange: a draining worker finishes it, so that no restart leaves one in doubt."""


def sandbox() -> SandboxedWorkflowRunner:
    """The workflow sandbox, for worker, tests and replayer alike.

    The workflow passes its imports through, because two copies of a model are two types; what they load in turn has
    been loaded by this module already, so a module that slips into the sandbox by mistake is an error.
    """
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_import_notification_policy(
            SandboxImportNotificationPolicy.WARN_ON_DYNAMIC_IMPORT
            | SandboxImportNotificationPolicy.RAISE_ON_UNINTENTIONAL_PASSTHROUGH
        )
    )


@asynccontextmanager
async def running_workers(client: Client, settings: Settings) -> AsyncIterator[tuple[Worker, Worker]]:
    """Both workers of this process, polling, for the time of the block; leaving it drains them.

    Raises:
        SettingsProblem: The gateway is not configured.
        StoreProblem: The store cannot hold the ledger.
    """
    base_url, api_keys = settings.require_gateway()
    store = Store.open(settings.store_location)
    await store.probe()
    policy = settings.policy()
    drain = settings.submit_timeout + DRAIN_MARGIN
    # Without a version the first worker of a process hashes every loaded module (0.6 s).
    version = WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name="longtake", build_id=__version__), use_worker_versioning=False
    )
    async with (
        GatewayClient(base_url=base_url, api_keys=api_keys, submit_timeout=settings.submit_timeout) as gateway,
        Fetcher(
            gateway_origin=gateway.origin,
            key_for=gateway.key_for,
            allow_private_addresses=settings.allow_private_addresses,
            max_bytes=settings.max_video_mebibytes * 2**20,
        ) as fetcher,
    ):
        submission = SubmissionActivities(
            gateway=gateway,
            store=store,
            ledger=SubmissionLedger(store, longest_exchange=settings.submit_timeout),
            policy=policy,
        )
        polling = PollingActivities(gateway=gateway, store=store)
        delivery = DeliveryActivities(gateway=gateway, store=store, fetcher=fetcher)
        general = Worker(
            client,
            task_queue=TASK_QUEUE,
            workflows=[GenerateVideoWorkflow],
            activities=[
                submission.prepare_generation,
                submission.record_submission,
                polling.query_generation,
                delivery.deliver_video,
            ],
            workflow_runner=sandbox(),
            deployment_config=version,
            max_concurrent_activities=64,
            graceful_shutdown_timeout=drain,
        )
        submitting = Worker(
            client,
            task_queue=SUBMISSION_TASK_QUEUE,
            activities=[submission.submit_generation],
            deployment_config=version,
            max_concurrent_activities=settings.submit_concurrency,
            graceful_shutdown_timeout=drain,
        )
        async with general, submitting:
            yield general, submitting


async def main(ready_file: Path | None = None) -> int:
    """Run until SIGTERM or SIGINT, then drain; `ready_file` is written once it polls."""
    try:
        settings = Settings.load()
        configure_logging(settings.log_format)
        client = await connect()
        if missing := await missing_search_attributes(client):
            raise TemporalProblem(
                f"the namespace {client.namespace!r} lacks the search attributes {', '.join(missing)}: "
                "run `python starter.py setup` once"
            )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with running_workers(client, settings):
            logger.info("worker ready version=%s store=%s", __version__, settings.store_location)
            if ready_file:
                ready_file.write_text(str(os.getpid()))
            await stop.wait()
            logger.info("draining: no new work is taken, submissions under way are finished")
    except (SettingsProblem, StoreProblem, TemporalProblem, ValueError) as error:
        logging.getLogger("longtake").error("%s", error)  # noqa: TRY400 - the message is for a person
        return 2
    logger.info("worker stopped")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run the worker until SIGTERM. Settings: the README's table.")
    parser.add_argument("--ready-file", type=Path, help="write the process id here once the worker polls")
    code = asyncio.run(main(parser.parse_args().ready_file))
    # The SDK's native threads abort a short-lived interpreter at exit now and then (sdk-python issue 300).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
