"""What can go wrong between us and the gateway, as one tree.

    GatewayError
    ├── GatewayUnreachable    nothing was sent: DNS, connect, TLS, pool, proxy; Cloudflare 521, 522, 523, 525, 526
    ├── GatewayBusy           a response: nothing was made, try later: 429, 503 "no channel", documented 500s
    ├── RequestRefused        a response: nothing was made, and the same request never will be: 400, 413, 415, 422
    │   ├── MediaRefused      images in this form: 400 `invalid_media_input`; another form may be accepted
    │   └── KeyRefused        the key: 401, 403; an operator must clear it
    │       └── QuotaExhausted   the key is good, and it or its account has no quota left: 402, 403; top up
    ├── TaskNotFound          a query's 400 or 404: the task is not there (yet, or any more)
    ├── TaskNotVisible        the same, with a key that is not known to be of the account that paid
    ├── WrongGateway          not queried: the task lives at another gateway than this worker's
    ├── ResponseLost          sent, and no response says what was made: timeout, reset, ambiguous 5xx
    └── InvalidResponse       a response outside the document: HTML, no JSON, no id

For a paid POST the last two mean "outcome unknown"; for a query all but `RequestRefused` mean "poll again later".
Texts begin with the gateway's request id where there is one; they hold no key, prompt or signed link.
"""

from datetime import timedelta


class GatewayError(Exception):
    """The root; never raised itself.

    Attributes:
        status: The HTTP status, or None where there was no response.
        code: The gateway's own error code, such as `insufficient_user_quota`, or None.
        gateway_message: The gateway's own words, shortened and without links, or None.
        request_id: The gateway's `X-Oneapi-Request-Id`, or None.
        retry_after: How long the gateway asked us to wait, capped; or None.
        excerpt: Of a response that does not say what was made: its body, redacted and bounded; or None.
    """

    def __init__(  # noqa: PLR0913 - six optional facts, each named at every call
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        gateway_message: str | None = None,
        request_id: str | None = None,
        retry_after: timedelta | None = None,
        excerpt: str | None = None,
    ) -> None:
        super().__init__(f"[{request_id}] {message}" if request_id else message)
        self.status = status
        self.code = code
        self.gateway_message = gateway_message
        self.request_id = request_id
        self.retry_after = retry_after
        self.excerpt = excerpt


class GatewayUnreachable(GatewayError):
    """Nothing was sent."""


class GatewayBusy(GatewayError):
    """The gateway made nothing and may do so later."""


class RequestRefused(GatewayError):
    """The gateway made nothing, and never will for this request."""


class MediaRefused(RequestRefused):
    """The gateway made nothing: the channel does not take images in the form that they were sent in."""


class KeyRefused(RequestRefused):
    """The key is wrong, disabled, expired or exhausted; or, as `QuotaExhausted`, there is no quota left.

    Attributes:
        remembered: Whether it repeats an earlier response, without a request (`longtake.gateway.breaker`).
    """

    remembered = False


class QuotaExhausted(KeyRefused):
    """The key is good, and it or its account has no quota left for what was asked: top up."""


class TaskNotFound(GatewayError):
    """The gateway does not know the task: too early, or its row was lost."""


class TaskNotVisible(GatewayError):
    """The gateway does not show the task to this worker's key, and another key paid: that proves nothing."""


class WrongGateway(GatewayError):
    """This worker's gateway is not the one where the task lives, so it was not queried."""


class ResponseLost(GatewayError):
    """The request was sent, and what it made is not known."""


class InvalidResponse(GatewayError):
    """The response is outside the document."""
