import os
import ssl
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

WAITING = "end_to_end"
"""The folder whose tests mostly wait, for processes and polls."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files that wait among those that compute: xdist hands out files in this order.

    Side by side they would leave the cores idle, and at the end nothing would fill their waits.
    """
    files = [*dict.fromkeys(item.path for item in items)]
    place: dict[Path, float] = {}
    for waits, until in ((True, 0.75), (False, 1.0)):
        some = [path for path in files if (path.parent.name == WAITING) is waits]
        place |= {path: until * number / len(some) for number, path in enumerate(some)}
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Each client would read them anew, which takes longer (20 ms) than most tests run."""
    ours = ssl.create_default_context

    @cache
    def read(cafile: str | None, *_named_elsewhere: str | None) -> ssl.SSLContext:
        return ours(cafile=cafile)

    def create_default_context(
        purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH, *, cafile: str | None = None, **more: str | None
    ) -> ssl.SSLContext:
        if purpose is not ssl.Purpose.SERVER_AUTH or any(more.values()):
            return ours(purpose, cafile=cafile, **more)
        return read(cafile, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", create_default_context)
        yield
