"""When a signed link expires, as far as its query says. The link is a secret; its expiry is not."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit


def expires_at(url: str) -> datetime | None:
    """When a link expires, read from its query; None where that does not say.

    Known are CloudFront, S3 and GCS in their older form (`Expires`, Unix seconds), S3 and GCS in their newer one (a
    date and a number of seconds), and Azure (`se`).
    """
    try:
        query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
        if "expires" in query:
            return datetime.fromtimestamp(float(query["expires"]), UTC)
        for prefix in ("x-amz-", "x-goog-"):
            if f"{prefix}expires" in query:
                signed = datetime.strptime(query[f"{prefix}date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return signed + timedelta(seconds=float(query[f"{prefix}expires"]))
        if "se" in query:
            expiry = datetime.fromisoformat(query["se"])
            return expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
    except (ValueError, KeyError, OverflowError, OSError):  # somebody else's parameter of the same name
        return None
    return None
