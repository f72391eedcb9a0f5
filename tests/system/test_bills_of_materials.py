"""`make sbom`: what wheel and images consist of, with the hashes that are installed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.test_repository import ROOT, entries, make

pytestmark = pytest.mark.system


def bill(requirements: Path, file: Path) -> dict[str, Any]:
    """What the tool of `make sbom` writes, with the options there."""
    recipe = make("--dry-run", "sbom").stdout.replace("\\\n", " ")
    options = re.search(r"cyclonedx-py requirements (.+?) -o ", re.sub(r"\s+", " ", recipe))
    assert options, recipe
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", *options[1].split(), "-o", str(file)]
    subprocess.run([*command, str(requirements)], cwd=ROOT, check=True, capture_output=True)
    read: dict[str, Any] = json.loads(file.read_text())
    return read


@pytest.mark.parametrize("part", ["wheel", "run", "simulator"])
def test_a_bill_names_every_package_that_is_locked_with_its_hashes(part: str, tmp_path: Path) -> None:
    requirements = ROOT / f"requirements/{part}.txt"
    read = bill(requirements, tmp_path / "first.json")
    named = {
        (component["name"], component["version"]): {
            found["content"]
            for reference in component["externalReferences"]
            for found in reference.get("hashes", ())
            if found["alg"] == "SHA-256"
        }
        for component in read["components"]
    }
    locked = {}
    for entry in entries(requirements):
        name, _, rest = entry.partition("==")
        locked[name, re.split(r"[\s;\\]", rest)[0]] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    assert named == locked
    assert read["metadata"]["component"]["name"] == "longtake"
    assert bill(requirements, tmp_path / "second.json") == read, "whoever makes it again gets the same"
