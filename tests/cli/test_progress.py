"""What a log gets of a generation that somebody waits for."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from cli.progress import Lines

LONG = "GatewayUnreachable: " + "the gateway cannot be reached; " * 20
Show = Callable[..., list[str]]


@pytest.fixture
def show() -> Show:
    """Lines of a generation, at moments of the test's own; gives what each added."""
    written, now = io.StringIO(), [0.0]
    lines = Lines(Console(file=written, width=200), "order-17", clock=lambda: now[0])

    def at(second: float, stage: str, trouble: str = "") -> list[str]:
        now[0] = second
        before = len(written.getvalue())
        lines(stage, trouble)
        return written.getvalue()[before:].splitlines()

    return at


def test_each_change_is_told_once(show: Show) -> None:
    assert len(show(1, "submitting")) == 1
    assert show(2, "submitting") == []
    assert len(show(3, "first segment · 1 look · next in 10 s")) == 1
    assert show(4, "first segment · 1 look · next in 9 s") == []


def test_a_trouble_is_told_in_full_once_then_briefly_each_minute_then_that_it_is_over(show: Show) -> None:
    show(0, "first segment · 1 look")
    (first,) = show(1, "first segment · 1 look", f"gateway trouble: {LONG}")
    assert LONG.strip() in first
    assert first.count("GatewayUnreachable") == 1
    told = [
        line
        for second in range(2, 200)
        for line in show(second, f"first segment · {second // 5} looks", f"gateway trouble: {LONG} {second}")
    ]
    assert len(told) == 3
    assert all(len(line) < 160 for line in told)
    (over,) = show(201, "first segment · 41 looks")
    assert "over" in over
    assert show(202, "first segment · 41 looks") == []


def test_another_trouble_is_news(show: Show) -> None:
    assert show(1, "first segment", "gateway trouble: one")
    assert show(2, "first segment", "needs key: another")
    assert show(3, "waiting", "Temporal does not answer")
    assert not show(4, "waiting", "Temporal does not answer")
