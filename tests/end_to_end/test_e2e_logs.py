"""The log of a real worker while generations fail: every line is one event, and tells whose it is."""

import json
from typing import Any

import pytest

from longtake.client import GenerationFailure, VideoClient
from longtake.temporal.connection import connect
from tests.end_to_end.processes import (
    MARK,
    DevServer,
    SimulatorProcess,
    WorkerProcess,
    eventually,
    request,
    secrets_in,
)


async def test_a_worker_tells_whose_event_it_is(
    worker: WorkerProcess, temporal: DevServer, simulator: SimulatorProcess
) -> None:
    await eventually(worker.ready, "the worker polls")
    generations = VideoClient(await connect(temporal.address))
    prompt = f"logged {MARK} [sim:generate_failed,seconds=60,label=logged]"
    await generations.start("logged", request(prompt))
    await generations.start("troubled", request(f"troubled {MARK} [sim:query_500,polls=1,seconds=30,label=troubled]"))
    with pytest.raises(GenerationFailure) as failure:
        await generations.result("logged")
    await generations.result("troubled")

    events: list[dict[str, Any]] = [json.loads(line) for line in worker.log().splitlines()]
    assert all({"time", "level", "logger", "event"} <= event.keys() for event in events)
    ours = [event for event in events if event.get("workflow_id") == "video-logged"]
    task_id = failure.value.details.task_id
    (post,) = simulator.posts(prompt)
    assert {event["run_id"] for event in ours} == {ours[0]["run_id"]}

    stages = [event["stage"] for event in ours if event["event"].startswith("stage ")]
    assert [stages[0], stages[1], stages[-1]] == ["preparing", "submitting", "failed"]
    assert len(stages) == len(set(stages)), "once each: replays are silent"

    by_event = {event["event"]: event for event in ours}
    sent, submitted, polled = by_event["POST /v1/videos"], by_event["submitted"], by_event[f"GET /v1/videos/{task_id}"]
    assert (sent["stage"], sent["request_id"], sent["http_status"]) == ("submitting", post["request_id"], 200)
    assert (submitted["task_id"], submitted["request_id"]) == (task_id, post["request_id"])
    assert polled["stage"] in {"first_segment", "extending"}
    assert (polled["task_id"], polled["activity"], polled["attempt"]) == (task_id, "query_generation", 1)
    assert polled["request_id"] not in {None, post["request_id"]}

    end = by_event["generation failed"]
    assert (end["level"], end["stage"], end["task_id"]) == ("info", "failed", task_id)
    assert (end["error_type"], end["error"]) == (failure.value.kind, failure.value.message)
    assert (end["request_id"], end["gateway_code"]) == (post["request_id"], "generate_failed")

    # A line of the SDK, about a poll that failed.
    (failed,) = [
        event
        for event in events
        if event["event"].startswith("Completing activity as failed") and event["workflow_id"] == "video-troubled"
    ]
    (answer,) = [entry for entry in simulator.requests("troubled") if entry["status"] == 500]
    assert failed["logger"] == "temporalio.activity"
    assert (failed["workflow_id"], failed["activity"], failed["attempt"]) == ("video-troubled", "query_generation", 1)
    assert (failed["task_id"], failed["request_id"]) == (answer["task_id"], answer["request_id"])
    assert failed["stage"] == "first_segment"
    assert failed["error_type"] == "PollFailing"
    assert failed["error"]
    assert failed["at"].startswith("activities/")
    assert secrets_in(worker.log()) == []
