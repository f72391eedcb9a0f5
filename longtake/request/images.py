"""The images of a request: checked before anything is paid, kept in the store, and prepared for the gateway.

If only the gateway notices a malformed image, the generation is already paid. So each image, unless it is a link, is
fully decoded first, in a separate process with limits (`longtake.request.image_decoder`): at most 300 MB and 3 s of
processor time per image, two at once. Errors name the image and never contain a data URI.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from longtake.models import ImageInput
from longtake.request import image_decoder
from longtake.storage import Store, StoreProblem

MAX_IMAGE_BYTES = 20 * 2**20
MAX_REQUEST_BYTES = 60 * 2**20
"""All images of a request together. As data URIs they take 84 MB, below the gateway's limit of 128 MB (field notes:
"Images"), so the limit fits both forms."""
_DECODER = str(Path(image_decoder.__file__).resolve())
_DECODING_SECONDS = 30.0
"""Wall-clock limit, above the decoder's own limit of processor time, for loaded machines."""
_decoding = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decoding")
"""These threads only wait for decoders, so slow images delay each other and nothing else."""

MediaType: TypeAlias = Literal["image/jpeg", "image/png", "image/webp"]

# Many phones write MPO: a JPEG followed by further pictures.
_MEDIA_TYPES: dict[str, MediaType] = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
}
_EXTENSIONS: dict[MediaType, str] = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
_DATA_URI = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(;[^;,]*)*),", re.IGNORECASE)
_STORED_NAME = re.compile(r"images/(?P<sha256>[0-9a-f]{64})\.(jpg|png|webp)")
_FOLDER = "images/"
_MAX_DATA_URI_HEAD = len("data:image/jpeg;base64,") + 4  # with base64's padding


class ImageProblem(Exception):
    """An image cannot be used.

    Attributes:
        rule: What the image must be; says what to do.
        field: The field of the request, such as `images[1].uri`; None for an image outside a request.
    """

    def __init__(self, rule: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {rule}" if field else rule)
        self.rule = rule
        self.field = field


@dataclass(frozen=True)
class CheckedImage:
    """An image that was fully decoded."""

    content: bytes = field(repr=False)
    media_type: MediaType
    width: int
    """In pixels, as stored."""
    height: int
    sha256: str
    """Of the content, in hexadecimal."""


@dataclass(frozen=True)
class ImagePart:
    """One `input_reference[]` of the multipart body: a text, or a file with name, type and content."""

    text: str | None = field(default=None, repr=False)
    filename: str | None = None
    media_type: MediaType | None = None
    content: bytes | None = field(default=None, repr=False)


def check_image_bytes(content: bytes, *, name: str) -> CheckedImage:
    """Decode an image completely.

    Args:
        content: The file.
        name: Its name in errors.

    Raises:
        ImageProblem: It is empty, too large, damaged, or not a JPEG, PNG or WebP.
    """
    if not content:
        raise ImageProblem(f"{name} is empty: give a JPEG, PNG or WebP image")
    _check_size(len(content), name)
    media_type, width, height = _decode(content, name)
    return CheckedImage(content, media_type, width, height, hashlib.sha256(content).hexdigest())


def _decode(content: bytes, name: str) -> tuple[MediaType, int, int]:
    try:
        done = subprocess.run(  # noqa: S603 - our own script, and no shell
            [sys.executable, "-I", _DECODER],
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=_DECODING_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise ImageProblem(_refusal("time", name)) from None
    except ValueError:  # the decoder hit a limit, or crashed
        raise ImageProblem(_refusal("time", name)) from None
    if "refused" in answer:
        raise ImageProblem(_refusal(answer["refused"], name))
    return _MEDIA_TYPES[answer["format"]], answer["width"], answer["height"]


def _refusal(reason: str, name: str) -> str:
    return {
        "unknown": f"{name} is not a JPEG, PNG or WebP image: convert it to one of these",
        "pixels": f"{name} has more than {image_decoder.MAX_PIXELS / 1e6:.1f} million pixels: make it smaller; "
        "the video has two million",
        "scans": f"{name} is a progressive JPEG of more than {image_decoder.MAX_SCANS} scans: save it as baseline JPEG",
        "memory": f"{name} takes too much memory to decode: make it smaller",
        "time": f"{name} takes too long to decode: save it again, smaller or in another format",
    }.get(reason, f"{name} is damaged or cut: export or download it again")


_R = TypeVar("_R")


async def _in_decoding_thread(check: Callable[..., _R], *arguments: object) -> _R:
    """Check an image outside the event loop, at most two at once."""
    return await asyncio.get_running_loop().run_in_executor(_decoding, check, *arguments)


def read_image_file(path: Path | str) -> CheckedImage:
    """Read and check a local image.

    Raises:
        ImageProblem: It does not exist, cannot be read, or is not a usable image.
    """
    name = str(path)
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageProblem(f"{name} is not a file: give the path of an image")
        _check_size(status.st_size, name)
        with Path(path).open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except FileNotFoundError:
        raise ImageProblem(f"{name} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        raise ImageProblem(f"{name} cannot be read ({why}): check the path and its permissions") from None
    return check_image_bytes(content, name=name)


def read_data_uri(uri: str) -> CheckedImage:
    """Read and check the image in a data URI.

    Raises:
        ImageProblem: The URI is incomplete or not strict base64, or the image is not of the declared type.
    """
    name = "the image in the data URI"
    head = _DATA_URI.match(uri[:200])
    if head is None or not head["parameters"].lower().endswith(";base64"):
        raise ImageProblem("the data URI must have the form data:image/png;base64,…")
    declared = head["type"].lower()
    if declared not in _EXTENSIONS:
        raise ImageProblem("the data URI must declare image/jpeg, image/png or image/webp")
    _check_size((len(uri) - head.end()) * 3 // 4 - 2, name)
    try:
        content = base64.b64decode(uri[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ImageProblem("the data URI is not strict base64, or it was cut: encode the image again") from None
    image = check_image_bytes(content, name=name)
    if image.media_type != declared:
        raise ImageProblem(f"the data URI declares {declared}, but the image is {image.media_type}: declare that")
    return image


def check_image_url(url: str) -> None:
    """Check the form of a link to an image. Only the gateway can tell whether it is reachable.

    Raises:
        ImageProblem: It is not a plain `https://` or `http://` URL.
    """
    try:
        parts = urlsplit(url)
        port_is_usable = parts.port != 0
        host, has_credentials = parts.hostname, "@" in parts.netloc
    except ValueError:
        host, has_credentials, port_is_usable = None, False, False
        parts = None
    if parts is None or parts.scheme not in {"http", "https"} or not host or not port_is_usable:
        raise ImageProblem("the image's URL must have the form https://host/path and be publicly reachable")
    if has_credentials:
        raise ImageProblem("the image's URL must not hold a user name or password: give a public or signed link")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ImageProblem("the image's URL holds spaces, control or non-ASCII characters: percent-encode them")


async def store_image(store: Store, image: CheckedImage) -> ImageInput:
    """Write an image to the store, under its hash. The result refers to its path.

    Raises:
        StoreProblem: The store cannot be written.
    """
    path = f"{_FOLDER}{image.sha256}.{_EXTENSIONS[image.media_type]}"
    await store.put_by_content(path, image.content)
    return ImageInput(uri=path)


async def load_image(store: Store, uri: str) -> CheckedImage:
    """Read an image from the store, by path or full URL, and check it.

    Raises:
        ImageProblem: It is outside the store, does not exist, or does not match the hash in its name.
        StoreProblem: The store cannot be read.
    """
    try:
        path = store.path_of(uri)
    except StoreProblem:
        raise ImageProblem(
            "an image must be an https:// URL, a data: URI, or an object in the store (store a local file first)"
        ) from None
    name = f"the image {path}"
    stored_name = _STORED_NAME.fullmatch(path)
    if path.startswith(_FOLDER) and stored_name is None:
        raise ImageProblem(f"{name} does not have the name of a stored image: <sha256>.jpg, .png or .webp")
    size = await store.head(path)
    if size is None:
        raise ImageProblem(f"{name} is not in the store: store it again")
    _check_size(size, name)
    content = await store.get(path)
    if content is None:
        raise ImageProblem(f"{name} is not in the store: store it again")
    image = await _in_decoding_thread(partial(check_image_bytes, content, name=name))
    if stored_name is not None and stored_name["sha256"] != image.sha256:
        raise ImageProblem(f"{name} is not what was stored under that name: store it again")
    return image


def can_be_files(images: Sequence[ImageInput]) -> bool:
    """Whether all images, and at least one, are objects in the store."""
    return bool(images) and not any(_is_text(image.uri) for image in images)


async def prepare_parts(store: Store, images: Sequence[ImageInput], *, files: bool = True) -> list[ImagePart]:
    """Check a request's images and prepare them for the gateway, in order and all of ONE kind.

    The gateway puts texts before files, so a file followed by a URL would swap first and last frame (field notes:
    "Images"). If all images are objects in the store, all become files. Else all become texts: URLs and data URIs
    unchanged, objects as data URIs.

    Args:
        store: The store.
        images: The request's images.
        files: Whether the gateway accepts files; if not, all become texts.

    Raises:
        ImageProblem: An image cannot be used; the field names it. Or together they are too large.
        StoreProblem: The store cannot be read.
    """
    as_files = files and can_be_files(images)
    most = MAX_REQUEST_BYTES if as_files else MAX_REQUEST_BYTES * 4 // 3 + len(images) * _MAX_DATA_URI_HEAD
    parts = []
    for index, image in enumerate(images):
        try:
            if as_files:
                parts.append(_as_file(index, await load_image(store, image.uri)))
            else:
                parts.append(ImagePart(text=await _as_text(store, image.uri)))
        except ImageProblem as problem:
            raise ImageProblem(problem.rule, field=f"images[{index}].uri") from None
    total = sum(len(part.content or b"") + len(part.text or "") for part in parts)
    if total > most:
        raise ImageProblem(
            f"together they take {total:,} bytes in the request; the limit is {most:,} ({most >> 20} MiB): "
            "make them smaller",
            field="images",
        )
    return parts


def _is_text(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://", "data:"))


def _as_file(index: int, image: CheckedImage) -> ImagePart:
    # The gateway forwards file names unescaped, so ours are plain.
    return ImagePart(
        filename=f"image-{index + 1}.{_EXTENSIONS[image.media_type]}",
        media_type=image.media_type,
        content=image.content,
    )


async def _as_text(store: Store, uri: str) -> str:
    if uri.lower().startswith("data:"):
        await _in_decoding_thread(read_data_uri, uri)
        return uri
    if _is_text(uri):
        check_image_url(uri)
        return uri
    image = await load_image(store, uri)
    return f"data:{image.media_type};base64,{base64.b64encode(image.content).decode()}"


def _check_size(size: int, name: str) -> None:
    if size > MAX_IMAGE_BYTES:
        raise ImageProblem(
            f"{name} has {size:,} bytes; the limit is {MAX_IMAGE_BYTES:,} ({MAX_IMAGE_BYTES >> 20} MiB): "
            "make it smaller"
        )
