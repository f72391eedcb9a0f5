import os
import ssl
from collections.abc import Iterator
from functools import cache

import pytest


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
