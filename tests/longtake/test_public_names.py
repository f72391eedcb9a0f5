"""What `import longtake` offers, and what it costs."""

import inspect
import subprocess
import sys

import pytest

import longtake


def test_every_public_name_is_there_and_explains_itself() -> None:
    for name in longtake.__all__:
        found = getattr(longtake, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__doc__, name
            assert found.__name__ == name


def test_nothing_else_is_shown() -> None:
    assert set(dir(longtake)) == {*longtake.__all__, "__version__"}
    with pytest.raises(AttributeError):
        _ = longtake.SubmissionLedger  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import longtake", {"pydantic", "temporalio", "httpx", "obstore"}),
        ("from longtake import GenerateVideoInput", {"temporalio", "httpx", "obstore"}),
        ("import longtake.temporal.names", {"pydantic", "temporalio"}),
    ],
)
def test_a_name_loads_no_more_than_it_needs(code: str, absent: set[str]) -> None:
    program = f"import sys; {code}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not absent & set(loaded)
