"""What is really in an MP4, read while it streams past: whole or cut, how long, how large, with sound or without.

An answer of 200 proves nothing: gateways cut downloads off, or send an HTML page, a shorter clip or one without sound
(field notes: "Getting the video"). A player's header probe calls a file that was cut to 62 % fine, so this module
compares what the file's index promises with the bytes that came. Only the index is kept in memory, never the media.
"""

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from sys import byteorder
from typing import NamedTuple

from longtake.models import MediaInfo

MAX_INDEX_BYTES = 8 * 2**20
"""The largest `moov` or `moof` that is kept: the index of a 15 s clip has about 15 KiB."""
MAX_INDEX_BYTES_IN_ALL = 16 * 2**20
"""Of all of a file's `moov` and `moof`: a fragment for each frame and audio packet of 15 s makes about 200 KiB."""
MAX_BOXES = 100_000
"""How many heads of boxes are read for one file, those of one walk twice counted twice; such fragments take 12,000."""
MAX_NUMBERS = 200_000
"""How many numbers the tables of one file may have: two tracks of 15 s have about 5,000. Each costs up to 1 µs."""
MAX_TRACKS = 16
"""A clip has two."""
_SNIFF_BYTES = 512
_READ_BYTES = 1 << 20
_HEADER, _LONG_HEADER = 8, 16
# Shorter than declared by more than this, in seconds, is cut: a frame or an audio packet is less.
_FRAGMENT_SLACK_SECONDS = 0.5

# What an MP4 or QuickTime file can begin with. Anything else is looked at more closely, to say what it is instead.
_FIRST_BOXES = frozenset(
    {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"sidx", b"uuid", b"emsg"}
)


class NotAWholeVideo(Exception):
    """The bytes are no video, or not all of it.

    Attributes:
        reason: What was found, in words: "an HTML page", "cut after 5 of at least 10 bytes", …
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a whole video: {reason}")
        self.reason = reason


class _Budget:
    """How much may still be read of one file's index.

    It is read on the event loop, where every other download and heartbeat waits meanwhile, so the work for a file has
    to be bounded whatever a stranger puts into it (8 MiB of empty `trak` took 5 s).
    """

    def __init__(self) -> None:
        self._bytes = MAX_INDEX_BYTES_IN_ALL
        self._boxes = MAX_BOXES
        self._numbers = MAX_NUMBERS

    def take_bytes(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise NotAWholeVideo(f"indexes of more than {MAX_INDEX_BYTES_IN_ALL:,} bytes, which no clip needs")

    def take_box(self) -> None:
        self._boxes -= 1
        if self._boxes < 0:
            raise NotAWholeVideo(f"more than {MAX_BOXES:,} boxes, which no clip needs")

    def take_numbers(self, count: int) -> None:
        self._numbers -= count
        if self._numbers < 0:
            raise NotAWholeVideo(f"tables of more than {MAX_NUMBERS:,} numbers, which no clip needs")


class _Index(bytes):
    """The content of a `moov` or `moof`, with what may still be read of it."""

    budget: _Budget

    @classmethod
    def of(cls, content: bytes | bytearray, budget: _Budget) -> "_Index":
        budget.take_bytes(len(content))
        index = cls(content)
        index.budget = budget
        return index


class _Box(NamedTuple):
    """A box inside the index; `start` and `end` enclose its content."""

    start: int
    end: int


class Mp4Reader:
    """Reads an MP4 that comes in pieces of any size, in constant memory.

    Feed it everything, then ask it to finish. Both raise `NotAWholeVideo`, and nothing else, whatever the bytes.

    One thing no reader can see: a fragmented MP4 that ends between two fragments and nowhere says how long it should
    be. There the length of the download has to tell.
    """

    def __init__(self) -> None:
        self._position = 0  # of the next byte to be fed
        self._header = bytearray()  # of the box that begins now; at first, enough to recognise what is no MP4
        self._recognised = False
        self._box_type = b""
        self._box_start = 0
        self._box_end: int | None = None  # None: "to the end of the file"
        self._in_box = False
        self._content: bytearray | None = None  # of a box that is kept
        self._budget = _Budget()
        self._movie: _Movie | None = None
        self._fragments_end = 0  # where the last byte of the fragments' media lies, by their index
        self._fragments: dict[int, _Fragments] = {}
        self._in_tail = False
        self.stray_bytes = 0
        """How many bytes at the end belong to no box; told by `finish`."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file.

        Raises:
            NotAWholeVideo: as soon as the bytes cannot become a whole video.
        """
        view = memoryview(chunk)
        while view:
            if not self._recognised:
                view = self._read_beginning(view)
            elif self._in_tail:
                self._position += len(view)
                return
            elif self._in_box:
                view = self._read_content(view)
            else:
                view = self._read_header(view)

    def finish(self) -> MediaInfo:
        """Say what the file holds, once all of it was fed.

        Raises:
            NotAWholeVideo: if it is no video, or not all of it.
        """
        if not self._recognised:
            self._recognise()
        if self._in_box and self._box_end is None:
            self._end_box()
        if self._in_box or self._header or self._in_tail:
            # What began last has no end. A whole video does not need it where everything it has lies before.
            if not self._is_complete_before(self._box_start):
                raise NotAWholeVideo(self._what_is_missing())
            self.stray_bytes = self._position - self._box_start
        if self._movie is None:
            raise NotAWholeVideo(f"an MP4 of {self._position} bytes without its index (moov), so probably cut")
        return self._describe(self._movie)

    def _what_is_missing(self) -> str:
        if self._in_box:
            return f"cut after {self._position} of at least {self._box_end} bytes"
        return f"cut after {self._position} bytes, inside the head of a box"

    def _is_complete_before(self, position: int) -> bool:
        """Whether all that the index names lies before there.

        Never said of a fragmented file: what begins there may be the next fragment, and no index names it.
        """
        movie = self._movie
        if movie is None or movie.is_fragmented or self._fragments:
            return False
        tracks = [track for track in movie.tracks if track.samples]
        return bool(tracks) and all(track.says_where_it_ends and track.media_end <= position for track in tracks)

    def _read_beginning(self, view: memoryview) -> memoryview:
        taken = _SNIFF_BYTES - len(self._header)
        self._header += view[:taken]
        if len(self._header) == _SNIFF_BYTES:
            self._recognise()
        return view[taken:]

    def _recognise(self) -> None:
        """Refuse what is no MP4 by its first bytes, else read them."""
        beginning = bytes(self._header)
        if beginning[4:8] not in _FIRST_BOXES:
            raise NotAWholeVideo(_what_it_is(beginning))
        self._recognised = True
        self._header.clear()
        self.feed(beginning)

    def _read_header(self, view: memoryview) -> memoryview:
        if not self._header:
            self._box_start = self._position
        taken = self._header_size() - len(self._header)
        self._header += view[:taken]
        self._position += len(view[:taken])
        if len(self._header) == self._header_size():
            self._begin_box()
        return view[taken:]

    def _header_size(self) -> int:
        """How long the head of the box will be, as far as its first bytes tell: a size of 1 announces 64 bits."""
        return _LONG_HEADER if self._header[:4] == b"\0\0\0\1" else _HEADER

    def _begin_box(self) -> None:
        size, self._box_type = struct.unpack_from(">I4s", self._header)
        header_size = len(self._header)
        if size == 1:
            (size,) = struct.unpack_from(">Q", self._header, 8)
        elif size == 0:
            size = None
        self._header.clear()
        self._budget.take_box()
        if size is not None and size < header_size:
            if not self._is_complete_before(self._box_start):
                raise NotAWholeVideo(f"damaged at byte {self._box_start}: a box of {size} bytes")
            self._in_tail = True
            return
        self._box_end = None if size is None else self._box_start + size
        self._in_box = True
        if self._box_type in {b"moov", b"moof"}:
            if size is not None and size > MAX_INDEX_BYTES:
                raise NotAWholeVideo(f"an index ({self._box_type.decode()}) of {size} bytes, which no clip needs")
            self._content = bytearray()
        if self._position == self._box_end:
            self._end_box()

    def _read_content(self, view: memoryview) -> memoryview:
        taken = len(view) if self._box_end is None else min(len(view), self._box_end - self._position)
        if self._content is not None:
            self._content += view[:taken]
            if len(self._content) > MAX_INDEX_BYTES:
                raise NotAWholeVideo(f"an index ({self._box_type.decode()}) that does not end")
        self._position += taken
        if self._position == self._box_end:
            self._end_box()
        return view[taken:]

    def _end_box(self) -> None:
        content, self._content, self._in_box = self._content, None, False
        if content is None:
            return
        index = _Index.of(content, self._budget)
        if self._box_type == b"moov":
            self._movie = self._movie or _read_movie(index)
            return
        try:
            self._add_fragment(index)
        except struct.error:
            raise NotAWholeVideo(f"the index of a fragment (moof) is damaged at byte {self._box_start}") from None

    def _add_fragment(self, moof: _Index) -> None:
        for traf in _children(moof, 0, len(moof), b"traf"):
            header = next(_children(moof, traf.start, traf.end, b"tfhd"), None)
            if header is None:
                continue
            flags, track_id = struct.unpack_from(">II", moof, header.start)
            defaults, base = _fragment_defaults(moof, header.start + 8, flags, self._box_start)
            fragments = self._fragments.setdefault(track_id, _Fragments())
            if len(self._fragments) > MAX_TRACKS:
                raise NotAWholeVideo("an index with more tracks than any clip has")
            for run in _children(moof, traf.start, traf.end, b"trun"):
                end = _add_run(fragments, moof, run, defaults, base)
                self._fragments_end = max(self._fragments_end, end)

    def _describe(self, movie: "_Movie") -> MediaInfo:
        media_end = max([self._fragments_end, *(track.media_end for track in movie.tracks)])
        for track in movie.tracks:
            if (fragments := self._fragments.get(track.id)) is not None:
                default = movie.default_durations.get(track.id, 0)
                track.duration += fragments.duration + fragments.samples_by_default * default
                track.samples += fragments.samples
        if media_end > self._position:
            raise NotAWholeVideo(f"cut after {self._position} of at least {media_end} bytes")
        picture = next((track for track in movie.tracks if track.handler == b"vide" and track.samples), None)
        if picture is None:
            raise NotAWholeVideo(
                "no picture track" if not movie.is_fragmented else "no picture track, or cut before it began"
            )
        declared = movie.declared_seconds
        if declared is not None and picture.seconds < declared - _FRAGMENT_SLACK_SECONDS:
            raise NotAWholeVideo(f"cut after {picture.seconds:.1f} of {declared:.1f} seconds")
        return MediaInfo(
            duration_seconds=round(picture.seconds, 3),
            width=picture.width,
            height=picture.height,
            has_audio=any(track.handler == b"soun" and track.samples for track in movie.tracks),
        )


def read_media(path: Path | str) -> MediaInfo:
    """Read a local file.

    Raises:
        NotAWholeVideo: if it is no video, or not all of it.
        OSError: if it cannot be read.
    """
    reader = Mp4Reader()
    with Path(path).open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            reader.feed(chunk)
    return reader.finish()


def _what_it_is(head: bytes) -> str:
    """Name what came instead of an MP4, by its first bytes."""
    if not head:
        return "an empty file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml") and b"<html" not in text:
        return "an XML document"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<!--")):
        return "an HTML page"
    if text.startswith((b"{", b"[")):
        return "a JSON document"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "a WebM or Matroska file, not an MP4"
    return "not an MP4"


def _children(data: _Index, start: int, end: int, wanted: bytes) -> Iterator[_Box]:
    """Walk the boxes between two offsets, and give those of one type; a rest too short for a box is padding."""
    while end - start >= _HEADER:
        data.budget.take_box()
        size, box_type = struct.unpack_from(">I4s", data, start)
        header_size = _HEADER
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            header_size = _LONG_HEADER
        elif size == 0:
            size = end - start
        if size < header_size or start + size > end:
            raise NotAWholeVideo(f"its index is damaged: a box of {size} bytes where {end - start} are left")
        if box_type == wanted:
            yield _Box(start + header_size, start + size)
        start += size


def _descend(data: _Index, box: _Box, *path: bytes) -> _Box | None:
    """Find the first box along a path of types."""
    found: _Box | None = box
    for box_type in path:
        if found is None:
            return None
        found = next(_children(data, found.start, found.end, box_type), None)
    return found


class _Track:
    """What the index says about one track."""

    def __init__(self) -> None:
        self.id = 0
        self.handler = b""
        self.timescale = 0
        self.duration = 0  # of all samples, in the track's timescale
        self.samples = 0
        self.width = 0
        self.height = 0
        self.media_end = 0  # where the last byte of its media lies in the file, as far as the index says it
        self.says_where_it_ends = False  # whether that holds for every sample

    @property
    def seconds(self) -> float:
        return self.duration / self.timescale if self.timescale else 0.0


class _Movie(NamedTuple):
    """What the `moov` says."""

    tracks: list[_Track]
    is_fragmented: bool
    default_durations: dict[int, int]
    declared_seconds: float | None


def _read_movie(moov: _Index) -> _Movie:
    try:
        extends = next(_children(moov, 0, len(moov), b"mvex"), None)
        tracks: list[_Track] = []
        for box in _children(moov, 0, len(moov), b"trak"):
            if len(tracks) == MAX_TRACKS:
                raise NotAWholeVideo("an index with more tracks than any clip has")
            tracks.append(_read_track(moov, box))
        return _Movie(tracks, extends is not None, _default_durations(moov, extends), _declared_seconds(moov, extends))
    except struct.error:
        raise NotAWholeVideo("its index (moov) is damaged") from None


def _read_track(data: _Index, trak: _Box) -> _Track:
    track = _Track()
    if (box := _descend(data, trak, b"tkhd")) is not None:
        _read_track_header(data, box, track)
    if (box := _descend(data, trak, b"mdia", b"hdlr")) is not None:
        (track.handler,) = struct.unpack_from(">4s", data, box.start + 8)
    if (box := _descend(data, trak, b"mdia", b"mdhd")) is not None:
        times = box.start + (20 if data[box.start : box.start + 1] == b"\1" else 12)
        (track.timescale,) = struct.unpack_from(">I", data, times)
    if (box := _descend(data, trak, b"mdia", b"minf", b"stbl")) is not None:
        _read_sample_tables(data, box, track)
    return track


def _read_track_header(data: _Index, box: _Box, track: _Track) -> None:
    # Version 1 has 64-bit times.
    fields = box.start + (20 if data[box.start : box.start + 1] == b"\1" else 12)
    rest = fields + (20 if data[box.start : box.start + 1] == b"\1" else 12)
    (track.id,) = struct.unpack_from(">I", data, fields)
    a, b, _, c, d = struct.unpack_from(">5i", data, rest + 16)
    width, height = (size >> 16 for size in struct.unpack_from(">II", data, rest + 52))
    # The matrix of a clip that is shown turned by 90 or 270 degrees has nothing on its diagonal.
    turned = a == 0 and d == 0 and (b != 0 or c != 0)
    track.width, track.height = (height, width) if turned else (width, height)


def _read_sample_tables(data: _Index, stbl: _Box, track: _Track) -> None:
    entry = _descend(data, stbl, b"stsd")
    if entry is not None and track.handler == b"vide" and not (track.width and track.height):
        # Some writers leave the track header's size empty: take the coded one.
        track.width, track.height = struct.unpack_from(">HH", data, entry.start + 8 + 32)
    if (box := _descend(data, stbl, b"stts")) is not None:
        times = _table(data, box, "I", columns=2)
        track.duration = sum(count * delta for count, delta in zip(times[::2], times[1::2], strict=True))
    sizes = _sample_sizes(data, stbl)
    track.samples = sizes.number
    if (box := _descend(data, stbl, b"stco")) is not None:
        offsets = _table(data, box, "I", columns=1)
    elif (box := _descend(data, stbl, b"co64")) is not None:
        offsets = _table(data, box, "Q", columns=1)
    else:
        if track.samples:
            raise NotAWholeVideo("its index does not say where the media lies")
        return
    if (box := _descend(data, stbl, b"stsc")) is not None:
        placed, track.media_end = _media_end(offsets, _table(data, box, "I", columns=3), sizes)
        track.says_where_it_ends = placed == track.samples and sizes.are_exact


class _SampleSizes(NamedTuple):
    """How many samples, and how many bytes the first n of them have."""

    number: int
    same: int
    each: "array[int]"
    are_exact: bool = True

    def sum(self, first: int, last: int) -> int:
        if self.same:
            return self.same * max(0, min(last, self.number) - first)
        return sum(self.each[first:last])


def _sample_sizes(data: _Index, stbl: _Box) -> _SampleSizes:
    if (box := _descend(data, stbl, b"stsz")) is not None:
        same, count = struct.unpack_from(">II", data, box.start + 4)
        each = array("I") if same else _column(data, box.start + 12, box.end, "I", count)
        return _SampleSizes(count, same, each)
    if (box := _descend(data, stbl, b"stz2")) is not None:
        field_size, count = struct.unpack_from(">3xBI", data, box.start + 4)
        code = {16: "H", 8: "B"}.get(field_size)
        # Half bytes: nobody writes them for pictures; where the chunks begin is checked all the same.
        each = array("B") if code is None else _column(data, box.start + 12, box.end, code, count)
        return _SampleSizes(count, 0, each, are_exact=code is not None)
    return _SampleSizes(0, 0, array("I"))


def _table(data: _Index, box: _Box, code: str, *, columns: int) -> "array[int]":
    """Read a table of big-endian numbers that stands behind version, flags and the number of rows."""
    (rows,) = struct.unpack_from(">I", data, box.start + 4)
    return _column(data, box.start + 8, box.end, code, rows * columns)


def _column(data: _Index, start: int, end: int, code: str, count: int) -> "array[int]":
    numbers = array(code)
    if start + count * numbers.itemsize > end:
        raise NotAWholeVideo("its index is damaged: a table runs past its box")
    data.budget.take_numbers(count)
    numbers.frombytes(data[start : start + count * numbers.itemsize])
    if byteorder == "little":
        numbers.byteswap()
    return numbers


def _media_end(offsets: "array[int]", runs: "array[int]", sizes: _SampleSizes) -> tuple[int, int]:
    """Tell how many samples lie in chunks, and where their last byte is.

    Args:
        offsets: Where each chunk begins.
        runs: Rows of first chunk, samples per chunk, description.
        sizes: Of the samples.
    """
    end = 0
    sample = chunk = 0
    lasts = [*(min(first - 1, len(offsets)) for first in runs[3::3]), len(offsets)]
    for last, samples_per_chunk in zip(lasts, runs[1::3], strict=False):
        while chunk < last:
            end = max(end, offsets[chunk] + sizes.sum(sample, sample + samples_per_chunk))
            sample = min(sample + samples_per_chunk, sizes.number)
            chunk += 1
    return sample, end


class _Fragments:
    """What the fragments add to one track."""

    def __init__(self) -> None:
        self.samples = 0
        self.duration = 0  # of those samples that say how long they are
        self.samples_by_default = 0  # those that leave it to the default in `mvex`


# The flags of a `tfhd` (which optional fields follow) and of a `trun` (the same, and which columns its rows have).
_TFHD_BASE, _TFHD_DESCRIPTION, _TFHD_DURATION, _TFHD_SIZE = 0x01, 0x02, 0x08, 0x10
_TRUN_OFFSET, _TRUN_FIRST_FLAGS = 0x01, 0x04
_ROW_DURATION, _ROW_SIZE, _ROW_FLAGS, _ROW_COMPOSITION = 0x100, 0x200, 0x400, 0x800


class _FragmentDefaults(NamedTuple):
    duration: int | None
    size: int


def _fragment_defaults(data: bytes, start: int, flags: int, moof_start: int) -> tuple[_FragmentDefaults, int]:
    """Read the optional fields of a `tfhd`, and tell where its media offsets count from."""
    base, duration, size = moof_start, None, 0
    if flags & _TFHD_BASE:
        (base,) = struct.unpack_from(">Q", data, start)
        start += 8
    if flags & _TFHD_DESCRIPTION:
        start += 4
    if flags & _TFHD_DURATION:
        (duration,) = struct.unpack_from(">I", data, start)
        start += 4
    if flags & _TFHD_SIZE:
        (size,) = struct.unpack_from(">I", data, start)
    return _FragmentDefaults(duration, size), base


def _add_run(fragments: _Fragments, data: _Index, run: _Box, defaults: _FragmentDefaults, base: int) -> int:
    """Add a `trun`'s samples, and tell where their last byte lies, as far as the run says it."""
    flags, count = struct.unpack_from(">II", data, run.start)
    start = run.start + 8
    offset = 0
    if flags & _TRUN_OFFSET:
        (offset,) = struct.unpack_from(">i", data, start)
        start += 4
    if flags & _TRUN_FIRST_FLAGS:
        start += 4
    # Each sample has those of duration, size, flags and composition offset that the run's flags name.
    columns = [bit for bit in (_ROW_DURATION, _ROW_SIZE, _ROW_FLAGS, _ROW_COMPOSITION) if flags & bit]
    numbers = _column(data, start, run.end, "I", count * len(columns))
    total = count * defaults.size
    if _ROW_SIZE in columns:
        total = sum(numbers[columns.index(_ROW_SIZE) :: len(columns)])
    fragments.samples += count
    if _ROW_DURATION in columns:
        fragments.duration += sum(numbers[columns.index(_ROW_DURATION) :: len(columns)])
    elif defaults.duration is not None:
        fragments.duration += count * defaults.duration
    else:
        fragments.samples_by_default += count
    return base + offset + total if flags & _TRUN_OFFSET else 0


def _default_durations(data: _Index, extends: _Box | None) -> dict[int, int]:
    """Read each track's default sample duration from `mvex`."""
    durations: dict[int, int] = {}
    for box in _children(data, extends.start, extends.end, b"trex") if extends else ():
        _, track, _, duration = struct.unpack_from(">4I", data, box.start)
        durations[track] = duration
    return durations


def _declared_seconds(data: _Index, extends: _Box | None) -> float | None:
    """Tell how long a fragmented file says that it is, if it says so."""
    header = next(_children(data, extends.start, extends.end, b"mehd"), None) if extends else None
    movie = next(_children(data, 0, len(data), b"mvhd"), None)
    if header is None or movie is None:
        return None
    (timescale,) = struct.unpack_from(
        ">I", data, movie.start + (20 if data[movie.start : movie.start + 1] == b"\1" else 12)
    )
    (duration,) = struct.unpack_from(
        ">Q" if data[header.start : header.start + 1] == b"\1" else ">I", data, header.start + 4
    )
    return duration / timescale if timescale else None
