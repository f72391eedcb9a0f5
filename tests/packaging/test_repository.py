"""The pinned requirements, the Makefile, and what must not be committed."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.forbidden import FORBIDDEN, problems
from tests.system.chromium import chromium
from tests.system.conftest import pytest_ignore_collect

ROOT = Path(__file__).parents[2]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


def pins(path: Path) -> dict[str, set[str]]:
    """Each package's `version ; marker`s."""
    found: dict[str, set[str]] = {}
    for entry in entries(path):
        requirement = Requirement(entry.split(" --hash", 1)[0])
        found.setdefault(canonicalize_name(requirement.name), set()).add(
            f"{requirement.specifier};{requirement.marker}"
        )
    return found


def entries(path: Path) -> list[str]:
    """The requirements of a file, each on one line with its hashes."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line) for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a package registry's host", "index-url = https://" + "pypi" + ".org/simple"),
        ("a package registry's host", "https://files." + "pythonhosted" + ".org/packages/x.whl"),
        ("a path of somebody's machine", "see " + "/ro" + "ot/.cache/x"),
        ("a path of somebody's machine", '"' + "/wo" + 'rk/main/longtake"'),
        ("an API key", "key=" + "sk-" + "a1B2" * 8),
    ],
)
def test_the_patterns_find_what_they_look_for(what: str, text: str) -> None:
    assert FORBIDDEN[what].search(text)


def test_what_must_not_be_committed_is_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("fine\nkey=" + "sk-" + "a1B2" * 8)
    (tmp_path / "uv.lock").write_text("")
    assert [*problems([tmp_path / "notes.txt", tmp_path / "uv.lock"], root=tmp_path)] == [
        "notes.txt:2: an API key",
        "uv.lock: a lock file or somebody's own settings",
    ]


def test_the_license_is_the_one_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / "LICENSE").read_text().startswith(f"{project['license']} License\n")


# --- Requirements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_with_hashes(path: Path) -> None:
    assert entries(path)
    for entry in entries(path):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^ ]+( ; .+?)?( --hash=sha256:[0-9a-f]{64})+ ?", entry), entry


@pytest.mark.parametrize("name", ["run", "simulator", "demo"])
def test_what_runs_is_what_is_tested(name: str) -> None:
    tested = pins(ROOT / "requirements/test.txt")
    run = pins(ROOT / f"requirements/{name}.txt")
    assert run == {package: tested.get(package) for package in run}


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("run", ["cli", "encryption", "otel"]),
        ("simulator", ["simulator"]),
        ("demo", ["cli", "embedded", "encryption", "simulator", "otel"]),
        ("test", ["cli", "embedded", "encryption", "simulator", "otel", "test"]),
        ("mutants", ["mutants"]),
    ],
)
def test_the_requirements_are_those_of_the_package(name: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    pinned = pins(ROOT / f"requirements/{name}.txt")
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:
            continue
        versions = [
            one.partition(";")[0].removeprefix("==") for one in pinned.get(canonicalize_name(requirement.name), ())
        ]
        assert versions, f"{requirement} is not in {name}.txt: make lock"
        assert all(requirement.specifier.contains(one) for one in versions), f"{requirement}: make lock"


def test_this_environment_is_the_pinned_one() -> None:
    marker_environment = {key: str(value) for key, value in default_environment().items()}
    wanted = {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement in (
            Requirement(entry.split(" --hash", 1)[0]) for entry in entries(ROOT / "requirements/run.txt")
        )
        if requirement.marker is None or requirement.marker.evaluate(marker_environment)
    }
    assert {name: version(name) for name in wanted} == wanted


def test_the_makefile_and_the_lock_agree_on_uv() -> None:
    named = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert pins(ROOT / "requirements/uv.txt") == {"uv": {f"=={named[1]};None"}}


# --- Makefile and CI --------------------------------------------------------------------------------------------------


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    # Without MAKEFLAGS: the tests may themselves run under a make.
    clean = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=clean | environment,
        check=False,
    )


def test_help_is_the_default_and_names_the_two_commands() -> None:
    told = make()
    assert told.returncode == 0
    assert {"demo", "test", "check", "setup"} <= set(re.findall(r"^  make (\S+)", told.stdout, re.MULTILINE))


def test_every_documented_target_exists() -> None:
    for target in re.findall(r"^  make (\S+)", make().stdout, re.MULTILINE):
        assert make("--dry-run", target).returncode == 0, target


def test_ci_runs_each_check_and_the_tests_once() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    targets = re.search(r"^exec make .*keep-going (.+)$", script.read_text(), re.MULTILINE)
    assert targets
    assert "test" in targets[1].split()
    plan = make("--dry-run", *targets[1].split()).stdout
    counts = {tool: len(re.findall(rf"\.venv/bin/{tool}\b", plan)) for tool in ("ruff", "mypy", "lint-imports")}
    assert counts == {"ruff": 2, "mypy": 1, "lint-imports": 1}
    assert re.findall(r'-m pytest -m ("[a-z ]+"|[a-z]+)', plan) == ['"not system and not proof"', "proof", "system"]


def test_keep_is_handed_to_the_demo() -> None:
    assert "starter.py demo --keep" in make("--dry-run", "demo", "KEEP=1").stdout
    assert "--keep" not in make("--dry-run", "demo").stdout


@pytest.mark.parametrize(
    ("python", "told"),
    [
        (None, "install Python 3.11 or newer"),
        ("case $* in *version_info*) exit 1;; --version) echo Python 3.9.2;; esac", "Python 3.9.2 is too old"),
        ("case $* in *ensurepip*) exit 1;; esac", "apt-get install python3-venv"),
        ("case $* in *venv*.venv*) echo no space; exit 1;; esac", "The environment could not be made"),
    ],
    ids=["absent", "too old", "without venv", "venv fails"],
)
def test_a_machine_that_cannot_be_set_up_gets_the_reason(tmp_path: Path, python: str | None, told: str) -> None:
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "requirements/uv.txt", "requirements/demo.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    interpreter = tmp_path / "python"
    if python is not None:
        interpreter.write_text(f"#!/bin/sh\n{python}\n")
        interpreter.chmod(0o755)

    ended = make("demo", f"PYTHON={interpreter}", folder=tmp_path)

    assert ended.returncode != 0
    assert told in ended.stderr
    assert not (tmp_path / ".venv/.uv").exists()


@pytest.mark.parametrize(
    ("programs", "told"),
    [
        ({}, "there is no apt-get here"),
        ({"apt-get": "exit 0", "id": "echo 1000"}, "there is no sudo"),
        (
            {
                "apt-get": "echo no network; exit 100",
                "id": "echo 0",
                "mktemp": "echo log",
                "tail": "exit 0",
                "rm": "exit 0",
            },
            "apt-get could not install them",
        ),
    ],
    ids=["no apt-get", "not root", "apt-get fails"],
)
def test_system_packages_that_cannot_be_installed_are_named(
    tmp_path: Path, programs: dict[str, str], told: str
) -> None:
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(
        ["/bin/sh", str(ROOT / "tests/system/install.sh")],
        env={"PATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "apt-get install --no-install-recommends chromium prometheus" in ended.stderr


@pytest.mark.parametrize(
    ("asked", "collected"),
    [
        ("", False),
        ("not system", False),
        ("not system and asyncio", False),
        ("asyncio", False),
        ("system", True),
        ("system and not asyncio", True),
        ("not asyncio and system", True),
        ("(system)", True),
    ],
)
def test_the_system_tests_are_left_out_only_where_nobody_asks_for_them(asked: str, collected: bool) -> None:
    config = SimpleNamespace(getoption={"markexpr": asked}.get)
    assert (pytest_ignore_collect(cast("pytest.Config", config)) is None) is collected


def test_the_browser_is_the_one_that_is_found_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    (tmp_path / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium() == str(tmp_path / "chromium")


# --- Import rules that import-linter cannot enforce, because it takes packages only -----------------------------------


@pytest.mark.parametrize(("program", "unwanted"), [("worker", {"cli", "simulator"}), ("starter", {"simulator"})])
def test_the_two_programs_load_only_what_is_below_them(program: str, unwanted: set[str]) -> None:
    loaded = f"import sys, {program}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert program in ended.stdout.split()
    assert not unwanted & set(ended.stdout.split())


def test_the_build_backend_is_pinned_with_its_hashes() -> None:
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert re.fullmatch(r"[a-z]+==[0-9.]+", backend)
    locked = (ROOT / "requirements/build.txt").read_text()
    assert f"{backend} " in locked
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\S)", locked.strip()))
