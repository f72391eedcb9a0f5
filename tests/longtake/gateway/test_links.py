from datetime import UTC, datetime

import pytest

from longtake.gateway.links import expires_at

THEN = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
CDN = "https://cdn.example/clip.mp4"


@pytest.mark.parametrize(
    "query",
    [
        f"Expires={THEN.timestamp():.0f}&Signature=x&Key-Pair-Id=y",
        f"Expires={THEN.timestamp():.3f}",
        "X-Amz-Date=20260501T110000Z&X-Amz-Expires=3600&X-Amz-Signature=x",
        "X-Goog-Date=20260501T000000Z&X-Goog-Expires=43200",
        "sp=r&se=2026-05-01T12:00:00Z&sig=x",
        "se=2026-05-01T14:00:00%2B02:00",
    ],
)
def test_a_signed_link_names_its_expiry(query: str) -> None:
    assert expires_at(f"{CDN}?{query}") == THEN


@pytest.mark.parametrize(
    "url",
    [
        CDN,
        f"{CDN}?token=abc",
        f"{CDN}?Expires=soon",
        f"{CDN}?Expires=nan",
        f"{CDN}?Expires=1e300",
        f"{CDN}?X-Amz-Expires=3600",
        f"{CDN}?X-Amz-Expires=3600&X-Amz-Date=yesterday",
        f"{CDN}?X-Amz-Expires=1e300&X-Amz-Date=20260501T110000Z",
        f"{CDN}?se=se",
        "https://[?Expires=1",
    ],
)
def test_a_link_without_an_expiry_is_no_error(url: str) -> None:
    assert expires_at(url) is None
