"""A caller's images that ask for far more work than their size lets expect."""

import asyncio
import base64
import io
import re
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from longtake.models import ImageInput
from longtake.request import image_decoder
from longtake.request.image_decoder import MAX_CPU_SECONDS, MAX_MEMORY_BYTES
from longtake.request.images import ImageProblem, check_image_bytes, prepare_parts
from longtake.storage import Store


def many_scans(scans: int, *, side: int = 1000) -> bytes:
    """A legal progressive JPEG whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * scans + b"\xff\xd9"


def huge_webp(width: int, height: int) -> bytes:
    """Some bytes of lossless WebP that decode to one colour."""
    data = (
        b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes([0x88, 0x88, 8, 0, 0, 0, 0, 0, 0, 0, 0])
    )
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


def data_uri(content: bytes, kind: str) -> ImageInput:
    return ImageInput(uri=f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


BOMBS = {
    "5,592 scans": many_scans(5592),
    "as many scans as are let through, on as many pixels": many_scans(85, side=3500),
    "a canvas of 268 million pixels": huge_webp(16383, 16383),
    "a canvas of 50 million pixels": huge_webp(7000, 7000),
}


WATCHED = f"""
import runpy, sys
try:
    runpy.run_path({image_decoder.__file__!r}, run_name="__main__")
finally:
    sys.stderr.write(open("/proc/self/status").read())
"""
"""The decoder as it is run, and then what it took."""


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_takes_bounded_time_and_memory(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-I", "-c", WATCHED], input=BOMBS[name], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (b"refused" in ran.stdout) == ("as are let through" not in name)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_CPU_SECONDS + 2
    peak = re.search(rb"VmPeak:\s+(\d+) kB", ran.stderr)
    assert peak is not None
    assert int(peak[1]) * 1024 <= MAX_MEMORY_BYTES


async def test_a_healthy_image_does_not_wait_for_bombs(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    bomb = data_uri(BOMBS["5,592 scans"], "jpeg")
    healthy = data_uri(check_image_bytes(many_scans(0, side=64), name="it").content, "jpeg")
    stalls: list[float] = []

    async def watchdog() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            stalls.append(time.monotonic() - before)

    watching = asyncio.create_task(watchdog())
    attacks = [asyncio.create_task(prepare_parts(store, [bomb] * 3)) for _ in range(8)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        assert len(await prepare_parts(store, [healthy])) == 1
    assert all(isinstance(ended, ImageProblem) for ended in await asyncio.gather(*attacks, return_exceptions=True))
    watching.cancel()
    assert max(stalls) < 2
