"""`make audit`: bandit, and what is installed held against what is locked, without a network."""

import base64
import hashlib
import re
import subprocess
import sys
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from tests.packaging.locked import problems
from tests.packaging.test_repository import ROOT, make

_PINS = {"sound": {"1.0"}, "needed": {"2.0"}}
_WITHOUT_A_NETWORK = """
import runpy, sys

def refuse(event, arguments):
    if event.startswith("socket."):
        raise SystemExit(f"{event}{arguments}: the audit asks the network")

sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def installed(folder: Path, name: str = "sound", version: str = "1.0", needs: str = "", content: str = "x") -> Path:
    """A package of one file, as an installer leaves it; returns that file."""
    folder.mkdir(exist_ok=True)
    module, info = folder / f"{name}.py", folder / f"{name}-{version}.dist-info"
    info.mkdir()
    module.write_text(content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"{module.name},sha256={digest},{len(content)}\n{info.name}/RECORD,,\n")
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
    return module


def found(folder: Path) -> list[str]:
    there: list[Distribution] = [PathDistribution(path) for path in sorted(folder.glob("*.dist-info"))]
    return list(problems(there, _PINS))


def test_what_is_as_it_was_locked_has_no_problem(tmp_path: Path) -> None:
    installed(tmp_path, needs="needed>=2")
    installed(tmp_path, "needed", "2.0")
    assert found(tmp_path) == []


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    installed(tmp_path).write_text("import os; os.system('…')")
    assert [problem.split(":")[0] for problem in found(tmp_path)] == ["sound"]


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    installed(tmp_path).unlink()
    assert len(found(tmp_path)) == 1


@pytest.mark.parametrize(("name", "version"), [("sound", "1.1"), ("stranger", "1.0")])
def test_what_is_not_locked_is_found(tmp_path: Path, name: str, version: str) -> None:
    installed(tmp_path, name, version)
    assert len(found(tmp_path)) == 1


@pytest.mark.parametrize("there", [None, "2.0"], ids=["missing", "too old"])
def test_a_package_that_does_not_fit_is_found(tmp_path: Path, there: str | None) -> None:
    installed(tmp_path, needs="needed>=3")
    if there:
        installed(tmp_path, "needed", there)
    assert len(found(tmp_path)) == 1


def test_check_audits_and_the_audit_asks_no_network() -> None:
    """As `make check` would run it, in processes that may not open a socket; bandit reads one program of all."""
    plan = make("--dry-run", "check").stdout
    (bandit, paths) = re.findall(r"^\.venv/bin/(bandit .+ pyproject\.toml)((?: \S+)+)$", plan, re.MULTILINE)[0]
    (locked,) = re.findall(r"^\.venv/bin/python -m (tests\.packaging\.locked)$", plan, re.MULTILINE)
    assert {"longtake", "activities", "workflows", "starter.py"} < {*paths.split()}
    for words in ([*bandit.split(), "starter.py"], [locked]):
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_A_NETWORK, *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_process_that_may_open_no_socket_cannot_ask() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_A_NETWORK, "http.server", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "asks the network" in done.stderr
