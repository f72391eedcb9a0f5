"""Prompts, keys and signed links: in no log, and keys and links not in Temporal's history either."""

import asyncio
import base64
import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from temporalio.client import Client
from temporalio.common import RawValue

from longtake.client import GenerationFailure, VideoClient
from longtake.temporal.connection import connect
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    DevServer,
    SimulatorProcess,
    Starter,
    WorkerProcess,
    eventually,
    flags,
    request,
    secrets_in,
)

SCENARIOS = {
    # The first links that the gateway hands out are refused, so that a delivery has much to say.
    "links": "link_403,links=1,seconds=30",
    "download": "download_404,downloads=1,seconds=30",
    "broken": "truncated,downloads=1,seconds=30",
    "verdict": "generate_failed,seconds=30",
    "short": "extend_failed,seconds=30",
    "refused": "refuse_422",
    "unknown": "fail_to_fetch_task",
    "trouble": "query_500,polls=1,seconds=30",
}


def texts(value: Any) -> list[str]:
    """Every text in a JSON document, payloads decoded."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts(part)] + (
            [base64.b64decode(value["data"]).decode(errors="replace")] if isinstance(value.get("data"), str) else []
        )
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [value] if isinstance(value, str) else []


async def histories(client: Client) -> list[str]:
    """All that Temporal knows of every generation."""
    found = []
    async for execution in client.list_workflows('WorkflowType = "GenerateVideo"'):
        handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
        found.append("\n".join(texts(json.loads((await handle.fetch_history()).to_json()))))
    return found


async def test_no_log_and_no_history_shows_a_secret(
    starter: Starter, worker: WorkerProcess, temporal: DevServer, simulator: SimulatorProcess
) -> None:
    client = await connect(temporal.address)
    generations = VideoClient(client)
    prompts = {name: f"secret {MARK} [sim:{scenario},label={name}]" for name, scenario in SCENARIOS.items()}
    await eventually(worker.ready, "the worker polls")
    begun = len(worker.log())
    for name, prompt in prompts.items():
        await generations.start(f"secret-{name}", request(prompt))
    visible = await starter("generate", *flags(prompts["links"]), "--key", "secret-links")
    assert visible.code == 0, visible
    ended = await asyncio.gather(
        *(generations.result(f"secret-{name}") for name in prompts if name != "unknown"), return_exceptions=True
    )
    kinds = sorted(end.kind if isinstance(end, GenerationFailure) else end.outcome for end in ended)  # type: ignore[union-attr]
    assert kinds == ["GenerationFailed", "SubmissionRefused", "fallback", "full", "full", "full", "full"]

    assert '"event": "submitted"' in worker.log()[begun:], "otherwise there is nothing to look through"
    assert secrets_in(worker.log()) == []
    assert secrets_in(temporal.log()) == []
    assert secrets_in(visible.out + visible.err) == []
    known = await histories(client)
    assert len(known) >= len(prompts)
    assert any(MARK in history for history in known), "the request itself is in the history, so it was decoded"
    for history in known:
        assert API_KEY not in history
        assert [line for line in secrets_in(history) if MARK not in line] == []
    # Neither did anybody but the gateway get the key.
    assert simulator.violations() == []


async def test_prompts_can_be_kept_out_of_temporal(
    starter: Starter, worker: WorkerProcess, temporal: DevServer, simulator: SimulatorProcess
) -> None:
    await eventually(worker.ready, "the worker polls")
    hiding = starter.but(LONGTAKE_HIDE_PROMPTS="true")
    prompt = f"unseen {MARK} [sim:seconds=30,label=unseen]"
    input = ("generate", *flags(prompt), "--key", "unseen-1", "--json")
    made = await hiding(*input)
    assert made.code == 0, made
    assert simulator.paid(prompt) == 1, "the gateway got the text itself"

    handle = (await connect(temporal.address)).get_workflow_handle("video-unseen-1")
    history = await handle.fetch_history()
    shown = "\n".join(
        [
            *texts(json.loads(history.to_json())),
            *texts(MessageToDict((await handle.describe()).raw_description)),
            str(await handle.query("status")),
            str(await handle.query("__temporal_workflow_metadata", result_type=RawValue)),
        ]
    )
    assert "prompts/" in shown, "the path is there, so the request was decoded"
    assert MARK not in shown.lower()

    # The same key is the same request in either form, and for another one the error names what differs.
    assert (await starter(*input)).json()["run_id"] == made.json()["run_id"]
    other = await hiding("generate", *flags(f"another {prompt}"), "--key", "unseen-1")
    assert other.code == 2
    assert "differs in prompt" in other.err
    assert simulator.paid(prompt) == 1
