"""Ctrl-C says how to go on, and does not claim that a generation runs which this command has not seen."""

import asyncio

import pytest

from cli.output import CommandProblem, Exit
from cli.session import _as_command_problems, ids_of


@pytest.mark.parametrize(("run_id", "command"), [(None, "status"), ("the-run", "watch")])
def test_the_next_command_fits_what_is_known(run_id: str | None, command: str) -> None:
    with pytest.raises(CommandProblem) as stopped, _as_command_problems(ids_of("order-1") | {"run_id": run_id}):
        raise asyncio.CancelledError
    assert stopped.value.code == Exit.INTERRUPTED
    assert stopped.value.message.endswith(f"starter.py {command} order-1")
