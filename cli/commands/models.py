"""The command `models`."""

import sys

from rich.console import Console
from rich.table import Table

from cli.output import Exit, leave, print_json
from longtake.request.rules import MODELS


def show_models(*, as_json: bool) -> None:
    """Run `models`."""
    if as_json:
        print_json(
            [
                {
                    "model": model.name,
                    "what": model.title,
                    "images_min": model.images[0],
                    "images_max": model.images[-1],
                    "frames": model.frames,
                    "hd": model.hd,
                }
                for model in MODELS.values()
            ]
        )
    else:
        table = Table("model", "what it is", "images")
        for model in MODELS.values():
            table.add_row(model.name, model.title, model.images_rule)
        Console(width=None if sys.stdout.isatty() else 140).print(table)
    leave(Exit.DELIVERED)
