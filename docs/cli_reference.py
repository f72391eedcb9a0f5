"""The commands, options and exit codes of `starter.py` for `docs/cli.md`, read from the program itself."""
# ruff: noqa: INP001 - this folder is for texts, and not a package

from collections.abc import Iterable, Iterator
from typing import Any

import typer.main

from cli.app import app
from cli.output import EXIT_CODES


def commands() -> str:
    """One section for each command."""
    group: Any = typer.main.get_command(app)  # `Any`: some versions of typer bring their own click
    return "\n".join("".join(_section(name, command)) for name, command in group.commands.items())


def exit_codes() -> str:
    """The table of exit codes."""
    return _table(("exit code", "meaning"), ((f"{code:d}", meaning) for code, meaning in EXIT_CODES.items()))


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = [f"starter.py {name}", *(_metavar(argument) for argument in arguments), "[OPTIONS]"]
    yield f"### {name}\n\n{command.help}\n\n```text\n{' '.join(usage)}\n```\n\n"
    yield (
        _table(
            ("argument or option", "default", "meaning"),
            (
                (f"`{_name(parameter)}`", _default(parameter), parameter.help or "")
                for parameter in command.params
                if not parameter.hidden
            ),
        )
        if command.params
        else ""
    )


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return _metavar(parameter)
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.name.upper()}"


def _metavar(argument: Any) -> str:
    return str(argument.metavar) if argument.required else f"[{argument.metavar}]"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.default in (None, "", False):
        return ""
    return "on" if parameter.default is True else f"`{parameter.default}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, *rows]
    cells = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines]
    return "".join([cells[0], "|---" * len(head) + "|\n", *cells[1:]])
