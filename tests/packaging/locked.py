"""An audit of what is installed, without a network: `python -m tests.packaging.locked`.

Every package must have a version that `requirements/*.txt` pins with hashes, every file of it must have the hash that
its own list of files names, and together they must fit. Whether a version has a known vulnerability only a database
on the network can tell, which this does not ask.
"""

import base64
import hashlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
_FROM_PYTHON = frozenset({"pip", "setuptools", "wheel", "longtake"})
"""What `python -m venv` brings, and ourselves."""


def pinned() -> dict[str, set[str]]:
    """The versions that the requirement files name."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE):
            found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def problems(installed: list[Distribution], pins: dict[str, set[str]]) -> Iterator[str]:
    """What is not as it was locked."""
    versions = {canonicalize_name(one.metadata["Name"]): one.version for one in installed}
    for one in installed:
        name = canonicalize_name(one.metadata["Name"])
        if name in _FROM_PYTHON:
            continue
        if one.version not in pins.get(name, set()):
            yield f"{name} {one.version} is not what requirements/*.txt pin: make clean setup, or make lock"
        yield from _changed_files(one, name)
        for requirement in map(Requirement, one.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            present = versions.get(canonicalize_name(requirement.name))
            if present is None or not requirement.specifier.contains(present, prereleases=True):
                yield f"{name} needs {requirement}, and {present or 'none'} is installed: make lock"


def _changed_files(one: Distribution, name: str) -> Iterator[str]:
    for file in one.files or ():
        if file.hash is None or file.hash.mode != "sha256" or file.name.endswith(".pyc"):
            continue
        path = Path(str(file.locate()))
        if not path.is_file():
            yield f"{name}: {file} is missing: make clean setup"
            continue
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        if digest != file.hash.value:
            yield f"{name}: {file} is not what was installed: make clean setup, and find out who changed it"


def main() -> int:
    """Print every problem; 1 where there is one."""
    installed = list(distributions())
    found = sorted(set(problems(installed, pinned())))
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{len(installed)} packages: {len(found)} problems; known vulnerabilities were not looked up (no network)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
