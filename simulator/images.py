"""What a submission's images are, judged as strictly as the contract allows."""

import base64
import binascii
import hashlib
from typing import Any

from starlette.datastructures import UploadFile

Image = dict[str, Any]

_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
)
_UNSAFE_IN_NAMES = frozenset('"\\\r\n')


class BadImageError(ValueError):
    """A part is not an image the gateway can take; the message says why."""


async def describe(part: str | UploadFile) -> Image:
    """Describe one `input_reference[]` for the ledger.

    Raises:
        BadImageError: It is no image, or is declared as another type than it is, or has an unsafe name.
    """
    if isinstance(part, str):
        return _text(part)
    content = await part.read()
    name = part.filename or ""
    if not name or not name.isascii() or _UNSAFE_IN_NAMES & set(name):
        raise BadImageError("file names go out unescaped: plain ASCII, please")
    found = _type(content)
    if part.content_type != found:
        raise BadImageError(f"declared as {part.content_type}, but it is {found}")
    digest = hashlib.sha256(content).hexdigest()
    return {"kind": "file", "sha256": digest, "filename": name, "content_type": found, "bytes": len(content)}


def _text(text: str) -> Image:
    if text.startswith(("https://", "http://")):
        return {"kind": "url", "url": text}
    header, comma, encoded = text.partition(",")
    if not comma or not header.startswith("data:image/") or not header.endswith(";base64"):
        raise BadImageError("a text part must be a URL or a complete data URI")
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise BadImageError("the data URI is not base64") from None
    found = _type(content)
    if header != f"data:{found};base64":
        raise BadImageError(f"the data URI says {header}, but it is {found}")
    digest = hashlib.sha256(content).hexdigest()
    return {"kind": "data", "sha256": digest, "content_type": found, "bytes": len(content)}


def _type(content: bytes) -> str:
    for magic, name in _MAGIC:
        if content.startswith(magic):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    raise BadImageError("not an image (by its first bytes)")
