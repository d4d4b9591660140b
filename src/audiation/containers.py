"""What an audio file's container declares, checked against the bytes that are there.

libsndfile reads cut WAV and OGG files silently short, guesses the length of an MP3 that declares none (and
stops at its guess), and takes a WAV of unknown length for an empty one. So the headers are read here first:
each `_check_*` walks one container, raises a typed error that names the file, and says which bytes to decode.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

SCAN_BYTES = 1 << 16  # how far into a file the first MP3 frame may lie, and the step of searches


class AudioError(ValueError):
    """A file that cannot be used as audio. `path` names it; the message starts with its name.

    One subclass per case that a caller may want to tell apart.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = Path(path)
        self.problem = problem

    def __reduce__(self) -> tuple[type[AudioError], tuple[Path, str]]:
        return type(self), (self.path, self.problem)  # a worker process sends it back whole


class MissingAudioError(AudioError):
    """There is no such file."""


class NotAFileError(AudioError):
    """A directory, pipe or device."""


class UnreadableAudioError(AudioError):
    """The operating system refuses: permissions, a failing disk."""


class EmptyAudioError(AudioError):
    """Zero bytes, or a good header with no audio behind it."""


class TruncatedAudioError(AudioError):
    """Less audio than the file declares, or decoding broke off: cut short or damaged."""


class NotAudioError(AudioError):
    """Not WAV, FLAC, OGG or MP3, whatever its name says; or a header with impossible values."""


class BadSamplesError(AudioError):
    """NaN or infinite samples."""


class TooShortAudioError(AudioError):
    """Shorter than what was asked for as a minimum."""


class AudioWindowError(AudioError):
    """A window that is no stretch of this file: negative or NaN times, or a start behind its end."""


@dataclass(frozen=True)
class Container:
    """The bytes to hand to the decoder: `prefix`, then the file from `start` to `end`."""

    format: str  # "WAV", "FLAC", "OGG" or "MP3"
    prefix: bytes
    start: int
    end: int


def check_container(file: BinaryIO, path: Path) -> Container:
    """Recognise an open file by its content and check that all it declares is there.

    Raises:
        EmptyAudioError, TruncatedAudioError, NotAudioError.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise EmptyAudioError(path, "has zero bytes. Copy or download it again.")
    magic = _read(file, 0, 12)
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _check_wav(file, path, size)
    if magic[:4] == b"OggS":
        return _check_ogg(file, path, size)
    start = _skip_id3(file, path, size)
    if _read(file, start, 4) == b"fLaC":
        return _check_flac(file, path, size, start)
    return _check_mp3(file, path, size, start)


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _truncated(path: Path, detail: str) -> TruncatedAudioError:
    return TruncatedAudioError(path, f"is cut short or damaged: {detail}. Copy or download it again.")


def _not_audio(path: Path, detail: str) -> NotAudioError:
    return NotAudioError(path, f"{detail}. Convert it to WAV, FLAC, OGG or MP3, or leave it out.")


# WAV (RIFF, RIFX, RF64; EBU Tech 3306)

# Sizes that programs write when they do not know the length yet: ffmpeg and mpg123, sox, arecord.
UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000)


def _check_wav(file: BinaryIO, path: Path, size: int) -> Container:
    head = _read(file, 0, 12)
    if len(head) < 12:
        raise _truncated(path, f"a WAV header of {len(head)} bytes")
    if head[8:12] != b"WAVE":
        raise _not_audio(path, f"is a RIFF file, but of type {head[8:12]!r}, not WAVE")
    order: Literal["big", "little"] = "big" if head[:4] == b"RIFX" else "little"
    riff_size = int.from_bytes(head[4:8], order)
    long_size = None
    at = 12
    while True:
        chunk = _read(file, at, 8)
        if len(chunk) < 8:
            if riff_size not in UNKNOWN_SIZES and 8 + riff_size <= size:
                raise _not_audio(path, "is a WAV file without a data chunk")
            raise _truncated(path, "the WAV header ends before the audio")
        name, chunk_size = chunk[:4], int.from_bytes(chunk[4:], order)
        if name == b"data":
            break
        body = file.read(min(chunk_size, 40))
        if name == b"ds64" and len(body) >= 16:
            long_size = int.from_bytes(body[8:16], "little")
        if name == b"fmt " and len(body) >= 16:
            channels, rate = int.from_bytes(body[2:4], order), int.from_bytes(body[4:8], order)
            if channels == 0 or rate == 0:
                raise _not_audio(path, f"its WAV header says {channels} channels at {rate} Hz")
        at += 8 + chunk_size + chunk_size % 2  # chunks are padded to even length
    start, there = at + 8, size - at - 8
    if head[:4] == b"RF64" and chunk_size == 0xFFFFFFFF and long_size is not None:
        chunk_size = long_size
    unknown = chunk_size in UNKNOWN_SIZES or (
        chunk_size == 0 and (riff_size == 0 or riff_size in UNKNOWN_SIZES)
    )
    if unknown and there > 0:
        if chunk_size > there or chunk_size == 0:
            # libsndfile reads to the end of the file when told the largest size, and nothing when told zero.
            magic = head[:4] if order == "big" else b"RIFF"
            prefix = magic + b"\xff" * 4 + _read(file, 8, start - 12) + b"\xff" * 4
            return Container("WAV", prefix, start, size)
    elif chunk_size > there:
        raise _truncated(path, f"its WAV header declares {chunk_size} bytes of audio, {there} are there")
    if chunk_size == 0:
        raise EmptyAudioError(path, "is a WAV file that holds no audio. Record or export it again.")
    return Container("WAV", b"", 0, size)


# FLAC (RFC 9639)


def _check_flac(file: BinaryIO, path: Path, size: int, start: int) -> Container:
    head = _read(file, start, 42)  # "fLaC", block header, 34 bytes of STREAMINFO
    if len(head) < 42:
        raise _truncated(path, f"a FLAC header of {len(head)} bytes")
    if head[4] & 0x7F != 0:
        raise _not_audio(path, "is a FLAC file that does not begin with STREAMINFO")
    if int.from_bytes(head[18:21], "big") >> 4 == 0:
        raise _not_audio(path, "its FLAC header says 0 Hz")
    # The length in samples cannot be compared with bytes: audio.py decodes the last sample.
    return Container("FLAC", b"", start, size)


# OGG (RFC 3533)


def _check_ogg(file: BinaryIO, path: Path, size: int) -> Container:
    at, started = 0, False
    while True:
        head = _read(file, at, 27)
        if head[:4] != b"OggS"[: len(head)] or (not head and started):
            raise _truncated(path, f"the OGG stream stops at byte {at} without its end mark")
        segments = file.read(head[26]) if len(head) == 27 else b""
        end = at + 27 + len(segments) + sum(segments)
        if len(head) < 27 or len(segments) < head[26] or end > size:
            raise _truncated(path, f"the OGG page at byte {at} is not complete")
        is_first, is_last = bool(head[5] & 2), bool(head[5] & 4)
        if is_first and started:
            raise _not_audio(path, "is an OGG file with several streams side by side")
        started, at = True, end
        if is_last:
            break
    behind = _read(file, at, 6)
    # Some encoders write empty pages behind the end mark; only a page that begins a stream is another recording.
    if behind[:4] == b"OggS" and behind[5:] and behind[5] & 2:
        raise _not_audio(
            path, "is an OGG file with several recordings one after another; only one can be read"
        )
    return Container("OGG", b"", 0, at)


# MP3: ID3v2 tags (id3.org), MPEG frame headers (ISO/IEC 11172-3, 13818-3), Xing / Info / VBRI frame counts


def _skip_id3(file: BinaryIO, path: Path, size: int) -> int:
    """Where the audio begins behind any ID3v2 tags."""
    at = 0
    while (head := _read(file, at, 10))[:3] == b"ID3":
        if len(head) < 10 or any(b & 0x80 for b in head[6:10]):
            raise _not_audio(path, "begins with a broken ID3 tag")
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        at += 10 + length + (10 if head[5] & 0x10 else 0)
        if at >= size:
            raise _truncated(path, f"its ID3 tag declares {length} bytes and no audio follows")
    return at


BITRATES_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1 Layer III
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5 Layer III
}
SAMPLE_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


@dataclass(frozen=True)
class _Mp3Header:
    version: int  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    sample_rate_hz: int
    is_mono: bool
    num_bytes: int  # of the whole frame

    @property
    def tag_offset(self) -> int:
        """Where a Xing tag lies in the frame: behind header and side information."""
        side = (17 if self.is_mono else 32) if self.version == 3 else (9 if self.is_mono else 17)
        return 4 + side

    def same_stream(self, other: _Mp3Header) -> bool:
        return (self.version, self.sample_rate_hz) == (other.version, other.sample_rate_hz)


def _mp3_header(data: bytes) -> _Mp3Header | None:
    """The frame header in these 4 bytes; None if they are none (or Layer I, II or free format)."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    bitrate, rate = data[2] >> 4, data[2] >> 2 & 3
    if version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return None
    rate_hz = SAMPLE_RATES_HZ[version][rate]
    bits_per_second = BITRATES_KBPS[version == 3][bitrate] * 1000
    num_bytes = (144 if version == 3 else 72) * bits_per_second // rate_hz + (data[2] >> 1 & 1)
    return _Mp3Header(version, rate_hz, data[3] >> 6 == 3, num_bytes)


def _check_mp3(file: BinaryIO, path: Path, size: int, start: int) -> Container:
    first_at, first = _first_mp3_frame(file, path, size, start)
    frame = _read(file, first_at, first.num_bytes)
    declared, declared_bytes, is_tag = _declared_mp3_length(frame, first)
    count, end = 0, first_at
    for at, header in _mp3_frames(file, size, first_at, first):
        if at + header.num_bytes > size:
            raise _truncated(
                path, f"its last MP3 frame needs {header.num_bytes} bytes, {size - at} of them are there"
            )
        count, end = count + 1, at + header.num_bytes
    count -= is_tag
    if count == 0:
        if declared:
            raise _truncated(path, f"its MP3 header declares {declared} frames, none is there")
        raise EmptyAudioError(path, "is an MP3 file that holds no audio. Record or export it again.")
    if declared is not None and count < declared:
        # Some encoders count the tag itself; their byte count, where there is one, shows that all is there.
        counted_tag = (
            count == declared - 1 and declared_bytes is not None and first_at + declared_bytes <= size
        )
        if not counted_tag:
            raise _truncated(path, f"its MP3 header declares {declared} frames, {count} are there")
    if declared == count and frame[first.tag_offset :][:4] in (b"Xing", b"Info"):
        return Container("MP3", b"", first_at, end)
    # libsndfile guesses a length that is not declared, and stops there: declare it.
    audio_at = first_at + first.num_bytes if is_tag else first_at
    return Container("MP3", _info_frame(_read(file, audio_at, 4), count), audio_at, end)


def _first_mp3_frame(file: BinaryIO, path: Path, size: int, start: int) -> tuple[int, _Mp3Header]:
    """The first of three frames in a row, or of as many as fit into a file that small."""
    data = _read(file, start, SCAN_BYTES)
    for match in re.finditer(rb"\xff[\xe0-\xff]", data):
        at = start + match.start()
        header = _mp3_header(data[match.start() : match.start() + 4])
        if header is None:
            continue
        follower_at, run = at + header.num_bytes, 1
        while run < 3 and follower_at < size:
            follower = _mp3_header(_read(file, follower_at, 4))
            if follower is None or not header.same_stream(follower):
                break
            follower_at, run = follower_at + follower.num_bytes, run + 1
        is_small = run == 2 or follower_at >= size or _read(file, follower_at, 8)[:3] in (b"TAG", b"APE")
        if run == 3 or (at == start and is_small):
            return at, header
    raise _not_audio(
        path, "holds no audio that can be read (not WAV, FLAC, OGG or MP3, whatever its name says)"
    )


def _mp3_frames(file: BinaryIO, size: int, at: int, first: _Mp3Header) -> Iterator[tuple[int, _Mp3Header]]:
    """Every frame from `at` on, over any bytes that are none."""
    while at < size:
        header = _mp3_header(_read(file, at, 4))
        if header is not None and first.same_stream(header):
            yield at, header
            at += header.num_bytes
        else:
            at = _next_mp3_frame(file, size, at + 1, first)


def _next_mp3_frame(file: BinaryIO, size: int, at: int, first: _Mp3Header) -> int:
    """Where the frames go on behind damage or a tag: two in a row, so that chance bytes do not count."""
    while at < size:
        data = _read(file, at, SCAN_BYTES)
        for match in re.finditer(rb"\xff[\xe0-\xff]", data):
            header = _mp3_header(data[match.start() : match.start() + 4])
            if header is not None and first.same_stream(header):
                follower = _mp3_header(_read(file, at + match.start() + header.num_bytes, 4))
                if follower is not None and first.same_stream(follower):
                    return at + match.start()
        at += max(len(data) - 3, 1)  # a header may lie across the border
    return size


def _declared_mp3_length(frame: bytes, header: _Mp3Header) -> tuple[int | None, int | None, bool]:
    """Frames and bytes that the first frame declares, and whether it is such a tag instead of audio."""
    tag = frame[header.tag_offset :]
    if tag[:4] in (b"Xing", b"Info") and len(tag) >= 16:
        flags = int.from_bytes(tag[4:8], "big")
        numbers = [int.from_bytes(tag[i : i + 4], "big") for i in (8, 12)]
        count = numbers.pop(0) if flags & 1 else None
        return count or None, numbers[0] if flags & 2 else None, True
    vbri = frame[36:]
    if vbri[:4] == b"VBRI" and len(vbri) >= 18:
        return int.from_bytes(vbri[14:18], "big") or None, int.from_bytes(vbri[10:14], "big"), True
    return None, None, False


def _info_frame(like: bytes, count: int) -> bytes:
    """A silent frame that says how many frames follow, in the format of the frame header `like`."""
    # No CRC, bit rate index 9 (128 or 80 kbit/s: room for the tag at any sample rate), no padding.
    head = bytes([like[0], like[1] | 1, 0x90 | like[2] & 0x0C, like[3]])
    header = _mp3_header(head)
    assert header is not None
    tag = b"Info" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return (head + bytes(header.tag_offset - 4) + tag).ljust(header.num_bytes, b"\0")


class ContainerReader(io.RawIOBase):
    """The bytes of a `Container` as a file of their own, for the decoder."""

    def __init__(self, file: BinaryIO, container: Container) -> None:
        super().__init__()
        self._file, self._container = file, container
        self._at = 0
        self._size = len(container.prefix) + container.end - container.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        prefix = self._container.prefix
        if self._at < len(prefix):
            data = prefix[self._at : self._at + wanted]
        else:
            data = _read(self._file, self._container.start + self._at - len(prefix), wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
