import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from longtake.storage import Store
from tests.longtake.s3_server import S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with the credentials that open it; a test's faults end with it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    yield s3_server
    s3_server.fault = None


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "disk":
        disk: Store = request.getfixturevalue("disk")
        return disk
    server: S3Server = request.getfixturevalue("s3")
    return Store.open(server.url(uuid.uuid4().hex))
