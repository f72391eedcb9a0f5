"""The lines of progress without a terminal."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from cli.progress import Lines

LONG = "GatewayUnreachable: " + "the gateway cannot be reached; " * 20
Show = Callable[..., list[str]]


@pytest.fixture
def show() -> Show:
    """Shows a state at a time that the test sets; returns the lines that this added."""
    written, now = io.StringIO(), [0.0]
    lines = Lines(Console(file=written, width=200), "order-17", clock=lambda: now[0])

    def at(second: float, state: str, problem: str = "") -> list[str]:
        now[0] = second
        before = len(written.getvalue())
        lines(state, problem)
        return written.getvalue()[before:].splitlines()

    return at


def test_each_change_is_shown_once(show: Show) -> None:
    assert len(show(1, "submitting")) == 1
    assert show(2, "submitting") == []
    assert len(show(3, "first segment · 1 poll · next poll in 10 s")) == 1
    assert show(4, "first segment · 1 poll · next poll in 9 s") == []


def test_a_problem_is_shown_in_full_once_then_briefly_every_minute_then_as_solved(show: Show) -> None:
    show(0, "first segment · 1 poll")
    (first,) = show(1, "first segment · 1 poll", f"poll failing: {LONG}")
    assert LONG.strip() in first
    assert first.count("GatewayUnreachable") == 1
    repeated = [
        line
        for second in range(2, 200)
        for line in show(second, f"first segment · {second // 5} polls", f"poll failing: {LONG} {second}")
    ]
    assert len(repeated) == 3
    assert all(len(line) < 160 for line in repeated)
    (over,) = show(201, "first segment · 41 polls")
    assert over.count("·") > "first segment · 41 polls".count("·"), "it is said that the problem is solved"
    assert show(202, "first segment · 41 polls") == []


def test_another_problem_is_news(show: Show) -> None:
    assert show(1, "first segment", "poll failing: one")
    assert show(2, "first segment", "needs api key: another")
    assert show(3, "waiting", "Temporal does not answer")
    assert not show(4, "waiting", "Temporal does not answer")
