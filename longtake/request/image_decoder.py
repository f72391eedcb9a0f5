"""Decodes one image from standard input in a process of its own, and tells in one line of JSON what it is.

Decoding is the one place where a caller's bytes decide how much work a library does, and no check of a header bounds
it: a small file may ask for hundreds of passes or for a canvas of gigabytes. So it happens here, where the kernel
limits memory and processor time, and whoever waits can kill it. Run as a script, isolated: it imports nothing of
longtake and inherits no environment, so no key is within reach of a decoder's bug either.
"""

import contextlib
import io
import json
import sys
import warnings

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 12_500_000
"""The gateway makes at most 1080p (2 million); a phone's usual photograph has 12.2 million. WebP's decoder holds up to
20 bytes a pixel, so this fits into `MAX_MEMORY_BYTES`."""
MAX_SCANS = 100
"""Of a JPEG. Encoders write about 10; each one is a pass over the whole picture, whatever its size in the file."""
MAX_MEMORY_BYTES = 300 * 2**20
MAX_CPU_SECONDS = 3
"""For one image; a request has at most three. Twelve million pixels take about half a second."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_START_OF_SCAN = b"\xff\xda"


class Refused(Exception):
    """The image cannot be used; the text is one of `damaged`, `memory`, `pixels`, `scans`, `unknown`."""


def inspect(content: bytes) -> tuple[str, int, int]:
    """Decode an image, all of it.

    Returns:
        Pillow's name of its format (`JPEG`, `MPO`, `PNG`, `WEBP`), its width and its height in pixels.

    Raises:
        Refused: It cannot be used, or would take too much to decode.
    """
    with warnings.catch_warnings():
        # Our own limit is below the one that Pillow warns at.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return _decode(content)
        except Refused:
            raise
        except MemoryError:
            raise Refused("memory") from None
        except Image.DecompressionBombError:
            raise Refused("pixels") from None
        except UnidentifiedImageError:
            raise Refused("unknown") from None
        except Exception:  # noqa: BLE001 - on damaged input Pillow raises OSError, SyntaxError, ValueError, struct.error
            raise Refused("damaged") from None


def _decode(content: bytes) -> tuple[str, int, int]:
    if _webp_pixels(content) > MAX_PIXELS:  # Pillow makes its canvases before it tells their size
        raise Refused("pixels")
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        kind, (width, height) = image.format or "", image.size
        if width * height > MAX_PIXELS:
            raise Refused("pixels")
        # In the data of a scan 0xFF is followed by 0x00 or a restart marker, so this counts scans; a preview or a
        # further picture in the same file adds a few.
        if kind in {"JPEG", "MPO"} and content.count(_START_OF_SCAN) > MAX_SCANS:
            raise Refused("scans")
        image.verify()  # the checksums of a PNG, down to its end
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.load()
    return kind, width, height


def _webp_pixels(content: bytes) -> int:
    """What the header of a WebP claims; 0 where it is none."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return 0
    if content[12:16] == b"VP8X":
        return (int.from_bytes(content[24:27], "little") + 1) * (int.from_bytes(content[27:30], "little") + 1)
    if content[12:16] == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (int.from_bytes(content[26:28], "little") & 0x3FFF) * (int.from_bytes(content[28:30], "little") & 0x3FFF)


def _limit() -> None:
    try:
        import resource  # noqa: PLC0415 - Unix has it; elsewhere the one who waits still limits the time
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # macOS takes no limit of the address space
            resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    _limit()
    try:
        answer: dict[str, object] = dict(
            zip(("format", "width", "height"), inspect(sys.stdin.buffer.read()), strict=True)
        )
    except Refused as refused:
        answer = {"refused": str(refused)}
    except MemoryError:
        answer = {"refused": "memory"}
    sys.stdout.write(json.dumps(answer))
