"""Real MP4s, rendered once and kept: H.264 and AAC, 24 frames a second, faststart.

The picture is colour bars with a small moving test card, the same second over and over: quick to encode, and a person
can recognise it.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av import AudioFrame, Packet, VideoStream
from av.filter import Graph
from av.filter.context import FilterContext
from av.stream import Stream

FRAMES_PER_SECOND = 24
SAMPLES_PER_SECOND = 48_000
_SAMPLES_PER_FRAME = 1024


@dataclass(frozen=True)
class Clip:
    """What a clip is.

    Attributes:
        seconds: Duration.
        width: Picture width in pixels.
        height: Picture height in pixels.
        sound: Whether it has an audio stream.
    """

    seconds: int
    width: int
    height: int
    sound: bool = True

    @property
    def name(self) -> str:
        """The cache's file name; says everything."""
        return f"{self.seconds}s-{self.width}x{self.height}{'' if self.sound else '-silent'}.mp4"


class ClipCache:
    """Renders clips in a thread, each once, and keeps them on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._renders: dict[Clip, asyncio.Future[bytes]] = {}

    async def content(self, clip: Clip) -> bytes:
        """The clip's file, rendered if it is not there yet; a few megabytes, kept in memory."""
        render = self._renders.get(clip)
        if render is None:
            loop = asyncio.get_running_loop()
            render = self._renders[clip] = loop.run_in_executor(None, self._ensure, clip)
        return await asyncio.shield(render)

    def _ensure(self, clip: Clip) -> bytes:
        path = self._directory / clip.name
        if not path.exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._directory, suffix=".part")
            os.close(handle)
            render(clip, Path(name))
            Path(name).replace(path)  # atomic: another simulator may share the directory
        return path.read_bytes()


def render(clip: Clip, path: Path) -> None:
    """Write the clip to `path`."""
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    # No B-frames: packets in the order of the pictures.
    options = {"preset": "ultrafast", "crf": "36", "bf": "0"} if codec == "libx264" else {}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        video = cast("VideoStream", out.add_stream(codec, rate=FRAMES_PER_SECOND, options=options))
        video.width, video.height, video.pix_fmt = clip.width, clip.height, "yuv420p"
        audio = None
        if clip.sound:
            audio = out.add_stream("aac", rate=SAMPLES_PER_SECOND, layout="mono")
            audio.bit_rate = 32_000
        for packet in _repeated(_one_second(video, clip), clip.seconds):
            packet.stream = video
            out.mux(packet)
        if audio is not None:
            sound = _sound()
            for start in range(0, clip.seconds * SAMPLES_PER_SECOND, _SAMPLES_PER_FRAME):
                samples = cast("AudioFrame", sound.pull())
                samples.pts, samples.time_base = start, Fraction(1, SAMPLES_PER_SECOND)
                out.mux(audio.encode(samples))
            out.mux(audio.encode(None))


def _one_second(video: VideoStream, clip: Clip) -> "list[Packet[VideoStream]]":  # quoted: generic only in the stubs
    """The packets of one second, which begins with a key frame and refers to no other second."""
    pictures, packets = _pictures(clip), []
    for number in range(FRAMES_PER_SECOND):
        frame = pictures.vpull()
        frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
        packets += video.encode(frame)
    return packets + video.encode(None)


def _repeated(second: "list[Packet[VideoStream]]", seconds: int) -> "Iterator[Packet[Stream]]":
    """The same second over and over: encoding is what takes the time, and the picture only has to move."""
    for start in range(seconds):
        for number, packet in enumerate(second):
            again = Packet(bytes(packet))
            again.pts = again.dts = start * FRAMES_PER_SECOND + number
            again.duration, again.time_base = 1, Fraction(1, FRAMES_PER_SECOND)
            again.is_keyframe = packet.is_keyframe
            yield again


def _pictures(clip: Clip) -> Graph:
    graph = Graph()
    rate = f"rate={FRAMES_PER_SECOND}"
    bars = graph.add("smptehdbars", f"size={clip.width}x{clip.height}:{rate}")
    card = graph.add("testsrc", f"size=320x240:{rate}:decimals=1")
    overlay = graph.add("overlay", "x='t*(main_w-320)':y='main_h/3'")
    bars.link_to(overlay, 0, 0)
    card.link_to(overlay, 0, 1)
    return _failed(graph, overlay, "format", "yuv420p", "buffersink")


def _sound() -> Graph:
    graph = Graph()
    sine = graph.add("sine", f"frequency=440:sample_rate={SAMPLES_PER_SECOND}:samples_per_frame={_SAMPLES_PER_FRAME}")
    shape = f"sample_fmts=fltp:channel_layouts=mono:sample_rates={SAMPLES_PER_SECOND}"
    return _failed(graph, sine, "aformat", shape, "abuffersink")


def _failed(graph: Graph, last: FilterContext, name: str, arguments: str, sink_name: str) -> Graph:
    shape, sink = graph.add(name, arguments), graph.add(sink_name)
    last.link_to(shape)
    shape.link_to(sink)
    graph.configure()
    return graph
