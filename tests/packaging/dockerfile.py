"""What stands in the Dockerfile, and what .dockerignore lets through to it."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

IMPORTING = """
import importlib, json, pkgutil, sys
from pathlib import Path

sys.path.insert(0, "")
names = [path.stem for path in Path().glob("*.py")]
for package in (path.parent.name for path in Path().glob("*/__init__.py")):
    names += [package, *(found.name for found in pkgutil.walk_packages([package], package + "."))]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps({name: sys.modules[name].__file__ for name in names}))
"""
"""Import every module of the working directory, and say which file each came from."""


@dataclass
class Stage:
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]

    def copied(self) -> list[tuple[list[str], str]]:
        """What comes from the build context: sources and target."""
        words = [rest.split() for rest in self.all("COPY") if not rest.startswith("--from")]
        return [(one[:-1], one[-1]) for one in words]


def dockerfile() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.split()
            current = stages[name] = Stage(base)
        elif instruction != "ARG":
            current.instructions.append((instruction, rest.strip()))
    return stages


def build_context() -> Iterator[Path]:
    """The files that reach the build, relative to the repository: the last line of .dockerignore that fits wins."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    rules = [(_pattern(line.removeprefix("!")), line.startswith("!")) for line in lines]

    def reaches(path: Path) -> bool:
        # What fits a folder fits everything below it.
        names = [str(one) for one in (path, *path.parents[:-1])]
        fitting = [let_in for pattern, let_in in rules if any(map(pattern.fullmatch, names))]
        return not fitting or fitting[-1]

    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if reaches(here / name)]
        yield from (here / name for name in files if reaches(here / name))


def _pattern(line: str) -> re.Pattern[str]:
    """A line of .dockerignore: `*` stays within a name, `**/` is any folders or none."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(one, re.escape(one)) for one in re.split(r"(\*\*/|\*\*|\*|\?)", line)))
