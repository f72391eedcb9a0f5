"""Why Temporal cannot be reached: the operating system's reason, whole, without the SDK's wrappings."""

import pytest

from longtake.temporal.connection_errors import explain

_WRAPPED = "Failed client connect: Server connection error: tonic::transport::Error(Transport, ConnectError({inner}))"


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (
            'ConnectError("tcp", 127.0.0.1:1, Os { code: 111, message: "Connection refused" })',
            "Connection refused",
        ),
        (
            'ConnectError("dns error", Custom { kind: Uncategorized, error: "Name or service not known" })',
            "Name or service not known",
        ),
    ],
)
def test_the_innermost_reason_is_told(inner: str, reason: str) -> None:
    text = explain(_WRAPPED.format(inner=inner), tls=False, client_certificate=False)
    assert f"({reason})" in text
    assert "tonic" not in text


@pytest.mark.parametrize("message", ["", "a word " * 100])
def test_an_unknown_reason_is_not_cut_in_the_middle_of_a_word(message: str) -> None:
    text = explain(message, tls=False, client_certificate=False)
    assert len(text) < 400
    reason = text.partition("(")[2].partition(")")[0]
    assert set(reason.split()) <= {"no", "reason", "was", "given", "a", "word", "…"}
