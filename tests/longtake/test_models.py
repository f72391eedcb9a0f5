"""Payloads: old ones decode for ever, unknown fields are borne, and only requests are strict about them."""

import inspect
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from longtake import models
from longtake.models import (
    Decision,
    GenerateVideoInput,
    GenerateVideoResult,
    GenerationPolicy,
    GenerationStatus,
    ImageInput,
    SubmissionReceipt,
    SubmitInput,
    TaskRecord,
)
from longtake.temporal.connection import DATA_CONVERTER

PAYLOADS: dict[str, type[BaseModel]] = {
    name: kind
    for name, kind in vars(models).items()
    if inspect.isclass(kind) and issubclass(kind, BaseModel) and kind is not BaseModel and not name.startswith("_")
}

STRICT = {"GenerateVideoInput", "ImageInput", "Decision"}
"""What people write: a misspelt option must not be paid for."""

OLD: dict[str, dict[str, Any]] = {
    # As the first release wrote them, the least that each can hold. Never edit these: add to them.
    "ImageInput": {"uri": "https://example.com/a.png"},
    "AwaitKeyInput": {"key": "k"},
    "KeyTrial": {"trial": True},
    "GenerateVideoInput": {"model": "veo_3_1-fast-remix", "prompt": "a", "prompt_extend": "b"},
    "MediaInfo": {"duration_seconds": 8.0, "width": 1280, "height": 720, "has_audio": True},
    "StoredVideo": {
        "duration_seconds": 8.0,
        "width": 1280,
        "height": 720,
        "has_audio": True,
        "uri": "file:///v.mp4",
        "sha256": "00",
        "bytes": 3,
    },
    "GenerateVideoResult": {
        "outcome": "fallback",
        "video": {
            "duration_seconds": 8.0,
            "width": 1280,
            "height": 720,
            "has_audio": True,
            "uri": "file:///v.mp4",
            "sha256": "00",
            "bytes": 3,
        },
        "model": "veo_3_1-fast-remix",
        "task_id": "task_1",
        "polls": 3,
    },
    "Problem": {"field": "model", "rule": "is required"},
    "FailureDetails": {},
    "TaskRecord": {"task_id": "task_1", "state": "running"},
    "GenerationStatus": {"key": "order-1", "stage": "first_segment"},
    "PollSchedule": {"expected": "PT2M30S", "floor": "PT5S"},
    "GenerationPolicy": {},
    "SubmissionReceipt": {"task_id": "task_1", "submitted_at": "2026-07-22T10:00:00Z", "slot": 1},
    "DeliveryReceipt": {
        "video": {
            "duration_seconds": 8.0,
            "width": 1280,
            "height": 720,
            "has_audio": True,
            "uri": "file:///v.mp4",
            "sha256": "00",
            "bytes": 3,
        }
    },
    "PrepareInput": {"request": {"model": "veo_3_1-fast-remix", "prompt": "a", "prompt_extend": "b"}},
    "ExtensionInput": {"remix_id": "video_1", "number": 1},
    "SubmitInput": {
        "key": "order-1",
        "request": {"model": "veo_3_1-fast-remix", "prompt": "a", "prompt_extend": "b"},
    },
    "RecordInput": {
        "key": "order-1",
        "receipt": {"task_id": "task_1", "submitted_at": "2026-07-22T10:00:00Z", "slot": 1},
    },
    "ReconcileInput": {"key": "order-1", "model": "veo_3_1-fast-remix"},
    "Reconciliation": {},
    "ResolveInput": {"key": "order-1"},
    "Resolution": {},
    "PollInput": {"key": "order-1", "task_id": "task_1"},
    "DeliverInput": {"key": "order-1", "task_id": "task_1", "kind": "full"},
    "Decision": {"action": "accept"},
    "CloseInput": {"key": "order-1"},
    "ClosedSubmission": {},
    "LedgerRegistration": {"ledger": "0123"},
    "UncollectedExtension": {"number": 1, "reason": "TaskLost: gone"},
}


def test_every_payload_has_an_old_example() -> None:
    assert set(OLD) == set(PAYLOADS)


@pytest.mark.parametrize("name", OLD)
def test_old_payload_decodes(name: str) -> None:
    """A new field without a default, a field renamed or made stricter: each breaks this."""
    assert PAYLOADS[name].model_validate_json(json.dumps(OLD[name])) is not None


@pytest.mark.parametrize("name", OLD)
def test_payload_goes_through_temporal_unchanged(name: str) -> None:
    converter = DATA_CONVERTER.payload_converter
    value = PAYLOADS[name].model_validate(OLD[name])
    (payload,) = converter.to_payloads([value])
    assert converter.from_payloads([payload], [PAYLOADS[name]]) == [value]


@pytest.mark.parametrize("name", sorted(set(OLD) - STRICT))
def test_field_of_a_newer_worker_is_borne(name: str) -> None:
    kind = PAYLOADS[name]
    assert kind.model_validate({**OLD[name], "from_the_future": [1]}) == kind.model_validate(OLD[name])


@pytest.mark.parametrize("name", sorted(STRICT))
def test_misspelt_field_of_what_people_write_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="from_the_future"):
        PAYLOADS[name].model_validate({**OLD[name], "from_the_future": [1]})


def test_misspelt_field_of_an_image_inside_a_request_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"images\.0\.role"):
        GenerateVideoInput.model_validate(
            {**OLD["GenerateVideoInput"], "images": [{"uri": "https://example.com/a.png", "role": "first"}]}
        )


@pytest.mark.parametrize("name", OLD)
def test_payload_is_frozen(name: str) -> None:
    value = PAYLOADS[name].model_validate(OLD[name])
    field = next(iter(PAYLOADS[name].model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, field, None)


def test_defaults_of_old_payloads_are_the_cautious_ones() -> None:
    """A history of before a field existed must not suddenly retry, ask or keep more."""
    policy = GenerationPolicy.model_validate(OLD["GenerationPolicy"])
    assert (policy.extension_retries, policy.decision_window.total_seconds()) == (0, 0)
    request = GenerateVideoInput.model_validate(OLD["GenerateVideoInput"])
    assert (request.on_extend_failed, request.keep_first, request.task_id) == ("fallback", False, None)
    receipt = SubmissionReceipt.model_validate(OLD["SubmissionReceipt"])
    assert (receipt.attached, receipt.recorded) == (False, True)
    assert GenerationStatus.model_validate(OLD["GenerationStatus"]).decisions == ()
    assert TaskRecord.model_validate(OLD["TaskRecord"]).has_video_link is False
    assert GenerateVideoResult.model_validate(OLD["GenerateVideoResult"]).warnings == ()


def test_each_payment_has_a_name_of_its_own_in_the_ledger() -> None:
    first = SubmitInput.model_validate(OLD["SubmitInput"])
    second = SubmitInput.model_validate({**OLD["SubmitInput"], "extension": OLD["ExtensionInput"]})
    assert (first.ledger_key, second.ledger_key) == ("order-1", "order-1#extend-1")


def test_prompts_and_image_addresses_show_in_no_repr() -> None:
    request = GenerateVideoInput(
        model="veo_3_1-fast-remix",
        prompt="the secret plan",
        prompt_extend="the secret end",
        images=(ImageInput(uri="https://example.com/secret.png?signature=secret"),),
    )
    for shown in (repr(request), str(request), repr(SubmitInput(key="k", request=request))):
        assert "secret" not in shown


@pytest.mark.parametrize("action", ["accept", "retry", "adopt", "resubmit", "abandon"])
def test_decisions_keep_their_words(action: str) -> None:
    assert Decision.model_validate({"action": action}).action == action
