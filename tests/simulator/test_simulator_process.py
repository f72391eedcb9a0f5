import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import httpx
import pytest

import simulator
from cli import app as cli_app
from simulator import Simulator
from simulator.personalities import PERSONALITIES
from simulator.scenarios import models_table, parameter_table
from tests.simulator.requests_to_simulator import KEY, Submit, parts

HEADERS = {"Authorization": f"Bearer {KEY}"}


def start(data_dir: Path, clips: Path) -> tuple[subprocess.Popen[str], str]:
    ready = data_dir / "ready.json"
    command = [sys.executable, "-m", "simulator", "--data-dir", str(data_dir), "--cache-dir", str(clips)]
    command += ["--api-key", KEY, "--ready-file", str(ready)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    told = json.loads(ready.read_text()) if line else {}
    assert line == f"simulator ready {told['url']}\n"
    assert told["pid"] == process.pid
    return process, told["url"]


def test_a_kill_loses_nothing_and_sigterm_ends_it_cleanly(tmp_path: Path, clips: Path) -> None:
    process, url = start(tmp_path, clips)
    try:
        answer = httpx.post(f"{url}/v1/videos", files=parts("before the kill"), headers=HEADERS)
        with pytest.raises(httpx.ReadError):
            httpx.post(f"{url}/v1/videos", files=parts("x [sim:submit_reset,times=1]"), headers=HEADERS)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"half a li')
    process, url = start(tmp_path, clips)
    try:
        paid = httpx.get(f"{url}/_simulator/paid").json()
        assert paid["total"] == 2
        task_id = answer.json()["task_id"]
        assert httpx.get(f"{url}/v1/videos/{task_id}", headers=HEADERS).json()["task_id"] == task_id
        again = httpx.post(f"{url}/v1/videos", files=parts("x [sim:submit_reset,times=1]"), headers=HEADERS)
        assert again.status_code == 200, "the attempts are remembered too"
        serials = [row["serial"] for row in httpx.get(f"{url}/_simulator/tasks").json()]
        assert len(set(serials)) == 3
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0


async def test_a_client_that_leaves_does_not_stop_its_submission(sim: Simulator, submit: Submit) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await submit("submit_hang")
    assert sim.ledger.paid()["total"] == 1


async def test_an_outage_answers_503_or_refuses(sim: Simulator, http: httpx.AsyncClient, submit: Submit) -> None:
    await http.post("/_simulator/outage", json={"on": True})
    assert (await submit()).status_code == 503
    await http.post("/_simulator/outage", json={"on": False})
    assert (await submit()).status_code == 200
    await http.post("/_simulator/outage", json={"on": True, "mode": "refuse"})
    await asyncio.sleep(0.1)
    with pytest.raises(httpx.ConnectError):
        await submit()
    async with httpx.AsyncClient(base_url=sim.cdn_url) as side_door:
        await side_door.post("/_simulator/outage", json={"on": False})
    assert (await submit()).status_code == 200
    assert sim.ledger.paid()["total"] == 2


async def test_the_ledger_tasks_and_reset(sim: Simulator, http: httpx.AsyncClient, submit: Submit) -> None:
    await submit("extend_failed")
    [entry] = (await http.get("/_simulator/ledger")).json()
    assert (entry["kind"], entry["paid"], entry["scenario"]) == ("submit", True, "extend_failed")
    [task] = (await http.get("/_simulator/tasks")).json()
    assert task["state"] == "extend_failed"
    await http.post("/_simulator/scenario", json={"default": "refuse_422"})
    assert (await http.post("/v1/videos", files=parts("untagged"))).status_code == 422
    await http.post("/_simulator/reset")
    assert sim.ledger.entries == []
    assert sim.ledger.path.read_text() == ""
    assert (await http.post("/v1/videos", files=parts("untagged"))).status_code == 200


def test_the_demo_can_show_every_gateway() -> None:
    like = get_type_hints(cli_app.demo)["like"]
    assert {*get_args(like)} == {*PERSONALITIES}


def test_the_readme_lists_exactly_what_the_code_plays() -> None:
    readme = (Path(os.fspath(simulator.__file__)).parent / "README.md").read_text()
    assert models_table() in readme
    assert parameter_table() in readme
