"""How long a signed link lives, as far as it says so itself. The link is a secret; when it dies is none."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit


def expires_at(url: str) -> datetime | None:
    """When a link dies, read from its query; None where it does not say.

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
            told = datetime.fromisoformat(query["se"])
            return told if told.tzinfo else told.replace(tzinfo=UTC)
    except (ValueError, KeyError, OverflowError, OSError):  # somebody else's parameter of the same name
        return None
    return None
