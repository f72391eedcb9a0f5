"""The Dockerfile carried out without an engine: every stage in a plain folder, with the packages it really installs.

Each stage begins with what the one before left, at the same path, as in an engine; the base image is a fresh virtual
environment. Steps run as they stand in the file, but for the folders of the image, which lie below the test's. Two
commands change the machine and need root: `useradd` and `install -d -o`. They are only held against the flags that
the programs take. `USER` and `CMD` need the engine: nobody else's rights are taken, and the command is run by the test.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import pytest

from tests.packaging.dockerfile import IMPORTING, ROOT, build_context, dockerfile

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]  # it downloads what the images install

STAGES = dockerfile()
IMAGES = ("worker", "simulator")
FOLDERS = re.compile(r"(?<![\w.])/(?:build|opt/venv|app|var/lib/longtake)\b")
"""What the image has at its root, and a machine has not."""
CHANGES_THE_MACHINE = ("useradd ", "install -d -o ")
NETWORK = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HOME")
"""What an engine's host knows of the way to the packages, by the beginning of the variable's name."""


@dataclass
class Image:
    """What a stage leaves."""

    root: Path
    """Where it lies while it is built and while it runs."""
    env: dict[str, str]
    folder: str = "/"

    def path(self, text: str) -> Path:
        return self.root / self.folder.lstrip("/") / text if not text.startswith("/") else self.root / text.lstrip("/")

    def run(self, *command: str, network: Mapping[str, str] | None = None) -> str:
        """Run a command as the image would, and give what it says.

        Raises:
            AssertionError: It fails.
        """
        program = shutil.which(command[0], path=self.env["PATH"]) or command[0]
        ended = subprocess.run(
            [program, *command[1:]],
            cwd=self.path("."),
            env={**(network or {}), **self.env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended.stdout


class Build:
    """The stages, each carried out when it is first asked for and kept beside the root."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.only_read: list[str] = []
        """Commands that were not run."""
        self._kept = folder / "stages"
        self._context = folder / "context"
        self._done: dict[str, Image] = {}
        self._network = _network()
        for path in build_context():
            (self._context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, self._context / path)
        # Its `PATH` has nothing of this machine: what a step calls must be in the image.
        self._base = Image(self.root, {"PATH": str(self.root / "usr/local/bin")})
        subprocess.run([sys.executable, "-m", "venv", self.root / "usr/local"], check=True)
        self.root.rename(self._keep(""))

    def image(self, name: str) -> Image:
        """A stage's image, laid out at the root."""
        self.carry_out(name)
        self._lay_out(name)
        return self._done[name]

    def carry_out(self, name: str) -> None:
        """Carry out a stage, after those that it needs, unless that has been done."""
        if name in self._done or name not in STAGES:
            return
        stage = STAGES[name]
        for needed in (stage.base, *re.findall(r"--from=(\S+)", " ".join(stage.all("COPY")))):
            self.carry_out(needed)
        base = self._done.get(stage.base, self._base)
        image = Image(self.root, dict(base.env), base.folder)
        self._lay_out(stage.base if stage.base in STAGES else "")
        for instruction, rest in stage.instructions:
            self._step(image, instruction, rest)
        self.root.rename(self._keep(name))
        self._done[name] = image

    def _step(self, image: Image, instruction: str, rest: str) -> None:
        if instruction == "ENV":
            for variable, _, value in (word.partition("=") for word in shlex.split(self._moved(rest))):
                image.env[variable] = Template(value).substitute(image.env)
        elif instruction == "WORKDIR":
            image.folder = rest
            image.path(".").mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            *sources, target = rest.split()
            whence = self._context
            if sources[0].startswith("--from="):
                whence = self._keep(sources.pop(0).removeprefix("--from="))
            for source in sources:
                _copy(whence / source.lstrip("/"), image.path(target), into=target.endswith("/"))
        elif instruction == "RUN":
            commands = [command.strip() for command in rest.split("&&")]
            self.only_read += [command for command in commands if command.startswith(CHANGES_THE_MACHINE)]
            kept = [command for command in commands if not command.startswith(CHANGES_THE_MACHINE)]
            if kept:
                image.run("/bin/sh", "-c", self._moved(" && ".join(kept)), network=self._network)
        else:
            assert instruction in {"USER", "CMD"}, instruction

    def _moved(self, text: str) -> str:
        return FOLDERS.sub(lambda found: f"{self.root}{found[0]}", text)

    def _keep(self, name: str) -> Path:
        self._kept.mkdir(exist_ok=True)
        return self._kept / (name or "python")

    def _lay_out(self, name: str) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        # Links, because copies of what is installed would take most of the test's time; no step writes into a file.
        shutil.copytree(self._keep(name), self.root, symlinks=True, copy_function=os.link)


def _copy(source: Path, target: Path, *, into: bool) -> None:
    """COPY: a folder's contents, or a file to a name or into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        target = target / source.name if into else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _network() -> dict[str, str]:
    """The caller's way to the packages, as the Makefile hands it over: uv does not read pip's settings."""
    known = {name: value for name, value in os.environ.items() if name.upper().startswith(NETWORK)}
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    given = [os.environ.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")]
    if index := next(filter(None, [*given, asked.stdout.strip()]), ""):
        known["UV_DEFAULT_INDEX"] = index
    if "PIP_CERT" in known:
        known.setdefault("SSL_CERT_FILE", known["PIP_CERT"])
    return known


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    folder = tmp_path_factory.mktemp("image")
    yield Build(folder)
    shutil.rmtree(folder)  # a gigabyte that pytest would keep


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_built_and_does_what_it_is_for(name: str, build: Build) -> None:
    image = build.image(name)
    packages = next((image.root / "opt/venv/lib").glob("python*/site-packages"))
    uncompiled = [str(path) for path in packages.rglob("*.py") if not list(_bytecode(path)) and _compiles(path)]
    assert list(packages.rglob("*.py"))
    assert uncompiled == [], "UV_COMPILE_BYTECODE is set: no container compiles at every start"

    (command,) = STAGES[name].all("CMD")
    assert "usage" in image.run(*json.loads(command), "--help").lower()
    if name == "worker":
        assert "generate" in image.run("python", "starter.py", "--help")
    files = json.loads(image.run("python", "-c", IMPORTING))
    ours = [path for path in image.path(".").rglob("*.py") if path.name != "__main__.py"]
    assert ours
    assert {image.path(".") / file for file in files.values()} == set(ours)
    assert not list(image.path(".").rglob("__pycache__")), "nothing writes into the image"


def _bytecode(path: Path) -> Iterator[Path]:
    return path.parent.glob(f"__pycache__/{path.stem}.*.pyc")


def _compiles(path: Path) -> bool:
    """Packages bring templates along that are no Python."""
    try:
        compile(path.read_bytes(), path, "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def test_what_is_not_run_is_taken_by_its_programs(build: Build) -> None:
    for name in IMAGES:
        build.carry_out(name)
    assert [command.split()[0] for command in build.only_read] == ["useradd", "install"]
    for command in build.only_read:
        program, *words = shlex.split(command)
        found = shutil.which(program, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
        assert found, program
        told = subprocess.run([found, "--help"], capture_output=True, text=True, check=True).stdout
        taken = set(re.findall(r"(?<![\w-])--?[\w-]+", told))
        assert {word for word in words if word.startswith("-")} <= taken, command
