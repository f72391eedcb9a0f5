"""A free check before anything is paid: does the gateway answer, is it a gateway, does it accept the key?"""

import time

from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayBusy, InvalidResponse, KeyRefused, QuotaExhausted, ResponseLost, TaskNotFound

GOOD_FOR_SECONDS = 300.0
"""How long a good response counts. Field notes: at most 20 calls of such routes in 20 minutes."""

_ROUTE_CLOSED = (403, 404, 405)
_SUCCESS = 200
_NO_TASK = "task_of_longtake_preflight"
"""A task that no gateway has: every gateway has the route."""


class Preflight:
    """One for each gateway client; remembers a good response for a while."""

    def __init__(self, gateway: GatewayClient) -> None:
        self._gateway = gateway
        self._good_until = 0.0

    def forget(self) -> None:
        """Forget the last good response: a submission has been refused since."""
        self._good_until = 0.0

    async def check(self) -> bool:
        """Ask for the list of models, which is free.

        The route is optional: where an operator has closed it, the check queries a task that does not exist. A route
        that fails by itself proves nothing.

        Returns:
            Whether the gateway has just accepted the key; False where there was no request, or no clear response.

        Raises:
            GatewayUnreachable: Nothing answers there.
            KeyRefused: The key that would pay is not accepted (401).
            InvalidResponse: The server there is no gateway, but for example a web site.
        """
        if time.monotonic() < self._good_until:
            return False
        try:
            await self._gateway.list_models()
        except KeyRefused as error:
            if error.status in _ROUTE_CLOSED and not isinstance(error, QuotaExhausted):
                return False
            raise
        except InvalidResponse as error:
            if error.status == _SUCCESS:
                raise
            await self.ask_for_a_task()
        except (ResponseLost, GatewayBusy):
            return False
        self._good_until = time.monotonic() + GOOD_FOR_SECONDS
        return True

    async def ask_for_a_task(self) -> None:
        """Query a task that does not exist: a gateway has an error code for that.

        Raises:
            GatewayUnreachable: Nothing answers there.
            KeyRefused: The key is not accepted (401).
            InvalidResponse: The server there is no gateway.
        """
        try:
            await self._gateway.query(_NO_TASK)
        except (ResponseLost, GatewayBusy):
            pass
        except TaskNotFound as error:
            if error.code is None:  # a web server's own 404
                raise InvalidResponse(
                    f"the server there is no gateway: it has neither models nor tasks (HTTP {error.status}); "
                    "check LONGTAKE_GATEWAY_URL",
                    status=error.status,
                ) from None
