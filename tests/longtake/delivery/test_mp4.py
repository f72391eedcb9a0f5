import asyncio
import io
import itertools
import re
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.delivery.mp4 import MAX_INDEX_BYTES, Mp4Reader, NotAWholeVideo, read_media
from longtake.models import MediaInfo
from tests.longtake.media_samples import LAYOUTS, mp4

Outcome = MediaInfo | str


def read(content: bytes, cuts: tuple[int, ...] = ()) -> MediaInfo:
    reader = Mp4Reader()
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    for start, end in itertools.pairwise(edges):
        reader.feed(content[start:end])
    return reader.finish()


def outcome(content: bytes, cuts: tuple[int, ...] = ()) -> Outcome:
    """What the reader says, whichever it is; any other exception fails the test."""
    try:
        return read(content, cuts)
    except NotAWholeVideo as error:
        return error.reason


def numbers(refusal: Outcome) -> list[float]:
    """The figures in a refusal."""
    assert isinstance(refusal, str), "it was read"
    return [float(number) for number in re.findall(r"(?<!\w)\d+(?:\.\d+)?", refusal)]


def box(box_type: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), box_type) + content


def top_boxes(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    position = 0
    while position < len(content):
        size, box_type = struct.unpack_from(">I4s", content, position)
        yield box_type, position, position + size
        position += size


def box_at(content: bytes, box_type: bytes) -> tuple[int, int]:
    return next((start, end) for found, start, end in top_boxes(content) if found == box_type)


def test_agrees_with_ffmpeg_about_every_layout_with_and_without_sound() -> None:
    for layout in LAYOUTS:
        for sound in (True, False):
            content = mp4(layout=layout, sound=sound)
            info = read(content)
            with av.open(io.BytesIO(content), "r") as container:
                assert container.duration is not None
                assert info.duration_seconds == pytest.approx(container.duration / av.time_base, abs=0.05)
                picture = container.streams.video[0]
                assert (info.width, info.height) == (picture.width, picture.height) == (320, 180)
                assert info.has_audio is bool(container.streams.audio) is sound


@pytest.mark.parametrize("seconds", [1, 8, 15])
def test_tells_the_duration(seconds: int) -> None:
    assert read(mp4(seconds=seconds)).duration_seconds == seconds


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(mp4())
    assert read_media(path) == read(mp4())


@pytest.mark.parametrize("layout", ["plain", "faststart"])
def test_refuses_every_truncation(layout: str) -> None:
    content = mp4(seconds=1, layout=layout)
    whole = [length for length in range(len(content)) if not isinstance(outcome(content[:length]), str)]
    assert whole == []


def test_refuses_every_truncation_of_a_fragmented_file_but_between_its_fragments() -> None:
    content = mp4(seconds=1, layout="fragmented")
    whole = {length for length in range(len(content)) if not isinstance(outcome(content[:length]), str)}
    media_end = box_at(content, b"mdat")[1]
    assert whole == {media_end}


def test_a_fragmented_file_that_declares_its_length_cannot_be_cut_between_its_fragments() -> None:
    content = mp4(seconds=2, layout="fragmented")
    timescale = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)[0]

    def declaring(seconds: int) -> bytes:
        header = box(b"mehd", struct.pack(">II", 0, seconds * timescale))
        changed = bytearray(content)
        for name in (b"mvex", b"moov"):
            at = content.index(name) - 4
            struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + len(header))
        inside = content.index(b"mvex") + 4
        return bytes(changed[:inside] + header + changed[inside:])

    assert read(declaring(2)).duration_seconds == pytest.approx(2, abs=0.05)
    assert numbers(outcome(declaring(8))) == [2.0, 8.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><body>502</body></html>", "an HTML page"),
        (b"\n  <html>" + b"x" * 5000, "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        (b'{"error": {"message": "no"}}', "a JSON document"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 600, "a WebM or Matroska file, not an MP4"),
        (b"moov", "not an MP4"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 600, "not an MP4"),
    ],
)
def test_says_what_came_instead(content: bytes, reason: str) -> None:
    assert outcome(content) == reason


def test_says_how_much_is_missing() -> None:
    plain, faststart = mp4(), mp4(layout="faststart")
    media_start, media_end = box_at(plain, b"mdat")
    index_start = box_at(plain, b"moov")[0]
    assert numbers(outcome(plain[: media_start + 500])) == [media_start + 500, media_end]
    assert numbers(outcome(plain[:index_start])) == [index_start]
    assert numbers(outcome(plain[: index_start + 6])) == [index_start + 6]
    assert numbers(outcome(faststart[:-1])) == [len(faststart) - 1, len(faststart)]
    media_start = box_at(faststart, b"mdat")[0]
    assert numbers(outcome(faststart[:media_start]))[0] == media_start


def test_media_to_the_end_of_the_file_is_held_against_the_index() -> None:
    content = bytearray(mp4(layout="faststart"))
    start = box_at(bytes(content), b"mdat")[0]
    struct.pack_into(">I", content, start, 0)
    assert read(bytes(content)) == read(mp4(layout="faststart"))
    assert numbers(outcome(bytes(content[:-1]))) == [len(content) - 1, len(content)]


def test_reads_64_bit_boxes_and_offsets() -> None:
    content = mp4(sound=False)
    start, end = box_at(content, b"mdat")
    # The 64-bit head takes the 8 bytes of the empty box that ffmpeg leaves for it, so no offset moves.
    assert content[start - 8 : start] == box(b"free")
    long_head = struct.pack(">I4sQ", 1, b"mdat", end - start + 8)
    wide = content[: start - 8] + long_head + content[start + 8 :]
    assert read(wide) == read(content)
    assert isinstance(outcome(wide[: end - 1]), str)

    at = content.index(b"stco") - 4
    size, _, _, count = struct.unpack_from(">I4sII", content, at)
    offsets = struct.unpack_from(f">{count}I", content, at + 16)
    co64 = box(b"co64", struct.pack(f">II{count}Q", 0, count, *offsets))
    changed = bytearray(content[:at] + co64 + content[at + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        head = content.index(name) - 4
        struct.pack_into(">I", changed, head, struct.unpack_from(">I", changed, head)[0] + len(co64) - size)
    assert read(bytes(changed)) == read(content)
    struct.pack_into(">Q", changed, at + 16 + 8 * (count - 1), 1 << 40)
    cut_after, needed = numbers(outcome(bytes(changed)))
    assert (cut_after, needed >= 1 << 40) == (len(changed), True)


def test_gives_the_picture_as_it_is_displayed() -> None:
    content = bytearray(mp4())
    matrix = content.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    with av.open(io.BytesIO(bytes(content)), "r") as container:
        assert abs(next(container.decode(video=0)).rotation) == 90
    info = read(bytes(content))
    assert (info.width, info.height) == (180, 320)


def test_takes_the_coded_size_where_the_track_names_none() -> None:
    content = bytearray(mp4())
    struct.pack_into(">II", content, content.index(b"tkhd") + 4 + 76, 0, 0)
    info = read(bytes(content))
    assert (info.width, info.height) == (320, 180)


def test_sound_alone_is_no_video() -> None:
    content = mp4().replace(b"vide", b"meta")
    assert outcome(content) == "no picture track"


def test_an_index_without_end_is_not_kept() -> None:
    reader = Mp4Reader()
    with pytest.raises(NotAWholeVideo, match="which no clip needs"):
        reader.feed(struct.pack(">I4s", MAX_INDEX_BYTES + 1, b"moov") + b"\0" * 600)
    reader = Mp4Reader()
    with pytest.raises(NotAWholeVideo, match="does not end"):  # noqa: PT012 - which piece is one too many is open
        reader.feed(struct.pack(">I4s", 0, b"moov"))
        for _ in range(MAX_INDEX_BYTES // 2**20 + 1):
            reader.feed(b"\0" * 2**20)


@given(content=st.binary(max_size=400), cuts=st.tuples(st.integers(0), st.integers(0)))
def test_arbitrary_bytes_have_one_outcome(content: bytes, cuts: tuple[int, ...]) -> None:
    assert outcome(content, cuts) == outcome(content)


# Boxes of the right names around anything lead much deeper than plain noise.
_LEAVES = st.builds(
    box,
    st.sampled_from([b"tkhd", b"mdhd", b"hdlr", b"stsd", b"stts", b"stsc", b"stsz", b"stz2", b"stco", b"co64"])
    | st.sampled_from([b"tfhd", b"trun", b"trex", b"mehd", b"mvhd"]),
    st.binary(max_size=120),
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.builds(
        lambda name, parts: box(name, b"".join(parts)),
        st.sampled_from([b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf"]),
        st.lists(inner, max_size=6),
    ),
    max_leaves=20,
)


@given(content=st.lists(_TREES, max_size=4).map(lambda parts: box(b"ftyp", b"isom") + b"".join(parts)))
def test_arbitrary_boxes_are_read_or_refused(content: bytes) -> None:
    assert outcome(content)


@settings(max_examples=200, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_index_is_read_or_refused(layout: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(mp4(seconds=1, layout=layout))
    start, end = box_at(bytes(content), b"moov")
    if layout == "fragmented":
        end = box_at(bytes(content), b"moof")[1]
    for position, value in changes:
        content[start + position % (end - start)] = value
    assert outcome(bytes(content))


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    length=st.none() | st.integers(0),
    cuts=st.lists(st.integers(0), max_size=30),
)
def test_the_size_of_the_pieces_does_not_matter(layout: str, length: int | None, cuts: list[int]) -> None:
    content = mp4(seconds=1, layout=layout)
    if length is not None:
        content = content[: length % (len(content) + 1)]
    assert outcome(content, tuple(cuts)) == outcome(content)
    assert outcome(content, tuple(range(len(content)))) == outcome(content)


# --- Stray bytes at the end ------------------------------------------------------------------------------------------


def stray(content: bytes) -> tuple[MediaInfo, int]:
    reader = Mp4Reader()
    reader.feed(content)
    return reader.finish(), reader.stray_bytes


@pytest.mark.parametrize("layout", ["plain", "faststart"])
@pytest.mark.parametrize("count", range(1, 8))
def test_a_whole_video_with_a_few_stray_bytes_is_whole(layout: str, count: int) -> None:
    content = mp4(layout=layout)
    for byte in (b"\0", b"\n", b"\xff"):
        assert stray(content + byte * count) == (read(content), count)


@settings(max_examples=100, deadline=None)
@given(
    layout=st.sampled_from(["plain", "faststart"]),
    tail=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.integers(0), max_size=8),
)
def test_whatever_follows_a_whole_video_makes_it_no_less_whole(layout: str, tail: bytes, cuts: list[int]) -> None:
    content = mp4(seconds=1, layout=layout)
    assert outcome(content + tail, tuple(cuts)) == read(content)
    assert stray(content + tail)[1] <= len(tail)


@settings(max_examples=60, deadline=None)
@given(layout=st.sampled_from(sorted(LAYOUTS)), at=st.integers(0), tail=st.binary(max_size=60))
def test_what_follows_a_cut_video_does_not_make_it_whole(layout: str, at: int, tail: bytes) -> None:
    content = mp4(seconds=1, layout=layout)
    media_end = box_at(content, b"mdat")[1]
    least = media_end if layout == "plain" else len(content)
    assert isinstance(outcome(content[: at % (min(media_end, least) - len(tail) - 1)] + tail), str)


def test_a_tail_after_fragments_may_be_the_next_fragment() -> None:
    content = mp4(seconds=2, layout="fragmented")
    assert isinstance(outcome(content + b"\0\0\0"), str)


def test_a_tail_counts_as_stray_only_where_every_sample_has_a_place() -> None:
    """An index whose chunks hold fewer samples than it lists does not say where its media ends."""
    content = bytearray(mp4(layout="faststart"))
    at = bytes(content).index(b"stco") + 4
    (count,) = struct.unpack_from(">I", content, at + 4)
    struct.pack_into(">I", content, at + 4, count - 1)
    assert not isinstance(outcome(bytes(content)), str)
    assert isinstance(outcome(bytes(content) + b"\0"), str)


# --- Hostile indexes -------------------------------------------------------------------------------------------------


@cache
def hostile_indexes() -> dict[str, bytes]:
    ftyp, mebibyte = box(b"ftyp", b"isom" * 4), 2**20
    full = MAX_INDEX_BYTES - 64
    empty = box(b"traf", box(b"tfhd", struct.pack(">II", 0, 1)))
    run = box(b"trun", struct.pack(">II", 0x200, full // 4 - 20) + bytes(full - 80))
    times = box(b"stts", struct.pack(">II", 0, full // 8 - 40) + b"\0\0\0\1" * ((full // 8 - 40) * 2))
    chunks = box(b"stco", struct.pack(">II", 0, mebibyte) + bytes(4 * mebibyte))
    runs = box(b"stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1))
    sizes = box(b"stsz", struct.pack(">III", 0, 1, 2**31))

    def track(tables: bytes) -> bytes:
        return ftyp + box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", tables)))))

    return {
        "empty tracks": ftyp + box(b"moov", box(b"trak") * (full // 8)),
        "empty boxes": ftyp + box(b"moov", box(b"free") * (full // 8)),
        "empty boxes in 16 tracks": ftyp + box(b"moov", box(b"trak", box(b"free") * (full // 8 // 16 - 2)) * 16),
        "top-level boxes": ftyp + box(b"free") * (8 * mebibyte // 8),
        "fragments": ftyp + box(b"moof", empty * 10) * (8 * mebibyte // 300),
        "empty fragments": ftyp + box(b"moof") * mebibyte,
        "tracks of one fragment": ftyp + box(b"moof", empty * (full // 24)),
        "times": track(times),
        "chunks": track(sizes + chunks + runs),
        "a run": ftyp + box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">II", 0, 1)) + run)),
        "large indexes": ftyp + box(b"moof", box(b"free", bytes(mebibyte * 7))) * 3,
    }


@pytest.mark.parametrize("kind", hostile_indexes())
async def test_no_index_stops_the_event_loop(kind: str) -> None:
    """What other downloads and heartbeats would have to wait, as a watchdog on the same loop sees it."""
    content, longest, done = hostile_indexes()[kind], 0.0, False

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        before = loop.time()
        while not done:
            await asyncio.sleep(0)
            longest, before = max(longest, loop.time() - before), loop.time()

    watching = asyncio.create_task(watch())
    reader, start = Mp4Reader(), 0
    with pytest.raises(NotAWholeVideo):  # noqa: PT012 - which piece is one too many is open
        for start in range(0, len(content), 65536):
            await asyncio.sleep(0)
            reader.feed(content[start : start + 65536])
        pytest.fail("it was read to its end")
    await asyncio.sleep(0)
    done = True
    await watching
    assert longest < 1, f"{longest:.2f} s"
