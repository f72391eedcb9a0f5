import base64
import contextlib
import io
import os
import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longtake.models import ImageInput
from longtake.request.image_decoder import Refused, inspect
from longtake.request.images import (
    MAX_IMAGE_BYTES,
    MAX_REQUEST_BYTES,
    CheckedImage,
    ImagePart,
    ImageProblem,
    check_image_bytes,
    check_image_url,
    load_image,
    prepare_parts,
    read_data_uri,
    read_image_file,
    store_image,
)
from longtake.storage import Store

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def picture(image_format: str = "PNG", *, size: tuple[int, int] = (48, 32), seed: int = 0) -> bytes:
    noise = random.Random(seed).randbytes(3 * size[0] * size[1])  # noqa: S311 - the same picture in every run
    image = Image.frombytes("RGB", size, noise)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {}
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.mark.parametrize("image_format", sorted(FORMATS))
def test_tells_what_an_image_is(image_format: str) -> None:
    content = picture(image_format)
    image = check_image_bytes(content, name="it")
    assert (image.media_type, image.width, image.height) == (FORMATS[image_format], 48, 32)
    assert image.content == content
    assert len(image.sha256) == 64


@pytest.mark.parametrize("image_format", sorted(FORMATS))
def test_refuses_cut_images(image_format: str) -> None:
    content = picture(image_format)
    # Only the checksum of a PNG's last chunk, which is empty, may be missing.
    for length in range(1, len(content) - (4 if image_format == "PNG" else 0)):
        with pytest.raises(Refused, match=r"damaged|unknown"):
            inspect(content[:length])


@settings(max_examples=200, deadline=None)
@given(
    image_format=st.sampled_from(sorted(FORMATS)),
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_images_are_read_or_refused(image_format: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(_PICTURES[image_format])
    for position, value in changes:
        content[position % min(len(content), 400)] = value
    # Any exception but a refusal fails the test.
    with contextlib.suppress(Refused):
        assert inspect(bytes(content))[0] in FORMATS


_PICTURES = {image_format: picture(image_format) for image_format in FORMATS}


@given(content=st.binary(min_size=1, max_size=100))
def test_arbitrary_bytes_are_no_image(content: bytes) -> None:
    with pytest.raises(Refused):
        inspect(content)


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize("side", [3_600, 10_000, 60_000])
def test_refuses_decompression_bombs(side: int) -> None:
    with pytest.raises(Refused, match="pixels"):
        inspect(_bomb(side, side))
    with pytest.raises(ImageProblem, match=r"12\.5 million pixels"):
        check_image_bytes(_bomb(side, side), name="it")


@pytest.mark.parametrize("image_format", sorted(FORMATS))
def test_takes_what_a_phone_photographs(image_format: str) -> None:
    image = Image.new("RGB", (4032, 3024), "teal")
    buffer = io.BytesIO()
    options: dict[str, dict[str, Any]] = {"JPEG": {"progressive": True}, "WEBP": {"method": 0}}
    image.save(buffer, image_format, **options.get(image_format, {}))
    assert check_image_bytes(buffer.getvalue(), name="it").width == 4032


def test_refuses_other_formats() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    with pytest.raises(ImageProblem, match=r"JPEG.*PNG.*WebP"):
        check_image_bytes(buffer.getvalue(), name="it")
    with pytest.raises(ImageProblem, match=r"^it "):
        check_image_bytes(b"", name="it")


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "first frame.png"
    path.write_bytes(picture())
    assert read_image_file(path) == read_image_file(str(path)) == check_image_bytes(picture(), name="it")


def test_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    absent, folder, text, huge = (tmp_path / name for name in ("absent.png", "folder", "text.png", "huge.png"))
    folder.mkdir()
    text.write_text("hello")
    with huge.open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ImageProblem, match=r"absent\.png"):
        read_image_file(absent)
    with pytest.raises(ImageProblem, match="folder"):
        read_image_file(folder)
    with pytest.raises(ImageProblem, match=r"text\.png.*JPEG.*PNG.*WebP"):
        read_image_file(text)
    with pytest.raises(ImageProblem, match=r"a.b"):
        read_image_file("a\0b")
    with pytest.raises(ImageProblem, match=r"huge\.png.*314,572,800.*20,971,520"):
        read_image_file(huge)


def test_a_file_that_is_too_large_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)

    def opened(*_: object) -> None:
        pytest.fail("it was opened")

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ImageProblem, match="the limit is"):
        read_image_file(huge)


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageProblem, match=r"pipe\.png"):
        read_image_file(tmp_path / "pipe.png")


@pytest.mark.parametrize("image_format", sorted(FORMATS))
def test_reads_a_data_uri(image_format: str) -> None:
    content = picture(image_format)
    assert read_data_uri(data_uri(content, FORMATS[image_format])) == check_image_bytes(content, name="it")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png,rawtext", "must have the form data:image/png;base64,"),
        ("data:image/png;base64", "must have the form data:image/png;base64,"),
        ("data:image/gif;base64,AAAA", "must declare image/jpeg, image/png or image/webp"),
        ("data:image/jpg;base64,AAAA", "must declare image/jpeg, image/png or image/webp"),
        ("data:;base64,AAAA", "must declare image/jpeg, image/png or image/webp"),
        (data_uri(picture())[:-1], "not strict base64, or it was cut"),
        (data_uri(picture()).replace("A", "-", 1), "not strict base64"),
        (data_uri(picture()) + "\n", "not strict base64"),
        (data_uri(picture()) + "ü", "not strict base64"),
        (data_uri(picture()[:-40]), "the image in the data URI is damaged or cut"),
        (data_uri(picture(), "image/jpeg"), "declares image/jpeg, but the image is image/png: declare that"),
        (data_uri(bytes(MAX_IMAGE_BYTES + 1)), "20,971,520"),
    ],
)
def test_says_what_is_wrong_with_a_data_uri_without_printing_it(uri: str, message: str) -> None:
    with pytest.raises(ImageProblem, match=message) as caught:
        read_data_uri(uri)
    assert len(str(caught.value)) < 200
    assert picture().hex()[:20] not in str(caught.value)
    assert base64.b64encode(picture()).decode()[:30] not in str(caught.value)


def test_what_is_printed_of_an_image_holds_no_content() -> None:
    assert len(repr(read_data_uri(data_uri(picture())))) < 200
    assert "secret" not in repr(ImagePart(text="https://host/a.png?Signature=secret"))


@pytest.mark.parametrize("url", ["https://host/a.png", "http://host:8080/a.png?x=1", "HTTPS://host/a%20b.png"])
def test_accepts_web_links(url: str) -> None:
    check_image_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a.png",
        "https://",
        "https:///a.png",
        "https://user:secret@host/a.png",
        "https://host:99999/a.png",
        "https://host:x/a.png",
        "https://[host/a.png",
        "https://host/a b.png",
        "https://host/ü.png",
        "https://host/a.png\n",
        "host/a.png",
    ],
)
def test_refuses_other_links(url: str) -> None:
    with pytest.raises(ImageProblem, match="the image's URL") as caught:
        check_image_url(url)
    assert "secret" not in str(caught.value)


async def test_stores_an_image_once_under_its_hash(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = check_image_bytes(picture("JPEG"), name="it")
    stored = await store_image(store, image)
    assert stored == ImageInput(uri=f"images/{image.sha256}.jpg")
    assert await load_image(store, stored.uri) == await load_image(store, store.uri_of(stored.uri)) == image

    async def put(*_: object) -> None:
        pytest.fail("it was written again")

    monkeypatch.setattr(store, "put", put)
    assert await store_image(store, image) == stored


async def test_an_image_of_which_only_a_part_was_kept_is_stored_again(store: Store) -> None:
    image = check_image_bytes(picture(), name="it")
    await store.put(f"images/{image.sha256}.png", image.content[:10])
    stored = await store_image(store, image)
    assert await load_image(store, stored.uri) == image


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/etc/passwd", "must be an https:// URL, a data: URI, or an object in the store"),
        ("../secret.png", "must be an https:// URL"),
        ("images/../../secret.png", "must be an https:// URL"),
        ("file:///etc/passwd", "must be an https:// URL"),
        ("s3://other-bucket/a.png", "must be an https:// URL"),
        (f"images/{'0' * 64}.png", "is not in the store: store it again"),
        ("images/cat.png", "does not have the name of a stored image"),
    ],
)
async def test_refuses_what_is_not_in_the_store(store: Store, uri: str, message: str) -> None:
    with pytest.raises(ImageProblem, match=message):
        await load_image(store, uri)


async def test_refuses_a_stored_image_that_is_not_what_its_name_says(store: Store) -> None:
    path = f"images/{'0' * 64}.png"
    await store.put(path, picture())
    with pytest.raises(ImageProblem, match=re.escape(path)):
        await load_image(store, path)


async def test_a_large_object_is_refused_before_it_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.put("inputs/huge.png", bytes(MAX_IMAGE_BYTES + 1))

    async def get(*_: object) -> None:
        pytest.fail("it was read")

    monkeypatch.setattr(store, "get", get)
    with pytest.raises(ImageProblem, match="the limit is"):
        await load_image(store, "inputs/huge.png")


async def test_users_may_keep_images_elsewhere_in_the_store(store: Store) -> None:
    await store.put("inputs/cat.png", picture())
    assert (await load_image(store, "inputs/cat.png")).media_type == "image/png"


async def _stored(store: Store, image_format: str, seed: int) -> tuple[ImageInput, CheckedImage]:
    image = check_image_bytes(picture(image_format, seed=seed), name="it")
    return await store_image(store, image), image


async def test_stored_images_go_as_files_in_their_order(store: Store) -> None:
    stored = [await _stored(store, image_format, seed) for seed, image_format in enumerate(("WEBP", "JPEG", "PNG"))]
    parts = await prepare_parts(store, [image_input for image_input, _ in stored])
    assert parts == [
        ImagePart(filename="image-1.webp", media_type="image/webp", content=stored[0][1].content),
        ImagePart(filename="image-2.jpg", media_type="image/jpeg", content=stored[1][1].content),
        ImagePart(filename="image-3.png", media_type="image/png", content=stored[2][1].content),
    ]


async def test_mixed_images_all_go_as_texts_so_that_their_order_holds(store: Store) -> None:
    first, image = await _stored(store, "JPEG", 0)
    link, inline = "https://host/a.png", data_uri(picture(seed=2))
    parts = await prepare_parts(store, [first, ImageInput(uri=link), ImageInput(uri=inline)])
    assert parts == [
        ImagePart(text=data_uri(image.content, "image/jpeg")),
        ImagePart(text=link),
        ImagePart(text=inline),
    ]


async def test_where_files_are_not_taken_all_go_as_data_uris_in_their_order(store: Store) -> None:
    stored = [await _stored(store, image_format, seed) for seed, image_format in enumerate(("WEBP", "JPEG", "PNG"))]
    parts = await prepare_parts(store, [image_input for image_input, _ in stored], files=False)
    assert parts == [ImagePart(text=data_uri(image.content, image.media_type)) for _, image in stored]


async def test_what_may_go_as_files_may_go_as_data_uris(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [(await _stored(store, "PNG", seed))[0] for seed in range(2)]
    size = sum(len(part.content or b"") for part in await prepare_parts(store, images))
    monkeypatch.setattr("longtake.request.images.MAX_REQUEST_BYTES", size)
    texts = await prepare_parts(store, images, files=False)
    assert sum(len(part.text or "") for part in texts) > size
    monkeypatch.setattr("longtake.request.images.MAX_REQUEST_BYTES", size * 3 // 4)
    with pytest.raises(ImageProblem):
        await prepare_parts(store, images, files=False)


def test_the_largest_request_fits_the_gateway_as_data_uris() -> None:
    assert MAX_REQUEST_BYTES * 4 / 3 < 0.9 * 128_000_000


async def test_no_images_are_no_parts(store: Store) -> None:
    assert await prepare_parts(store, []) == []


@pytest.mark.parametrize("uri", ["https://user@host/a.png", "data:image/png;base64,AAAA", "images/cat.png"])
async def test_names_the_image_that_is_wrong(store: Store, uri: str) -> None:
    good, _ = await _stored(store, "PNG", 0)
    with pytest.raises(ImageProblem, match=r"^images\[1\]\.uri: ") as caught:
        await prepare_parts(store, [good, ImageInput(uri=uri)])
    assert caught.value.field == "images[1].uri"
    assert not caught.value.rule.startswith("images[1]")


async def test_limits_a_requests_images_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [(await _stored(store, "PNG", seed))[0] for seed in range(2)]
    size = sum(len(part.content or b"") for part in await prepare_parts(store, images))
    monkeypatch.setattr("longtake.request.images.MAX_REQUEST_BYTES", size - 1)
    with pytest.raises(ImageProblem, match=f"together they take {size:,} bytes in the request") as caught:
        await prepare_parts(store, images)
    assert caught.value.field == "images"
