""" "Was a paid job made?": the table of the field notes, row by row."""

import json
from datetime import timedelta
from urllib.parse import quote

import pytest

from longtake.gateway.client import PAID_TABLE, classify_submission
from longtake.gateway.errors import (
    GatewayBusy,
    GatewayError,
    GatewayUnreachable,
    KeyRefused,
    MediaRefused,
    QuotaExhausted,
    RequestRefused,
    ResponseLost,
)

NO_JOB = (GatewayUnreachable, GatewayBusy, RequestRefused)


def relay(code: str, message: str = "no") -> bytes:
    """The task relay's error shape."""
    return json.dumps({"code": code, "message": message, "data": None}).encode()


def routing(code: str, message: str = "no") -> bytes:
    """The error shape of authentication and routing."""
    return json.dumps({"error": {"message": message, "type": "new_api_error", "code": code}}).encode()


HTML = b"<html><head><title>Oops</title></head></html>"

ROWS: list[tuple[int, bytes, type[GatewayError]]] = [
    # Nothing was made: send again.
    *[(status, HTML, GatewayUnreachable) for status in (521, 522, 523, 525, 526)],
    (407, HTML, GatewayUnreachable),
    # Nothing was made: a refusal, in either shape or none.
    *[
        (status, body, RequestRefused)
        for status in (400, 413, 415, 422)
        for body in (relay("x"), routing("x"), HTML, b"")
    ],
    (400, relay("fail_to_fetch_task"), RequestRefused),
    (404, HTML, RequestRefused),
    (405, b"", RequestRefused),
    (409, b"", RequestRefused),
    (451, b"", RequestRefused),
    # The gateway's own key was refused upstream: ours is good.
    *[(status, relay("fail_to_fetch_task"), RequestRefused) for status in (401, 402, 403)],
    # Nothing was made until an operator acts.
    *[(status, body, KeyRefused) for status in (401, 403) for body in (relay("x"), routing("x"), HTML, b"")],
    *[(402, body, QuotaExhausted) for body in (relay("x"), routing("x"), HTML, b"")],
    *[
        (status, shape(code), QuotaExhausted)
        for status in (402, 403, 429)
        for shape in (relay, routing)
        for code in ("insufficient_user_quota", "pre_consume_token_quota_failed")
    ],
    (400, relay("invalid_media_input"), MediaRefused),
    (422, relay("invalid_media_input"), RequestRefused),
    # Nothing was made: later.
    *[(429, body, GatewayBusy) for body in (relay("x"), relay("fail_to_fetch_task"), HTML, b"")],
    (503, routing("model_not_found"), GatewayBusy),
    (503, relay("model_not_found"), GatewayBusy),
    (500, relay("build_request_failed"), GatewayBusy),
    # Unknown.
    *[
        (500, relay(code), ResponseLost)
        for code in (
            "get_channel_failed",  # in stock it hides the error of a first try, `do_request_failed` perhaps
            "do_request_failed",
            "read_response_body_failed",
            "unmarshal_response_body_failed",
            "invalid_response",
            "new_api_panic",
            "never_heard_of",
        )
    ],
    *[(status, relay("fail_to_fetch_task"), ResponseLost) for status in (500, 502, 503, 504)],
    *[(status, HTML, ResponseLost) for status in (500, 502, 503, 504, 520, 524, 527, 530, 599)],
    # The codes that are harmless at one status prove nothing at another.
    (500, routing("model_not_found"), ResponseLost),
    (502, relay("get_channel_failed"), ResponseLost),
    (503, relay("build_request_failed"), ResponseLost),
    (500, relay("insufficient_user_quota"), ResponseLost),
    # Time-outs under a 4xx number.
    (408, b"", ResponseLost),
    (499, b"", ResponseLost),
    # Outside of HTTP as we know it.
    *[(status, b"", ResponseLost) for status in (100, 101, 300, 304, 600, 999)],
]


@pytest.mark.parametrize(("status", "body", "means"), ROWS)
def test_row(status: int, body: bytes, means: type[GatewayError]) -> None:
    error = classify_submission(status, {"X-Oneapi-Request-Id": "req-1"}, body)
    assert type(error) is means
    assert error is not None
    assert error.status == status
    assert str(error).startswith("[req-1] ")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_accepted(status: int) -> None:
    assert classify_submission(status, {}, b"") is None


@pytest.mark.parametrize(
    ("status", "location", "means"),
    [
        *[(status, "https://gw.example/v1/videos", RequestRefused) for status in (301, 302, 307, 308)],
        (308, "https://gw.example/api/v1/videos/?x=1", RequestRefused),
        (308, "https://gw.example/an%20api/v1/videos", RequestRefused),
        # "See other" is what an application says after it has processed a POST.
        (303, "https://gw.example/v1/videos", ResponseLost),
        (302, "https://gw.example/login", ResponseLost),
        (307, "https://gw.example/v1/videos/task_1", ResponseLost),
        (307, "/v1/videos", ResponseLost),
        (301, "http://[", ResponseLost),
        (301, "", ResponseLost),
    ],
)
def test_redirects(status: int, location: str, means: type[GatewayError]) -> None:
    assert type(classify_submission(status, {"Location": location}, b"")) is means


def test_a_redirect_into_words_of_the_prompt_is_refused_without_them() -> None:
    prompt = "a lighthouse keeper reads"
    location = f"https://gw.example/{quote(prompt)}/v1/videos"
    error = classify_submission(307, {"Location": location}, b"", secrets=[prompt])
    assert isinstance(error, RequestRefused)
    assert "set LONGTAKE_GATEWAY_URL to https://gw.example/…" in str(error)
    assert not any(text in f"{error} {vars(error)}" for text in (prompt, quote(prompt)))


def test_a_redirect_says_which_url_to_set() -> None:
    error = classify_submission(301, {"location": "https://gw.example:8443/api/v1/videos?sig=SECRET"}, HTML)
    assert "set LONGTAKE_GATEWAY_URL to https://gw.example:8443/api" in str(error)
    assert "SECRET" not in str(error)


def test_no_quota_says_top_up() -> None:
    error = classify_submission(403, {}, routing("insufficient_user_quota", "用户额度不足"))
    assert "top up" in str(error)
    assert error is not None
    assert (error.code, error.gateway_message) == ("insufficient_user_quota", "用户额度不足")


@pytest.mark.parametrize("status", [404, 405])
def test_no_such_route_points_at_the_url(status: int) -> None:
    assert "is LONGTAKE_GATEWAY_URL right?" in str(classify_submission(status, {}, HTML))


@pytest.mark.parametrize(
    ("value", "wait"), [("30", timedelta(seconds=30)), ("99999", timedelta(minutes=15)), ("", None)]
)
def test_how_long_to_wait(value: str, wait: timedelta | None) -> None:
    error = classify_submission(429, {"retry-after": value}, b"")
    assert error is not None
    assert error.retry_after == wait


def test_every_row_of_the_code_is_exercised() -> None:
    reached = set()
    for status, body, _ in ROWS:
        said = str(classify_submission(status, {}, body))
        reached |= {row.summary for row in PAID_TABLE if said.startswith(f"{row.summary} (HTTP {status})")}
    assert reached == {row.summary for row in PAID_TABLE}


def test_every_status_is_decided_and_no_5xx_is_a_refusal_for_good() -> None:
    for status in (*range(100, 200), *range(300, 1000)):
        error = classify_submission(status, {}, b"")
        assert isinstance(error, (*NO_JOB, ResponseLost))
        if status >= 500:
            assert not isinstance(error, RequestRefused)
