"""The eight models and what each accepts: a request is judged here, before anything is paid.

Source: the contract's tables "Submit" and its list of models.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from longtake.models import GenerateVideoInput, OnExtendFailed, OnKeyRefused, Problem, with_plain_scheme

MAX_PROMPT_CHARACTERS = 10_000
"""Per prompt. The contract gives no limit; the model itself reads about 1,024 tokens, so more is a mistake."""

MAX_INLINE_IMAGE_CHARACTERS = 1_000_000
"""Of all `data:` URIs of a request together. Temporal refuses payloads above 2 MiB, and the request travels with what
else is known; `longtake` puts larger images into the store and passes their address instead."""
MAX_REQUEST_BYTES = 1_250_000
"""Of the whole request as JSON: room for the images above, both prompts and addresses."""
MAX_PROBLEMS = 20
"""That one refusal names: whoever has more mends these first, and a failure must stay far below 2 MiB."""
_MAX_FIELD_CHARACTERS = 80
_MAX_RULE_CHARACTERS = 400


@dataclass(frozen=True)
class Size:
    """A picture size that the gateway takes, in pixels."""

    width: int
    height: int

    @property
    def is_1080p(self) -> bool:
        """Whether only an `-hd` model really produces it."""
        return min(self.width, self.height) == 1080  # noqa: PLR2004 - it is the "1080" of 1080p


TASK_ID_RULE = "a task id has 1 to 255 characters: letters, digits and . _ : -"
_TASK_ID = re.compile(r"[A-Za-z0-9._:-]{1,255}")
"""255 is where search attributes end on some databases."""
_IN_STORE = re.compile(r"prompts/[0-9a-f]{64}\.txt")

SIZES: Mapping[str, Size] = {
    "1280x720": Size(1280, 720),
    "720x1280": Size(720, 1280),
    "1920x1080": Size(1920, 1080),
    "1080x1920": Size(1080, 1920),
}


@dataclass(frozen=True)
class VideoModel:
    """One of the gateway's models."""

    name: str
    title: str
    frames: bool = False
    """True where the images are the first and the last frame, False where they are references."""
    hd: bool = False
    """True where the output is 1080p."""

    @property
    def images(self) -> range:
        """How many images it takes."""
        return range(1, 3) if self.frames else range(4)

    @property
    def images_rule(self) -> str:
        """The same in words."""
        return "1 or 2 images (first frame, last frame)" if self.frames else "0 to 3 reference images"

    @property
    def duration_factor(self) -> float:
        """How long its generations take, as a multiple of the expected time of the plain fast model.

        Field notes: 150 to 300 s in general, 3 to 5 minutes for first-and-last-frame, 5 to 10 minutes for 1080p.
        """
        return 2.5 if self.hd else 1.6 if self.frames else 1.0


MODELS: Mapping[str, VideoModel] = {
    model.name: model
    for model in (
        VideoModel("veo_3_1-fast-remix", "fast: text to video, or reference images"),
        VideoModel("veo_3_1-fast-fl-remix", "fast: first and last frame", frames=True),
        VideoModel("veo_3_1-fast-hd-remix", "fast, 1080p: text, or reference images", hd=True),
        VideoModel("veo_3_1-fast-fl-hd-remix", "fast, 1080p: first and last frame", frames=True, hd=True),
        VideoModel("veo_3_1-hd-remix", "high quality, 1080p: text, or reference images", hd=True),
        VideoModel("veo_3_1-hd-fl-remix", "high quality, 1080p: first and last frame", frames=True, hd=True),
        VideoModel("veo_3_1-remix", "standard: text, or reference images"),
        VideoModel("veo_3_1-fl-remix", "standard: first and last frame", frames=True),
    )
}


def duration_factor_of(model: str) -> float:
    """`VideoModel.pace`; of a model that has been retired since it was paid for, that of a plain one."""
    known = MODELS.get(model)
    return known.duration_factor if known else 1.0


class InvalidRequest(Exception):
    """The request breaks rules of the contract; nothing was sent and nothing was paid."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Keep the first `MAX_PROBLEMS`, each cut to a bearable length."""
        self.problems = tuple(map(_cut, islice(problems, MAX_PROBLEMS)))
        super().__init__("; ".join(f"{problem.field}: {problem.rule}" for problem in self.problems))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_MODEL_RULE = f"must be one of {', '.join(MODELS)}"


def check_request(raw: object, *, offered: bool = True) -> GenerateVideoInput:
    """Give an untrusted request its shape and hold it against the contract.

    Args:
        raw: Anything that came as JSON, or a `GenerateVideoInput`.
        offered: Whether model, size and number of images must be what is offered today. What was paid for may name a
            model that has been retired since: where only the ledger can tell, leave this out, ask it, and judge again.

    Raises:
        InvalidRequest: With every problem found, each naming its field and its rule.
    """
    if isinstance(raw, GenerateVideoInput):
        raw = raw.model_dump()
    if not isinstance(raw, Mapping):
        raise InvalidRequest(
            (Problem(field="input", rule="must be one JSON object with model, prompt and prompt_extend"),)
        )
    raw = _few(raw)
    problems: list[Problem] = []
    request = None
    try:
        request = GenerateVideoInput.model_validate(raw)
    except ValidationError as error:
        problems += [_shape_problem(details) for details in error.errors(include_input=False, include_url=False)]
    broken = {re.split(r"[.\[]", problem.field)[0] for problem in problems}
    whole = {name: value for name, value in raw.items() if name not in broken}
    problems += _broken_rules(whole)
    problems += _not_offered(whole) if offered else ()
    if problems or request is None:
        raise InvalidRequest(problems)
    return request


def _few(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The request with only so many of its unknown fields and images as a refusal can name.

    Somebody may send a hundred thousand, and to judge them all would take longer than a workflow task may.
    """
    known = GenerateVideoInput.model_fields
    unknown = islice((name for name in raw if name not in known), MAX_PROBLEMS)
    few = {name: value for name, value in raw.items() if name in known} | {name: raw[name] for name in unknown}
    images = few.get("images")
    if isinstance(images, list | tuple):
        few["images"] = [_few_of_image(image) for image in images[:MAX_PROBLEMS]]
    return few


def _few_of_image(image: Any) -> Any:
    if not isinstance(image, Mapping):
        return image
    few = dict(islice(image.items(), MAX_PROBLEMS))
    return few | ({"uri": with_plain_scheme(image["uri"])} if isinstance(image.get("uri"), str) else {})


def _cut(problem: Problem) -> Problem:
    return Problem(
        field=_shortened(problem.field, _MAX_FIELD_CHARACTERS), rule=_shortened(problem.rule, _MAX_RULE_CHARACTERS)
    )


def _shortened(text: str, most: int) -> str:
    """What fits, and can be written down: half a surrogate pair cannot."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return cut.encode(errors="backslashreplace").decode()


def warnings_for(request: GenerateVideoInput) -> tuple[str, ...]:
    """What is allowed but probably not meant."""
    model, size = MODELS.get(request.model), SIZES.get(request.size or "")
    if model and size and size.is_1080p and not model.hd:
        return (f"size {request.size} is 1080p, but {model.name} is not an -hd model: expect a smaller picture",)
    return ()


def expected_size(request: GenerateVideoInput) -> Size | None:
    """The picture size that the delivered video should have, or None where the gateway chooses."""
    if request.model not in MODELS or warnings_for(request):  # a retired model was paid for all the same
        return None
    return SIZES.get(request.size or "")


def prompt_path(text: str) -> str:
    """Where a prompt lies in the store that is kept out of Temporal: its name says what it must hold."""
    return f"prompts/{hashlib.sha256(text.encode()).hexdigest()}.txt"


def is_in_store(prompt: str) -> bool:
    """Whether a request's prompt is such a path, and not the text itself."""
    return _IN_STORE.fullmatch(prompt) is not None


def prompt_paths(request: GenerateVideoInput) -> tuple[str, ...]:
    """Where the prompts of a request lie in the store; empty where it holds the texts."""
    return tuple(prompt for prompt in (request.prompt, request.prompt_extend) if is_in_store(prompt))


def request_digest(request: GenerateVideoInput) -> str:
    """A fingerprint of what would be paid for: equal for two requests exactly if the gateway would be sent the same."""
    fields = {"model", "prompt", "prompt_extend", "size", "images"} | ({"task_id"} if request.task_id else set())
    sent = request.model_dump(mode="json", include=fields)
    return hashlib.sha256(json.dumps(sent, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def extension_digest(remix_id: str, prompt: str) -> str:
    """The same for the retry of an extension."""
    return hashlib.sha256(f"{remix_id}\n{prompt}".encode()).hexdigest()


def is_task_id(text: str) -> bool:
    """Whether the gateway could have given this id: it goes into URLs, records and a search attribute."""
    return _TASK_ID.fullmatch(text) is not None and text.strip(".") != ""


def differing_fields(ours: GenerateVideoInput, theirs: GenerateVideoInput) -> tuple[str, ...]:
    """The names of the fields in which two requests differ; a prompt and its path in the store are the same."""
    one, other = _by_path(ours), _by_path(theirs)
    return tuple(name for name in type(ours).model_fields if getattr(one, name) != getattr(other, name))


def _by_path(request: GenerateVideoInput) -> GenerateVideoInput:
    prompts = {"prompt": request.prompt, "prompt_extend": request.prompt_extend}
    paths = {name: prompt if is_in_store(prompt) else prompt_path(prompt) for name, prompt in prompts.items()}
    return request.model_copy(update=paths)


def _shape_problem(details: Any) -> Problem:
    field = ""
    for part in details["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    rules = {
        "missing": "is required",
        "extra_forbidden": f"is not a field of a request; the fields are {', '.join(GenerateVideoInput.model_fields)}",
        "string_type": "must be a string",
        "enum": f"must be one of {', '.join(OnKeyRefused if field == 'on_key_refused' else OnExtendFailed)}",
    }
    return Problem(field=field or "input", rule=rules.get(details["type"], str(details["msg"])))


def _broken_rules(fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Every rule that the well-shaped fields of a request break, whatever is offered."""
    for name in ("prompt", "prompt_extend"):
        if name in fields:
            yield from prompt_problems(name, fields[name])
    if "model" in fields and not _NAME.fullmatch(fields["model"]):
        yield Problem(field="model", rule=_MODEL_RULE)
    if fields.get("task_id") is not None and not is_task_id(fields["task_id"]):
        yield Problem(field="task_id", rule=TASK_ID_RULE)
    images = fields.get("images", ())
    for index, image in enumerate(images):
        yield from _image_problems(f"images[{index}].uri", image["uri"])
    yield from _size_problems(fields, [image["uri"] for image in images])


def _not_offered(fields: Mapping[str, Any]) -> Iterator[Problem]:
    """What a request asks for that the gateway does not offer today."""
    if fields.get("size") is not None and fields["size"] not in SIZES:
        yield Problem(field="size", rule=f"must be one of {', '.join(SIZES)}, or absent")
    if "model" not in fields:
        return
    model, images = MODELS.get(fields["model"]), fields.get("images", ())
    if model is None:
        if _NAME.fullmatch(fields["model"]):  # else told already
            yield Problem(field="model", rule=_MODEL_RULE)
    elif len(images) not in model.images and fields.get("task_id") is None:  # nothing is sent to take over a task
        given = str(len(images)) if len(images) < MAX_PROBLEMS else f"{MAX_PROBLEMS} or more"
        yield Problem(field="images", rule=f"{model.name} takes {model.images_rule}; {given} given")


def prompt_problems(name: str, prompt: str) -> Iterator[Problem]:
    """Every rule that a prompt breaks, wherever it was read."""
    if re.fullmatch(r"prompts/\S*", prompt) and not is_in_store(prompt):
        # Sent as it stands, a mistyped path would be paid for as if it said what to show.
        yield Problem(field=name, rule="looks like a prompt in the store, which is prompts/<sha256 of the text>.txt")
    if not prompt.strip():
        yield Problem(field=name, rule="must say what to show; it is empty")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        rule = f"must be at most {MAX_PROMPT_CHARACTERS:,} characters long; it has {len(prompt):,}"
        yield Problem(field=name, rule=rule)
    if not _is_unicode(prompt):
        yield Problem(field=name, rule="must be valid Unicode; it holds half a surrogate pair")
    if "\x00" in prompt:
        yield Problem(field=name, rule="must not hold a NUL character")


def _size_problems(fields: Mapping[str, Any], uris: Sequence[str]) -> Iterator[Problem]:
    """What does not fit into one of Temporal's payloads."""
    inline = {index: uri for index, uri in enumerate(uris) if uri.startswith("data:")}
    total = sum(map(len, inline.values()))
    if total > MAX_INLINE_IMAGE_CHARACTERS:
        longest = max(inline, key=lambda index: len(inline[index]))
        yield Problem(
            field=f"images[{longest}].uri",
            rule=f"all data URIs together have {total:,} characters, and {MAX_INLINE_IMAGE_CHARACTERS:,} fit into the "
            "workflow's input; put images into the store (`starter.py generate --image` does it) or pass their "
            "https:// addresses",
        )
        return
    size = len(json.dumps(fields, ensure_ascii=False, default=str).encode(errors="replace"))
    if size > MAX_REQUEST_BYTES:
        yield Problem(field="input", rule=f"must be at most {MAX_REQUEST_BYTES:,} bytes long as JSON; it has {size:,}")


def _image_problems(field: str, uri: str) -> Iterator[Problem]:
    if not _is_unicode(uri):
        yield Problem(field=field, rule="must be valid Unicode; it holds half a surrogate pair")
        return
    if uri.startswith("data:"):
        if not re.match(r"data:image/(jpeg|png|webp);base64,", uri):
            yield Problem(field=field, rule="a data URI must begin with data:image/(jpeg|png|webp);base64,")
    elif re.match(r"https?:", uri):
        if not _is_complete_url(uri):
            yield Problem(field=field, rule="must be a complete URL with a host, without a user name or spaces")
    elif not uri.strip():
        yield Problem(field=field, rule="must not be empty")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_complete_url(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and not (parts.username or parts.password or re.search(r"\s", uri))
    except ValueError:  # such as "https://[": no URL at all
        return False
