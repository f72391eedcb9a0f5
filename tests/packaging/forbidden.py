"""`python -m tests.packaging.forbidden`: what no file of the repository may hold; `make lint` runs it."""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Written so that they do not find themselves.
FORBIDDEN = {
    "a package registry's host": re.compile(
        r"\b(pypi|pythonhosted|npmjs|yarnpkg|crates)\.(org|com|io)\b|\bdeb\.debian\.org\b"
    ),
    "a path of somebody's machine": re.compile(r"(?<![\w.}~*-])/(work|root|home/\w+|Users/\w+)/"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
FORBIDDEN_NAMES = {
    *("uv.lock", "poetry.lock", "pylock.toml", "Pipfile.lock", "package-lock.json", "yarn.lock"),  # name hosts
    *(".env", "pip.conf", "uv.toml", ".npmrc", ".netrc", ".pypirc"),  # somebody's own settings
}


def repository_files() -> list[Path]:
    """What git tracks, or would with `git add .`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted({ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()})


def problems(files: Iterable[Path], root: Path = ROOT) -> Iterator[str]:
    """Each place that holds something forbidden, and each file with a forbidden name."""
    for path in files:
        name = path.relative_to(root)
        if path.name in FORBIDDEN_NAMES:
            yield f"{name}: a lock file or somebody's own settings"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            yield from (f"{name}:{number}: {what}" for what, pattern in FORBIDDEN.items() if pattern.search(line))


def main() -> int:
    """Print every problem; 1 where there is one."""
    files = repository_files()
    found = [*problems(files)]
    sys.stdout.write("".join(f"{problem}\n" for problem in found) + f"{len(files)} files: {len(found)} problems\n")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
