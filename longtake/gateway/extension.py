"""Pays for a failed extension again, by the `remix_id` of its first segment, where a gateway can do that.

The document does not say how, and a stock gateway cannot: it answers 400 `task_origin_not_exist`. Sibling gateways
document `POST /v1/videos/{id}/remix` with JSON (field notes: "Retrying an extension with remix_id"), so where, with
which key, on which path and for which model it is done are settings, and nothing is done until they are set.

It is a paid, non-idempotent POST like the first, and goes out by the same code (`GatewayClient.pay_once`). The answer
names a new task, which lives at that gateway: it is queried and downloaded here.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from longtake.gateway.client import GatewayClient, SubmittedTask, encode_text
from longtake.gateway.errors import GatewayError, KeyRefused, RequestRefused
from longtake.gateway.wire import GatewayRecord

DEFAULT_PATH = "/v1/videos/{remix_id}/remix"
DEFAULT_MODEL = "veo_3_1-extend"

_PLACE = "{remix_id}"
_NO_SUCH_ORIGIN = "task_origin_not_exist"
_NO_SUCH_ROUTE = frozenset({404, 405})


class ExtensionClient(GatewayClient):
    """The client of the gateway that retries extensions, and of its tasks. One for each worker."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        *,
        base_url: str,
        api_key: SecretStr,
        path: str = DEFAULT_PATH,
        model: str = DEFAULT_MODEL,
        submit_timeout: timedelta = timedelta(seconds=120),
        query_timeout: timedelta = timedelta(seconds=20),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            base_url: See `GatewayClient`.
            api_key: Pays for the retry, and queries the new task.
            path: Where a retry is posted, below the base URL, with `{remix_id}` in it.
            model: The model that the POST names; one sibling gateway requires the original's model here.
            submit_timeout: See `GatewayClient`.
            query_timeout: See `GatewayClient`.
            transport: See `GatewayClient`.

        Raises:
            ValueError: A setting cannot be used; says which one, without repeating keys.
        """
        if not path.startswith("/") or path.count(_PLACE) != 1 or not path.isascii() or not path.isprintable():
            raise ValueError(f"LONGTAKE_EXTEND_PATH must be a path with {_PLACE} in it, such as {DEFAULT_PATH}")
        if not model.strip():
            raise ValueError(f"LONGTAKE_EXTEND_MODEL must name a model, such as {DEFAULT_MODEL}")
        self._path = path
        self._model = model
        with _naming_its_settings():
            super().__init__(
                base_url=base_url,
                api_keys=[api_key],
                submit_timeout=submit_timeout,
                query_timeout=query_timeout,
                transport=transport,
            )

    @property
    def model(self) -> str:
        """The model that the POST names."""
        return self._model

    async def submit_extension(
        self, remix_id: str, prompt: str, *, before_send: Callable[[], Awaitable[None]]
    ) -> SubmittedTask:
        """Pay for one extension: one POST, sent at most once.

        Args:
            remix_id: The upstream id of the first segment.
            prompt: The prompt of the extension.
            before_send: Awaited once, after connect and TLS and before the first byte. If it raises, no byte leaves and
                that very exception comes out here. Its own duration counts towards no time limit of this call.

        Returns:
            The new task's id, to be queried here.

        Raises:
            GatewayUnreachable, GatewayBusy, RequestRefused, KeyRefused: Nothing was made.
            ResponseLost, InvalidResponse: Sent, and the outcome is unknown.
            SendHookDidNotFire: Answered without having asked `before_send`; stop submitting.
        """
        if not remix_id.strip("."):
            raise RequestRefused(f"nothing was sent: no first segment can have the id {remix_id!r}")
        path = self._path.replace(_PLACE, quote(remix_id, safe="", errors="replace"))
        encode_text("prompt_extend", prompt)
        body = {"prompt": prompt, "model": self._model}
        with _naming_its_settings():
            try:
                return await self.pay_once(path, before_send=before_send, secrets=(prompt,), json=body)
            except RequestRefused as error:
                if error.code != _NO_SUCH_ORIGIN and error.status not in _NO_SUCH_ROUTE:
                    raise
                raise _cannot(error) from None

    async def query(self, task_id: str, *, second_path: bool = False) -> GatewayRecord:
        """See `GatewayClient.query`; errors name the settings of this gateway."""
        with _naming_its_settings():
            return await super().query(task_id, second_path=second_path)


def _cannot(refusal: RequestRefused) -> RequestRefused:
    """The refusal of a gateway that has no such route, or that looks the id up among its own tasks."""
    if isinstance(refusal, KeyRefused):
        return refusal
    reason = ": ".join(part for part in (refusal.code, refusal.gateway_message) if part)
    return RequestRefused(
        f"this gateway cannot retry extensions (HTTP {refusal.status}{': ' if reason else ''}{reason}); set "
        "LONGTAKE_EXTEND_URL and LONGTAKE_EXTEND_PATH to one that takes a remix_id, or unset LONGTAKE_EXTEND_URL",
        status=refusal.status,
        code=refusal.code,
        gateway_message=refusal.gateway_message,
        request_id=refusal.request_id,
        retry_after=refusal.retry_after,
    )


@contextmanager
def _naming_its_settings() -> Iterator[None]:
    """Lets errors out with the names of the settings that count here: the advice was written for the first gateway."""
    try:
        yield
    except (GatewayError, ValueError) as error:
        # In place, so that it stays the very exception that `before_send` may have raised.
        error.args = tuple(
            part.replace("LONGTAKE_GATEWAY_", "LONGTAKE_EXTEND_") if isinstance(part, str) else part
            for part in error.args
        )
        raise
