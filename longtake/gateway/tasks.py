"""Queries a task at its own gateway: the gateway or account of today need not be the one that was paid."""

from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import TaskNotFound, TaskNotVisible, WrongGateway
from longtake.gateway.wire import GatewayRecord


def url_setting(*, extension: bool) -> str:
    """Which setting names the gateway of a task."""
    return "LONGTAKE_EXTEND_URL" if extension else "LONGTAKE_GATEWAY_URL"


def check_gateway(client: GatewayClient, gateway: str, *, setting: str) -> None:
    """Check that this worker's gateway is the one where a task lives, before querying it.

    Args:
        client: Of this worker.
        gateway: The origin that was paid; empty where that is not known.
        setting: Which setting names the worker's gateway.

    Raises:
        WrongGateway: It is another one, and knows nothing of the task.
    """
    if gateway and gateway != client.origin:
        raise WrongGateway(
            f"this worker's {setting} is {client.origin}, and the task lives at {gateway}: it was not asked; give the "
            "workers that gateway again until its tasks have ended"
        )


async def query_task(client: GatewayClient, task_id: str, *, account: str, second_path: bool = False) -> GatewayRecord:
    """Query once; "no such task" counts only where the query used a key of the account that paid.

    Raises:
        TaskNotVisible: The gateway does not show it, and none of this worker's keys is the one that paid.
        GatewayError: See `GatewayClient.query`.
    """
    try:
        return await client.query(task_id, second_path=second_path)
    except TaskNotFound as error:
        if not account or client.has_key_of(account):
            raise
        raise TaskNotVisible(
            f"{error}; none of this worker's API keys is the one that paid, so this does not mean that the task is "
            "lost: add a key of the account that paid",
            status=error.status,
            code=error.code,
            gateway_message=error.gateway_message,
        ) from None
