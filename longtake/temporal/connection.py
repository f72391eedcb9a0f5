"""Names and connections of Temporal: what the worker, the client and other people's SDKs must agree on."""

import functools
import logging
import re
from dataclasses import dataclass
from typing import Final

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client, Plugin
from temporalio.common import SearchAttributeKey
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
from temporalio.service import RPCError, RPCStatusCode

from longtake.observability.http_tracing import MISSING_EXTRA, exporter_names
from longtake.observability.metrics import BUCKETS
from longtake.settings import Settings, SettingsProblem
from longtake.temporal.codec import encrypting
from longtake.temporal.connection_errors import explain
from longtake.temporal.key_ring import KeyRing

TASK_QUEUE: Final = "video-generation"
SUBMISSION_TASK_QUEUE: Final = "video-generation-submission"
"""Its own, so that few submissions run at once and a crash leaves few in doubt."""
WORKFLOW_TYPE: Final = "GenerateVideo"
LEDGER_WORKFLOW_TYPE: Final = "LedgerRegistration"
"""Of the one workflow in each namespace that says which ledger it belongs to; see `longtake.temporal.ledger_registration`."""
DEFAULT_ADDRESS: Final = "localhost:7233"

DATA_CONVERTER = encrypting(pydantic_data_converter, KeyRing())
"""The converter of workers, clients, tests and replayers alike, without encryption; see `data_converter`."""

VIDEO_MODEL = SearchAttributeKey.for_keyword("VideoModel")
VIDEO_STAGE = SearchAttributeKey.for_keyword("VideoStage")
VIDEO_OUTCOME = SearchAttributeKey.for_keyword("VideoOutcome")
VIDEO_ATTENTION = SearchAttributeKey.for_keyword("VideoAttention")
VIDEO_PAID = SearchAttributeKey.for_keyword("VideoPaid")
GATEWAY_TASK_ID = SearchAttributeKey.for_keyword("GatewayTaskId")
SEARCH_ATTRIBUTES: Final = (VIDEO_MODEL, VIDEO_STAGE, VIDEO_OUTCOME, VIDEO_ATTENTION, VIDEO_PAID, GATEWAY_TASK_ID)

HOW_TO_CREATE_ATTRIBUTES: Final = "make them with the cluster's own tools, each a Keyword (deploy/README.md)"
"""What to do about missing search attributes where `starter.py setup` is refused."""
_NOT_FOR_US: Final = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED)
"""A cluster says that its OperatorService is not for this client. UNAUTHENTICATED is another matter: a useless key."""

_ID_PREFIX: Final = "video-"
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,199}")


def data_converter(settings: Settings) -> DataConverter:
    """The product's converter; it encrypts where `LONGTAKE_ENCRYPTION_KEYS` has keys."""
    ring = KeyRing(settings.encryption_keys)
    return encrypting(pydantic_data_converter, ring, strict=settings.require_encryption)


class InvalidKey(ValueError):
    """A business key that cannot name a generation."""


class MetricsAddressUnusable(ValueError):
    """Metrics cannot be served where they should be; the message says what to do."""


class TemporalProblem(Exception):
    """Temporal cannot be used as configured; the message says what to do."""


def workflow_id(key: str) -> str:
    """The workflow id of a generation.

    Raises:
        InvalidKey: The key has characters that make trouble in ids, URLs or file names.
    """
    if not _KEY.fullmatch(key):
        raise InvalidKey(
            "a key is 1 to 200 characters: letters, digits and . _ : @ + = - (not first); for anything else, hash it"
        )
    return f"{_ID_PREFIX}{key}"


def key_of(workflow_id: str) -> str:
    """The business key of a workflow id, whoever chose it."""
    return workflow_id.removeprefix(_ID_PREFIX)


@dataclass(frozen=True)
class Target:
    """Where a connection goes, for people: without secrets."""

    address: str
    namespace: str


def configured_profile() -> ClientConfigProfile:
    """What `TEMPORAL_*` variables and the profile file say.

    Raises:
        TemporalProblem: The file or a variable cannot be read.
    """
    try:
        return ClientConfigProfile.load(config_file_strict=True)
    except Exception as error:  # noqa: BLE001 - the SDK raises bare RuntimeError, ValueError and OSError here
        raise TemporalProblem(f"Temporal's configuration cannot be read: {error}") from None


def is_configured() -> bool:
    """Whether an address is configured, so that no embedded server is meant.

    Raises:
        TemporalProblem: The configuration cannot be read.
    """
    return bool(configured_profile().address)


def target() -> Target:
    """Where `connect` goes."""
    profile = configured_profile()
    return Target(profile.address or DEFAULT_ADDRESS, profile.namespace or "default")


@functools.cache
def sdk_runtime(metrics_address: str | None = None) -> Runtime:
    """One for each process. The SDK's core would log to standard output, where results go: it logs as we do.

    Args:
        metrics_address: Where to serve the SDK's metrics and ours to Prometheus: an IP address and a port.

    Raises:
        MetricsAddressUnusable: It is taken, or none of this machine's.
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
                        # They are fields of our log events already.
                        prepend_target_on_message=False,
                        append_log_fields_to_message=False,
                    ),
                ),
                metrics=metrics or None,
                # It would say "temporal-core-sdk" on every series.
                attach_service_name=False,
            )
        )
    except ValueError as error:
        raise MetricsAddressUnusable(
            f"LONGTAKE_METRICS_ADDRESS: metrics cannot be served at {metrics_address} ({error}): give each worker of a "
            "machine an address of its own, or leave it unset"
        ) from None


async def connect(address: str | None = None, *, metrics_address: str | None = None, **options: object) -> Client:
    """Connect with the product's data converter, which encrypts where `LONGTAKE_ENCRYPTION_KEYS` is set.

    Args:
        address: Overrides the configured one, and with it every other setting of the profile (embedded server).
        metrics_address: See `sdk_runtime`; for workers.
        options: Passed on to `Client.connect`.

    Raises:
        TemporalProblem: It cannot be reached, or the configuration is unusable.
        MetricsAddressUnusable: See `sdk_runtime`.
        SettingsProblem: A `LONGTAKE_*` variable is unusable, or traces are switched on (`OTEL_…`), and what they need
            is not installed.
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
    """What a connection brings along, and its workers with it: traces, where the standard variables want them.

    Raises:
        SettingsProblem: They are wanted, and what they need is not installed.
    """
    if not exporter_names():
        return []
    try:
        from longtake.temporal.tracing import plugin  # noqa: PLC0415 - an optional extra, only where it is wanted
    except ModuleNotFoundError as error:
        raise SettingsProblem(f"traces are switched on, and {error.name} is missing: {MISSING_EXTRA}") from None
    return [plugin()]


async def missing_search_attributes(client: Client) -> tuple[str, ...]:
    """The search attributes that the namespace lacks; a workflow that sets one of them would hang.

    Listing them is for operators, and some clusters refuse it to everybody else (Temporal Cloud, the default authorizer
    of a cluster of one's own). There each is asked about as any client may do it.

    Raises:
        TemporalProblem: The server does not say.
    """
    try:
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as error:
        if error.status not in _NOT_FOR_US:
            raise _uninspected(client, error) from None
    else:
        return tuple(key.name for key in SEARCH_ATTRIBUTES if key.name not in known.custom_attributes)
    return tuple([key.name for key in SEARCH_ATTRIBUTES if not await _can_be_queried(client, key.name)])


async def _can_be_queried(client: Client, name: str) -> bool:
    try:
        # A workflow id that nobody has: the server counts nothing, and checks the names all the same.
        await client.count_workflows(f'WorkflowId = "{_ID_PREFIX}" AND {name} IS NULL')
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT and name in error.message:
            return False
        raise _uninspected(client, error) from None
    return True


def _uninspected(client: Client, error: RPCError) -> TemporalProblem:
    return TemporalProblem(f"the namespace {client.namespace!r} cannot be inspected: {error.message}")


async def register_search_attributes(client: Client) -> tuple[str, ...]:
    """Add what is missing; doing it again changes nothing.

    Returns:
        What was added.

    Raises:
        SettingsProblem: Some are missing, and registering them is not for this client.
        TemporalProblem: The server does not say what is missing, or fails to register it.
    """
    missing = await missing_search_attributes(client)
    if missing:
        kinds = dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
        try:
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace=client.namespace, search_attributes=kinds)
            )
        except RPCError as error:
            if error.status in _NOT_FOR_US:
                raise SettingsProblem(
                    f"the namespace {client.namespace!r} lacks the search attributes {', '.join(missing)}, and the "
                    f"cluster refuses to register them ({error.message}): {HOW_TO_CREATE_ATTRIBUTES}"
                ) from None
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise TemporalProblem(f"search attributes cannot be registered: {error.message}") from None
    return missing
