"""Tests that drive programs from Debian: collected only when they are asked for, as `make test-system` does."""

import re

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave them out unless asked for by their mark: their Python packages may not be there either."""
    return None if re.search(r"(?<!\bnot )\bsystem\b", config.getoption("markexpr")) else True
