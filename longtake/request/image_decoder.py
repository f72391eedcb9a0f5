"""Decodes one image from standard input in a separate process, and prints its facts as one line of JSON.

A caller's bytes decide how much work a decoder does: a small file may need hundreds of passes or gigabytes of memory,
and no check of its header can bound that. Here the kernel limits memory and processor time, and the parent can kill the
process. It runs isolated: it imports nothing of longtake and gets no environment, so a decoder's bug reaches no key.
"""

import contextlib
import io
import json
import sys
import warnings

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 12_500_000
"""The video has at most 2 million (1080p); a phone's usual photograph has 12.2 million. WebP's decoder needs up to 20
bytes per pixel, so this fits into `MAX_MEMORY_BYTES`."""
MAX_SCANS = 100
"""Of a JPEG. Encoders write about 10. Each is a pass over the whole picture, whatever its size in the file."""
MAX_MEMORY_BYTES = 300 * 2**20
MAX_CPU_SECONDS = 3
"""Per image; twelve million pixels take about half a second."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_START_OF_SCAN = b"\xff\xda"


class Refused(Exception):
    """The image cannot be used. The text is one of `damaged`, `memory`, `pixels`, `scans`, `unknown`."""


def inspect(content: bytes) -> tuple[str, int, int]:
    """Decode an image completely.

    Returns:
        Pillow's name of its format (`JPEG`, `MPO`, `PNG`, `WEBP`), its width and its height in pixels.

    Raises:
        Refused: It cannot be used, or is too expensive to decode.
    """
    with warnings.catch_warnings():
        # MAX_PIXELS is lower than the limit at which Pillow warns.
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
    if _webp_pixels(content) > MAX_PIXELS:  # Pillow allocates canvases before it returns their size
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
    """The pixels that a WebP's header declares; 0 for other formats."""
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
        import resource  # noqa: PLC0415 - only Unix has it; elsewhere the parent's timeout remains
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # macOS refuses RLIMIT_AS
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
