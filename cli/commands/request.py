"""Builds a checked request from flags or a file, before anything is started or paid."""

import json
import re
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.output import CommandProblem, Exit, invalid
from longtake.models import GenerateVideoInput, ImageInput, Problem
from longtake.request.images import (
    CheckedImage,
    ImageProblem,
    check_image_url,
    read_data_uri,
    read_image_file,
    store_image,
)
from longtake.request.prompts import store_prompts
from longtake.request.rules import InvalidRequest, check_request
from longtake.storage import Store, StoreProblem
from longtake.submission.ledger import SubmissionLedger


def new_key() -> str:
    """A new idempotency key: readable, and unlikely to be in use."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def read_request_file(path: str) -> dict[str, Any]:
    """The request in a JSON file; `-` is standard input.

    Raises:
        CommandProblem: The file cannot be read or is not a JSON object.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        loaded = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandProblem(Exit.USAGE, "InvalidRequest", f"--from-file {path} cannot be read: {error}") from None
    except ValueError as error:
        raise CommandProblem(Exit.USAGE, "InvalidRequest", f"--from-file {path} is not JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise CommandProblem(Exit.USAGE, "InvalidRequest", f"--from-file {path} must contain one JSON object")
    return loaded


async def build_request(  # noqa: PLR0913 - keyword arguments
    fields: dict[str, Any],
    images: Sequence[str],
    store: Store,
    *,
    dry_run: bool,
    hide_prompts: bool = False,
    key: str | None = None,
) -> tuple[GenerateVideoInput, list[str]]:
    """Check the request, and put local images into the store.

    Args:
        fields: The request without the images given as flags.
        images: Paths, URLs and data URIs, in order.
        store: Where workers find the images.
        dry_run: Write nothing to the store.
        hide_prompts: Put the prompts into the store too; the request then holds their paths.
        key: The idempotency key. If it was submitted before, models and sizes retired since stay valid.

    Returns:
        The request, and one line of text for each image.

    Raises:
        CommandProblem: The request is invalid (all problems at once), or the store rejects an image.
    """
    problems: list[Problem] = []
    inputs: list[dict[str, str]] = []
    checked: dict[int, CheckedImage] = {}
    for index, image in enumerate(images):
        place = len(fields.get("images") or []) + index
        inputs.append({"uri": "pending"})
        try:
            if re.match(r"[a-z][a-z0-9+.-]*://", image, re.IGNORECASE):
                check_image_url(image)
                inputs[-1] = {"uri": image}
            else:
                checked[place] = read_data_uri(image) if image.startswith("data:") else read_image_file(image)
        except ImageProblem as error:
            problems.append(Problem(field=f"images[{place}]", rule=error.rule))
    if inputs:
        fields = {**fields, "images": [*(fields.get("images") or []), *inputs]}
    try:
        request = await _checked(fields, store, key)
    except InvalidRequest as error:
        raise invalid((*error.problems, *problems)) from None
    if problems:
        raise invalid(tuple(problems))
    stored = list(request.images)
    try:
        for place, local in checked.items():
            stored[place] = ImageInput(uri=f"images/{local.sha256}") if dry_run else await store_image(store, local)
        if hide_prompts and not request.task_id:
            request = await store_prompts(store, request)
    except StoreProblem as error:
        raise CommandProblem(Exit.FAILED, "StoreRefused", f"{error}; nothing was paid") from None
    lines = [_describe(place, uri.uri, checked.get(place)) for place, uri in enumerate(stored)]
    return request.model_copy(update={"images": tuple(stored)}), lines


async def _checked(fields: dict[str, Any], store: Store, key: str | None) -> GenerateVideoInput:
    """The valid request. A model or size that is no longer offered is valid if the key may have been submitted.

    Raises:
        InvalidRequest: It breaks rules.
        LedgerUnavailable: The ledger cannot be read.
    """
    try:
        return check_request(fields)
    except InvalidRequest:
        request = check_request(fields, offered=False)
        ledger = SubmissionLedger(store, longest_exchange=timedelta(0))
        if key is not None and not await ledger.is_untouched(key):
            return request
        raise


def _describe(place: int, uri: str, image: CheckedImage | None) -> str:
    if image is None:
        return f"image {place + 1}: {uri.split('?', maxsplit=1)[0][:100]}"
    return f"image {place + 1}: {image.media_type}, {image.width}x{image.height}, {len(image.content):,} bytes"
