"""No container engine runs here: what the Dockerfile copies is laid out in a folder, and Python runs there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.dockerfile import IMPORTING, ROOT, dockerfile

STAGES = dockerfile()
IMAGES = {"worker": "run.txt", "simulator": "simulator.txt"}


def lay_out(image: str, folder: Path) -> None:
    """Copy into `folder` what the image's stage copies into its working directory."""
    for sources, target in STAGES[image].copied():
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / target)


def test_the_default_image_is_the_worker() -> None:
    assert list(STAGES)[-1] == "worker"
    assert STAGES["worker"].all("CMD") == ['["python", "worker.py"]']


@pytest.mark.parametrize("stage", STAGES)
def test_every_source_exists_and_reaches_the_build(stage: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    for sources, _ in STAGES[stage].copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{Path(source).parts[0]}" in ignored, source
    for copied in STAGES[stage].all("COPY"):
        if copied.startswith("--from="):
            assert copied.split()[0].removeprefix("--from=") in STAGES


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_does_not_run_as_root(image: str) -> None:
    chain = [STAGES[image]]
    while chain[-1].base in STAGES:
        chain.append(STAGES[chain[-1].base])
    users = [user for stage in chain for user in stage.all("USER")]
    assert users == ["longtake"]


def test_packages_are_installed_by_hash_only() -> None:
    installs = [
        command
        for stage in STAGES.values()
        for run in stage.all("RUN")
        for command in run.split("&&")
        if "pip install" in command
    ]
    assert len(installs) == 3
    assert all("--require-hashes" in command for command in installs)


HIDING = """
import sys
from importlib.metadata import packages_distributions

installed = set(sys.argv[1:])
strangers = {
    name
    for name, owners in packages_distributions().items()
    if not installed & {owner.lower().replace("_", "-").replace(".", "-") for owner in owners}
}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in strangers:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)


sys.meta_path.insert(0, Absent())
"""
"""What the image does not have is hidden."""


@pytest.mark.parametrize("image", IMAGES)
def test_every_module_of_the_image_imports_with_the_packages_of_the_image(image: str, tmp_path: Path) -> None:
    lay_out(image, tmp_path)
    installed = [
        canonicalize_name(Requirement(line.split(" \\")[0]).name)
        for line in (ROOT / "requirements" / IMAGES[image]).read_text().splitlines()
        if re.match(r"[a-zA-Z0-9]", line)
    ]

    ended = subprocess.run(
        [sys.executable, "-I", "-B", "-c", HIDING + IMPORTING, *installed],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 0, ended.stderr
    files = json.loads(ended.stdout)
    assert len(files) == len([path for path in tmp_path.rglob("*.py") if path.name != "__main__.py"])
    assert all((tmp_path / file).is_relative_to(tmp_path) for file in files.values())
