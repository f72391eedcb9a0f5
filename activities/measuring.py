"""What activities count: attempts that fail, the gateway's errors, and delivered clips."""

from temporalio import activity

from longtake.gateway.errors import GatewayError, GatewayUnreachable, InvalidResponse, KeyRefused, ResponseLost
from longtake.models import DeliveryKind, DeliveryReceipt
from longtake.observability.metrics import DELIVERED_BYTES, FAILED_STEPS, GATEWAY_CODES, GATEWAY_ERRORS, OTHER, count
from longtake.submission.errors import OutcomeUnknown


def failed(error: BaseException, kind: str) -> None:
    """Count an attempt that fails with this domain error, as this failure type; outside an activity, do nothing."""
    if not activity.in_activity():
        return
    meter = activity.metric_meter()
    count(meter, FAILED_STEPS, type=kind)
    source = error.cause if isinstance(error, OutcomeUnknown) else error
    if isinstance(source, GatewayError) and not (isinstance(source, KeyRefused) and source.remembered):
        count(meter, GATEWAY_ERRORS, code=gateway_code(source))


def delivered(receipt: DeliveryReceipt, clip: DeliveryKind) -> None:
    """Count a clip that was stored; one that lay there before was counted then."""
    if not receipt.already_stored:
        count(activity.metric_meter(), DELIVERED_BYTES, receipt.video.bytes, clip=clip)


def gateway_code(error: GatewayError) -> str:
    """A word out of `GATEWAY_CODES` for it, or `other`: a gateway may invent codes, and each would be a new series."""
    if error.code in GATEWAY_CODES:
        return str(error.code)
    if isinstance(error, InvalidResponse) and (error.status is None or error.status < 400):  # noqa: PLR2004 - no error
        return "unreadable"
    if error.status is None and isinstance(error, ResponseLost | GatewayUnreachable):
        return "no_answer" if isinstance(error, ResponseLost) else "unreachable"
    return code if (code := f"http_{error.status}") in GATEWAY_CODES else OTHER
