"""Real MP4s, rendered with PyAV and kept for the test run."""

import functools
import tempfile
from fractions import Fraction
from pathlib import Path

import av

FRAMES_PER_SECOND = 24
SAMPLE_RATE = 48_000
_SAMPLES_PER_FRAME = 1024

LAYOUTS = {
    "plain": "",
    "faststart": "faststart",
    "fragmented": "frag_keyframe+empty_moov+default_base_moof",
}


@functools.cache
def mp4(*, seconds: float = 2, width: int = 320, height: int = 180, sound: bool = True, layout: str = "plain") -> bytes:
    """Render a clip; `layout` is a key of `LAYOUTS`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        options = {"movflags": LAYOUTS[layout]} if LAYOUTS[layout] else {}
        with av.open(str(path), "w", format="mp4", options=options) as container:
            _render(container, seconds, width, height, sound=sound)
        return path.read_bytes()


def _render(container: av.container.OutputContainer, seconds: float, width: int, height: int, *, sound: bool) -> None:
    picture = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
    picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
    picture.options = {"preset": "ultrafast"}
    voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound else None
    for number in range(int(seconds * FRAMES_PER_SECOND)):
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane_number, plane in enumerate(frame.planes):
            plane.update(bytes([(number * 3 + plane_number * 40) % 256]) * plane.buffer_size)
        frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
        container.mux(picture.encode(frame))
    container.mux(picture.encode(None))
    if voice is None:
        return
    for start in range(0, int(seconds * SAMPLE_RATE), _SAMPLES_PER_FRAME):
        samples = min(_SAMPLES_PER_FRAME, int(seconds * SAMPLE_RATE) - start)
        silence = av.AudioFrame(format="fltp", layout="mono", samples=samples)
        silence.sample_rate, silence.pts, silence.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        for channel in silence.planes:
            channel.update(bytes(channel.buffer_size))
        container.mux(voice.encode(silence))
    container.mux(voice.encode(None))
