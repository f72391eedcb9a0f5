"""What is refused before anything is paid, and how it is said."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longtake.models import GenerateVideoInput, OnExtendFailed, Problem
from longtake.request.rules import (
    MAX_INLINE_IMAGE_CHARACTERS,
    MAX_PROMPT_CHARACTERS,
    MAX_REQUEST_BYTES,
    MODELS,
    SIZES,
    InvalidRequest,
    Size,
    check_request,
    differing_fields,
    expected_size,
    is_in_store,
    prompt_path,
    request_digest,
    warnings_for,
)

GOOD: dict[str, Any] = {
    "model": "veo_3_1-fast-remix",
    "prompt": "a paper boat",
    "prompt_extend": "it reaches the shore",
}
FRAMES = [name for name in MODELS if "-fl" in name]
REFERENCES = [name for name in MODELS if "-fl" not in name]


def images(count: int) -> list[dict[str, str]]:
    return [{"uri": f"https://example.com/{number}.png"} for number in range(count)]


def problems(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refusal:
        check_request({**GOOD, **fields})
    found = {problem.field: problem.rule for problem in refusal.value.problems}
    assert len(found) == len(refusal.value.problems), "one problem is told once"
    assert str(refusal.value) == "; ".join(f"{field}: {rule}" for field, rule in found.items())
    return found


# --- The contract's tables -------------------------------------------------------------------------------------------


def test_the_models_are_the_eight_of_the_contract() -> None:
    assert set(MODELS) == {
        "veo_3_1-fast-remix",
        "veo_3_1-fast-fl-remix",
        "veo_3_1-fast-hd-remix",
        "veo_3_1-fast-fl-hd-remix",
        "veo_3_1-hd-remix",
        "veo_3_1-hd-fl-remix",
        "veo_3_1-remix",
        "veo_3_1-fl-remix",
    }
    assert all(name == model.name and model.title for name, model in MODELS.items())
    assert {name for name, model in MODELS.items() if model.frames} == set(FRAMES)
    assert {name for name, model in MODELS.items() if model.hd} == {name for name in MODELS if "-hd" in name}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("count", range(6))
def test_first_and_last_frame_models_take_one_or_two_images(name: str, count: int) -> None:
    if count in (1, 2):
        assert len(check_request({**GOOD, "model": name, "images": images(count)}).images) == count
    else:
        rule = f"{name} takes 1 or 2 images (first frame, last frame); {count} given"
        assert problems(model=name, images=images(count)) == {"images": rule}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("count", range(6))
def test_the_other_models_take_up_to_three_references(name: str, count: int) -> None:
    if count <= 3:
        assert len(check_request({**GOOD, "model": name, "images": images(count)}).images) == count
    else:
        rule = f"{name} takes 0 to 3 reference images; {count} given"
        assert problems(model=name, images=images(count)) == {"images": rule}


def test_frames_model_without_the_field_images_is_refused() -> None:
    assert set(problems(model="veo_3_1-fl-remix")) == {"images"}


def test_order_of_images_holds() -> None:
    request = check_request({**GOOD, "images": images(3)})
    assert [image.uri for image in request.images] == [image["uri"] for image in images(3)]


def test_sizes_are_the_four_of_the_contract() -> None:
    assert {
        "1280x720": Size(1280, 720),
        "720x1280": Size(720, 1280),
        "1920x1080": Size(1920, 1080),
        "1080x1920": Size(1080, 1920),
    } == SIZES
    assert [size.is_1080p for size in SIZES.values()] == [False, False, True, True]


@pytest.mark.parametrize("size", [*SIZES, None])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_size_and_1080p_without_hd_is_a_warning(name: str, size: str | None) -> None:
    request = check_request({**GOOD, "model": name, "size": size, "images": images(1)})
    too_large = size in ("1920x1080", "1080x1920") and not MODELS[name].hd
    assert len(warnings_for(request)) == too_large
    if too_large:
        assert str(size) in warnings_for(request)[0]
        assert name in warnings_for(request)[0]
    assert expected_size(request) == (None if too_large or size is None else SIZES[size])


@pytest.mark.parametrize("size", ["", "1280X720", "720p", "1280x721", " 1280x720", "1280×720"])
def test_any_other_size_is_refused(size: str) -> None:
    found = problems(size=size)
    assert [*found] == ["size"]
    assert all(known in found["size"] for known in SIZES)


@pytest.mark.parametrize("name", ["", "veo_3_1", "veo_3_1-fast", "VEO_3_1-FAST-REMIX", "veo_3_1-fast-remix "])
def test_any_other_model_is_refused_with_the_list(name: str) -> None:
    (rule,) = problems(model=name).values()
    assert all(known in rule for known in MODELS)


def test_pace_follows_the_field_notes() -> None:
    assert MODELS["veo_3_1-fast-remix"].duration_factor == 1
    assert 1 < MODELS["veo_3_1-fl-remix"].duration_factor < MODELS["veo_3_1-hd-remix"].duration_factor


# --- Prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt", "prompt_extend"])
class TestPrompts:
    def test_is_required(self, name: str) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            check_request({field: value for field, value in GOOD.items() if field != name})
        assert [problem.field for problem in refusal.value.problems] == [name]

    @pytest.mark.parametrize(
        "text", ["纸船驶向岸边,请保持安静", "a boat ⛵ and a family 👩‍👩‍👧", "שלום", "é\u0301\n\tline two"]
    )
    def test_any_language_and_emoji_are_fine(self, name: str, text: str) -> None:
        assert getattr(check_request({**GOOD, name: text}), name) == text

    @pytest.mark.parametrize("text", ["", " ", "\n\t  ", "\u3000"])
    def test_must_say_something(self, name: str, text: str) -> None:
        assert [*problems(**{name: text})] == [name]

    def test_is_not_longer_than_a_model_could_read(self, name: str) -> None:
        check_request({**GOOD, name: "船" * MAX_PROMPT_CHARACTERS})
        (rule,) = problems(**{name: "x" * 100_000}).values()
        assert re.findall(r"[\d,]+", rule) == [f"{MAX_PROMPT_CHARACTERS:,}", "100,000"]

    def test_half_a_surrogate_pair_is_refused(self, name: str) -> None:
        (rule,) = problems(**{name: json.loads('"boat \\ud800"')}).values()
        assert "Unicode" in rule

    def test_nul_is_refused(self, name: str) -> None:
        assert [*problems(**{name: "boat\x00"})] == [name]

    @pytest.mark.parametrize("value", [None, 7, True, ["a"], {"text": "a"}])
    def test_is_a_string(self, name: str, value: object) -> None:
        assert [*problems(**{name: value})] == [name]

    def test_can_be_a_path_in_the_store(self, name: str) -> None:
        assert is_in_store(path := prompt_path("a boat"))
        assert getattr(check_request({**GOOD, name: path}), name) == path
        assert getattr(check_request({**GOOD, name: f"{path} is a path"}), name) == f"{path} is a path"

    @pytest.mark.parametrize("path", ["prompts/boat.txt", "prompts/" + "A" * 64 + ".txt", "prompts/"])
    def test_a_mistyped_path_is_not_sent_as_a_prompt(self, name: str, path: str) -> None:
        (rule,) = problems(**{name: path}).values()
        assert "prompts/<sha256 of the text>.txt" in rule

    def test_is_never_repeated_in_an_error(self, name: str) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            check_request({**GOOD, name: "the secret plan\x00", "model": "veo_4", "size": "big"})
        assert "secret" not in str(refusal.value)
        assert "secret" not in repr(refusal.value.problems)


# --- Images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/a.png",
        "http://example.com:8080/图.jpg?x=1",
        "data:image/jpeg;base64,/9j/4AAQ",
        "data:image/png;base64,AAAA",
        "data:image/webp;base64,AAAA",
        "file:///store/images/abc.png",
        "s3://bucket/images/abc.png",
        "images/abc.png",
    ],
)
def test_every_kind_of_address_is_taken(uri: str) -> None:
    assert check_request({**GOOD, "images": [{"uri": uri}]}).images[0].uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "  ",
        "https://",
        "https:///a.png",
        "https://user:secret@example.com/a.png",
        "https://user@example.com/a.png",
        "https://example.com/a b.png",
        "http:a.png",
        "https://[",
        "data:image/gif;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:",
        "data:image/png;base64," + "A" * MAX_INLINE_IMAGE_CHARACTERS,
        json.loads('"https://example.com/\\ud800"'),
    ],
    ids=lambda uri: ascii(uri[:40]),
)
def test_address_that_cannot_work_is_refused(uri: str) -> None:
    found = problems(images=[{"uri": "https://example.com/a.png"}, {"uri": uri}])
    assert set(found) == {"images[1].uri"}
    assert "secret" not in found["images[1].uri"]


def test_data_uris_are_limited_in_sum() -> None:
    """Temporal refuses a payload of 2 MiB, whatever its parts are."""
    third = "data:image/png;base64," + "A" * (MAX_INLINE_IMAGE_CHARACTERS // 3)
    link = {"uri": "https://example.com/a.png"}
    assert check_request({**GOOD, "images": [{"uri": third}] * 2 + [link]})
    assert set(problems(images=[{"uri": third}] * 3)) == {"images[0].uri"}


def test_a_request_is_limited_as_a_whole() -> None:
    assert set(problems(images=[{"uri": "https://example.com/" + "a" * MAX_REQUEST_BYTES}])) == {"input"}


def test_the_largest_request_fits_into_a_payload() -> None:
    inline = "data:image/png;base64,"
    images = [{"uri": inline + "A" * (MAX_INLINE_IMAGE_CHARACTERS - len(inline))}]
    prompts = dict.fromkeys(("prompt", "prompt_extend"), "\U0001f6a4" * MAX_PROMPT_CHARACTERS)
    request = check_request({**GOOD, **prompts, "images": images})
    assert len(request.model_dump_json()) < MAX_REQUEST_BYTES


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (None, {"images"}),
        ("a.png", {"images"}),
        ({"uri": "a.png"}, {"images"}),
        (["a.png"], {"images[0]"}),
        ([{}], {"images[0].uri"}),
        ([{"uri": 7}], {"images[0].uri"}),
        ([{"uri": "https://example.com/a.png", "role": "first"}], {"images[0].role"}),
        ([{"uri": "https://example.com/a.png"}, {"url": "x"}], {"images[1].uri", "images[1].url"}),
    ],
)
def test_shape_of_images_follows_from_their_position(value: object, fields: set[str]) -> None:
    assert set(problems(images=value)) == fields


# --- All at once -----------------------------------------------------------------------------------------------------


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        model="veo_4",
        prompt="",
        prompt_extend=15,
        size="huge",
        images=[{"uri": "https://"}],
        on_extend_failed="pray",
        seconds=15,
    )
    assert set(found) == {
        "model",
        "prompt",
        "prompt_extend",
        "size",
        "images[0].uri",
        "on_extend_failed",
        "seconds",
    }
    assert all(wish in found["on_extend_failed"] for wish in OnExtendFailed)
    assert all(field in found["seconds"] for field in ("model", "prompt", "prompt_extend"))


@pytest.mark.parametrize("raw", [None, [], "text", 7, True, [GOOD], b"{}"])
def test_anything_but_an_object_is_refused(raw: object) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_request(raw)
    assert [problem.field for problem in refusal.value.problems] == ["input"]


@pytest.mark.parametrize("task_id", ["", " ", "two words", "x" * 256, "a/b", "$(id)", "..", "line\n"])
def test_task_to_take_over_is_an_id(task_id: str) -> None:
    assert set(problems(task_id=task_id)) == {"task_id"}


def test_good_request_passes_as_json_and_as_a_model() -> None:
    request = check_request({**GOOD, "on_extend_failed": "ask", "keep_first": True, "task_id": "task_1"})
    assert request.on_extend_failed is OnExtendFailed.ASK
    assert check_request(request) == request


def test_model_object_is_judged_too() -> None:
    with pytest.raises(InvalidRequest):
        check_request(GenerateVideoInput(model="veo_4", prompt="", prompt_extend="x"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        name: json_values | st.sampled_from(["veo_3_1-fl-remix", "x", "1280x720", "ask"])
        for name in GenerateVideoInput.model_fields
    },
)


@given(json_values | likely | st.builds(lambda part: {**GOOD, **part}, likely))
@example({**GOOD, "images": [{"uri": "//["}]})
@example({**GOOD, "images": [{"uri": "https://["}]})
@example({**GOOD, "images": [{"uri": "https://example.com:99999999/"}]})
def test_any_json_is_a_request_or_named_problems(raw: object) -> None:
    named: list[Problem] = []
    request = None
    try:
        request = check_request(raw)
    except InvalidRequest as refusal:
        named += refusal.problems
    assert all(problem.field and problem.rule for problem in named)
    if request is None:
        assert named
    else:
        assert request.model in MODELS
        assert check_request(request.model_dump(mode="json")) == request


# --- Telling requests apart ------------------------------------------------------------------------------------------


def test_digest_is_that_of_what_the_gateway_is_sent() -> None:
    ours = check_request(GOOD)
    assert request_digest(ours) == request_digest(check_request({**GOOD, "images": [], "size": None}))
    assert request_digest(ours) == request_digest(check_request({**GOOD, "on_extend_failed": "fail"}))
    assert request_digest(ours) == request_digest(check_request({**GOOD, "keep_first": True}))
    assert len(request_digest(ours)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"model": "veo_3_1-remix"},
        {"prompt": "a paper boat "},
        {"prompt_extend": "a paper boat"},
        {"prompt": GOOD["prompt_extend"], "prompt_extend": GOOD["prompt"]},
        {"size": "1280x720"},
        {"images": images(1)},
        {"task_id": "task_1"},
    ],
)
def test_digest_differs_where_the_gateway_would_be_sent_something_else(change: dict[str, Any]) -> None:
    assert request_digest(check_request({**GOOD, **change})) != request_digest(check_request(GOOD))


def test_digest_tells_the_order_of_images() -> None:
    pair = images(2)
    assert request_digest(check_request({**GOOD, "images": pair})) != request_digest(
        check_request({**GOOD, "images": pair[::-1]})
    )


def test_digest_never_changes_between_releases() -> None:
    """The ledger holds it for ever: another digest for the same request would look like another request."""
    assert request_digest(check_request(GOOD)) == "d83762a84e123f7cf7af2c63cebbf82a9572264e5b8a876cf8cc89fc3506eed5"
    rich = {**GOOD, "prompt": "纸船 ⛵", "size": "1280x720", "images": images(2)}
    assert request_digest(check_request(rich)) == "b4d7de387eb3c88008202afff7d4bb91312b58dce8b0582760d438e34963b154"


def test_a_prompt_and_its_path_in_the_store_do_not_differ() -> None:
    ours = check_request(GOOD)
    theirs = check_request({**GOOD, "prompt": prompt_path(GOOD["prompt"])})
    assert differing_fields(ours, theirs) == ()
    assert differing_fields(ours, check_request({**GOOD, "prompt": prompt_path("another")})) == ("prompt",)


def test_differing_fields_are_named_in_order() -> None:
    ours = check_request(GOOD)
    assert differing_fields(ours, ours) == ()
    theirs = check_request({**GOOD, "prompt": "another", "on_extend_failed": "fail", "images": images(1)})
    assert differing_fields(ours, theirs) == ("prompt", "images", "on_extend_failed")


def test_a_model_not_offered_any_more_differs_from_one_that_never_was() -> None:
    retired = {**GOOD, "model": "veo_2", "size": "640x360"}
    assert check_request(retired, offered=False).model == "veo_2"
    with pytest.raises(InvalidRequest) as refused:
        check_request(retired)
    assert {problem.field for problem in refused.value.problems} == {"model", "size"}
    for broken in ({"prompt": ""}, {"model": "m" * 101}, {"model": "a b"}, {"model": ""}):
        with pytest.raises(InvalidRequest) as refused:
            check_request({**retired, **broken}, offered=False)
        assert {problem.field for problem in refused.value.problems} == {"model", "size", *broken}


@pytest.mark.parametrize("name", [model.name for model in MODELS.values() if model.frames])
def test_a_task_is_taken_over_without_images(name: str) -> None:
    assert check_request({**GOOD, "model": name, "task_id": "task_1"}).images == ()
    with pytest.raises(InvalidRequest):
        check_request({**GOOD, "model": name})
