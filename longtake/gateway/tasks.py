"""Asks for a task where it lives: a gateway or account of today need not be the one that was paid."""

from typing import Protocol

from longtake.gateway.errors import TaskNotFound, TaskNotVisible, WrongGateway
from longtake.gateway.wire import GatewayRecord


class TaskGateway(Protocol):
    """Both clients: the gateway's, and that of the one which retries extensions."""

    @property
    def origin(self) -> str:
        """`scheme://host[:port]`."""

    def has_key_of(self, account: str) -> bool:
        """Whether one of the keys has this fingerprint."""

    async def query(self, task_id: str, *, second_path: bool = False) -> GatewayRecord:
        """Ask once how a task stands."""


def url_setting(*, extension: bool) -> str:
    """Which setting names the gateway of a task."""
    return "LONGTAKE_EXTEND_URL" if extension else "LONGTAKE_GATEWAY_URL"


def check_gateway(client: TaskGateway, gateway: str, *, setting: str) -> None:
    """See that this worker's gateway is the one where a task lives, before it is asked.

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


async def query_task(client: TaskGateway, task_id: str, *, account: str, second_path: bool = False) -> GatewayRecord:
    """Ask once, believing "no such task" only where a key of the account that paid was asked with.

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
