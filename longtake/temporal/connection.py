"""Connects to Temporal with the product's data converter, runtime, logs, metrics and traces."""

import functools
import logging
from dataclasses import dataclass

from temporalio.client import Client, Plugin
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter
from temporalio.envconfig import ClientConfigProfile
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
from temporalio.service import RPCError

from longtake.observability.http_tracing import MISSING_EXTRA, exporter_names
from longtake.observability.metrics import BUCKETS
from longtake.settings import Settings, SettingsProblem
from longtake.temporal.codec import encrypting
from longtake.temporal.connection_errors import explain
from longtake.temporal.key_ring import KeyRing
from longtake.temporal.names import DEFAULT_ADDRESS

DATA_CONVERTER = encrypting(pydantic_data_converter, KeyRing())
"""The converter without encryption; see `data_converter`. Workers, clients, tests and replayers need the same one."""


def data_converter(settings: Settings) -> DataConverter:
    """The product's data converter. It encrypts if `LONGTAKE_ENCRYPTION_KEYS` has keys."""
    ring = KeyRing(settings.encryption_keys)
    return encrypting(pydantic_data_converter, ring, strict=settings.require_encryption)


class MetricsAddressUnusable(ValueError):
    """Metrics cannot be served at the configured address; the message says what to do."""


class TemporalProblem(Exception):
    """Temporal cannot be used as it is configured; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """The address and namespace of a connection, without secrets: for messages."""

    address: str
    namespace: str


def configured_profile() -> ClientConfigProfile:
    """Read the `TEMPORAL_*` variables and the profile file.

    Raises:
        TemporalProblem: The file or a variable cannot be read.
    """
    try:
        return ClientConfigProfile.load(config_file_strict=True)
    except Exception as error:  # noqa: BLE001 - the SDK raises bare RuntimeError, ValueError and OSError here
        raise TemporalProblem(f"Temporal's configuration cannot be read: {error}") from None


def is_configured() -> bool:
    """Whether an address is configured. If not, commands start the embedded server.

    Raises:
        TemporalProblem: The configuration cannot be read.
    """
    return bool(configured_profile().address)


def target() -> Target:
    """The address and namespace that `connect` uses."""
    profile = configured_profile()
    return Target(profile.address or DEFAULT_ADDRESS, profile.namespace or "default")


@functools.cache
def sdk_runtime(metrics_address: str | None = None) -> Runtime:
    """The process's only SDK runtime.

    The SDK's core logs to standard output by default, where our results go. This runtime sends its log to ours.

    Args:
        metrics_address: `IP:PORT` where Prometheus can scrape the SDK's metrics and ours; None serves none.

    Raises:
        MetricsAddressUnusable: The address is in use, or this machine does not have it.
    """
    metrics = metrics_address and PrometheusConfig(
        bind_address=metrics_address,
        counters_total_suffix=True,
        unit_suffix=True,
        durations_as_seconds=True,
        histogram_bucket_overrides=BUCKETS,
    )
    try:
        return Runtime(
            telemetry=TelemetryConfig(
                logging=LoggingConfig(
                    filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
                    forwarding=LogForwardingConfig(
                        logger=logging.getLogger("temporalio.core"),
                        # Our log events have them as fields.
                        prepend_target_on_message=False,
                        append_log_fields_to_message=False,
                    ),
                ),
                metrics=metrics or None,
                # It adds service_name="temporal-core-sdk" to every series.
                attach_service_name=False,
            )
        )
    except ValueError as error:
        raise MetricsAddressUnusable(
            f"LONGTAKE_METRICS_ADDRESS: metrics cannot be served at {metrics_address} ({error}): give each worker "
            "on a machine a different port, or unset it"
        ) from None


async def connect(address: str | None = None, *, metrics_address: str | None = None, **options: object) -> Client:
    """Connect to Temporal with the product's data converter.

    Args:
        address: Connects there instead and ignores the profile (embedded server).
        metrics_address: For workers; see `sdk_runtime`.
        options: Passed on to `Client.connect`.

    Raises:
        TemporalProblem: Temporal cannot be reached, or its configuration is unusable.
        MetricsAddressUnusable: See `sdk_runtime`.
        SettingsProblem: A `LONGTAKE_*` variable is unusable, or the packages for traces (`OTEL_…`) are missing.
    """
    runtime = sdk_runtime(metrics_address)
    options.setdefault("data_converter", data_converter(Settings.load()))
    where = Target(address, "default") if address else target()
    options.setdefault("plugins", plugins())
    profile = ClientConfigProfile() if address else configured_profile()
    config: dict[str, object] = {}
    try:
        config = {**profile.to_client_connect_config(), "target_host": where.address}
        return await Client.connect(**{"runtime": runtime, **config, **options})  # type: ignore[arg-type]
    except OSError as error:  # the profile names files
        raise TemporalProblem(f"Temporal's profile names {error.filename}: {error.strerror}") from None
    except (RuntimeError, RPCError, ValueError) as error:
        has_certificate = bool(profile.tls and profile.tls.client_cert)
        reason = explain(str(error), tls=bool(config.get("tls") or profile.api_key), client_certificate=has_certificate)
        raise TemporalProblem(f"Temporal at {where.address}: {reason}") from None


def plugins() -> list[Plugin]:
    """The plugins of the client and so of its workers: tracing, if the standard `OTEL_…` variables switch it on.

    Raises:
        SettingsProblem: Tracing is switched on, and its packages are missing.
    """
    if not exporter_names():
        return []
    try:
        from longtake.temporal.tracing import plugin  # noqa: PLC0415 - an optional extra, only where it is wanted
    except ModuleNotFoundError as error:
        raise SettingsProblem(f"traces are switched on, and {error.name} is missing: {MISSING_EXTRA}") from None
    return [plugin()]
