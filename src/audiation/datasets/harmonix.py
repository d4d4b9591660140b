"""The Harmonix Set: beats, downbeats and sections of 912 pop songs. Users bring the audio.

Source: Nieto et al. 2019. Section functions: the seven classes of Wang, Hung & Smith 2022, which MusicFM uses. Neither
published a list of test tracks; the division here is made by a rule, so that anybody can make it again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from audiation.annotations import Beats, Segments
from audiation.audio import AudioError, audio_info
from audiation.datasets.annotation_files import (
    AnnotationError,
    identifier,
    number,
    read_bytes,
    seconds,
    shown,
    table_rows,
)
from audiation.datasets.base import DATASETS, Dataset, DatasetInfo, Skipped, Track, keep_present
from audiation.datasets.harmonix_annotations import FILE, HarmonixAnnotations, not_pinned
from audiation.datasets.metadata import MetadataFile, read_metadata_file
from audiation.music_files import AUDIO_SUFFIXES

SECTIONS = ("intro", "verse", "chorus", "bridge", "inst", "outro", "silence")

NUM_TEST = 150  # of the 912, as in MusicFM; a copy with fewer songs has as many per song
MAX_SONGS = 20_000
MAX_OFFSET_SECONDS = 600.0
SHORTER_SECONDS = 2.0  # audio that ends this long before the last beat is another version of the song

SONGS = MetadataFile(
    "harmonixset/dataset/metadata.csv",
    "https://raw.githubusercontent.com/urinieto/harmonixset/main/dataset/metadata.csv",
    157726,
    "0c9202a10e95562c60341c758a180e6ff562f73937b7d1b51537520382d6b86b",
)


# The first that the label contains, ignoring case, decides; none: inst. The order is part of the rule.
_FUNCTIONS = (
    ("silence", "silence"),
    ("pre-chorus", "verse"),
    ("prechorus", "verse"),
    ("refrain", "chorus"),
    ("chorus", "chorus"),
    ("theme", "chorus"),
    ("stutter", "chorus"),
    ("verse", "verse"),
    ("rap", "verse"),
    ("section", "verse"),
    ("slow", "verse"),
    ("build", "verse"),
    ("dialog", "verse"),
    ("intro", "intro"),
    ("fadein", "intro"),
    ("opening", "intro"),
    ("bridge", "bridge"),
    ("trans", "bridge"),
    ("out", "outro"),
    ("coda", "outro"),
    ("ending", "outro"),
    ("break", "inst"),
    ("inst", "inst"),
    ("interlude", "inst"),
    ("impro", "inst"),
    ("solo", "inst"),
)


def section_of(label: str) -> str:
    """The function, one of `SECTIONS`, of a label of the Harmonix Set: 'postchorus' -> 'chorus', 'gtr' -> 'inst'."""
    lowered = label.lower()
    return next((function for part, function in _FUNCTIONS if part in lowered), "inst")


@dataclass(frozen=True)
class HarmonixTrack(Track):
    """One song. track_id: '0001_12step'. group: an artist that it and others share, see `divide`.

    offset_seconds: what is added to the times of the annotations, which were made on other copies of the songs.
    duration_seconds: of the copy that was annotated.
    """

    offset_seconds: float = 0.0
    duration_seconds: float = 0.0
    annotations: HarmonixAnnotations | None = field(default=None, repr=False, compare=False)

    @cached_property
    def beats(self) -> Beats | None:
        """Position 1 is the downbeat. Beats before the start of the audio are left out; those after its end are not.

        Raises: AnnotationError naming file and line; MetadataError, MetadataUnavailableError.
        """
        if self.annotations is None:
            return None
        beats = self.annotations.beats_of(self.track_id)
        times = beats.times_seconds + self.offset_seconds
        return Beats(times[times >= 0], beats.positions[times >= 0])

    @cached_property
    def raw_sections(self) -> Segments | None:
        """With the labels as written; what lies before the start of the audio is left out. Raises as `beats`."""
        if self.annotations is None:
            return None
        return _moved(self.annotations.sections_of(self.track_id, self.duration_seconds), self.offset_seconds)

    @cached_property
    def sections(self) -> Segments | None:
        """Labels from `SECTIONS`, beginning at 0: what lies before the first section is silence.

        Neighbours with the same function stay apart, because there is a boundary between them. Raises as `beats`.
        """
        raw = self.raw_sections
        if raw is None:
            return None
        intervals, labels = raw.intervals_seconds, tuple(map(section_of, raw.labels))
        first = intervals[0, 0] if len(intervals) else 0.0
        if first > 0:
            intervals, labels = np.concatenate([[[0.0, first]], intervals]), ("silence", *labels)
        return Segments(intervals, labels)


@DATASETS.register("harmonix")
class Harmonix(Dataset):
    """The Harmonix Set: audio as `audio/<file>.<suffix>` (`audio/0001_12step.mp3`), 686 / 76 / 150 songs by `divide`.

    Annotations are those in the data folder where it is a copy of the repository (`dataset/metadata.csv`,
    `dataset/beats_and_downbeats/`, `dataset/segments/`), else the official ones below the metadata root. Which songs
    are in which split depends on `metadata.csv` alone, not on which audio is there.

    `offsets.csv` in the data folder, columns `File` and `offset_seconds`, says by how much the audio is later than the
    annotations: annotation time + offset = audio time. Songs that it does not name have offset 0.

    Args:
        root: the folder with `audio/`.
        metadata_root: folder with local copies of the official annotations.

    Raises:
        FileNotFoundError: no audio, or annotations that are neither here nor below the metadata root.
        AnnotationError: a table that is not such a table (names file and line).
        MetadataError: a copy of the official annotations that is not as published.
        ValueError: two audio files of one song.

    Warns:
        UserWarning: songs have no audio; `skipped` has each of them.
    """

    name = "harmonix"
    folders = ("harmonixset",)
    info = DatasetInfo(
        title="Harmonix Set: beats, downbeats and sections of pop songs",
        where="annotations: github.com/urinieto/harmonixset; audio: your own copies of the songs",
        size="912 songs, 56 hours; annotations 6 MB",
        licence="annotations MIT; audio: commercial recordings, not distributed",
        commercial_use=False,
        citation="O. Nieto et al.: The Harmonix Set: beats, downbeats, and functional segment annotations of Western "
        "popular music, ISMIR 2019",
    )

    def __init__(self, root: str | Path, *, metadata_root: str | Path | None = None) -> None:
        root = Path(root)
        audio = root / "audio"
        if not audio.is_dir():
            raise FileNotFoundError(
                f"harmonix not found at {root} (looked for audio/0001_12step.mp3 or another kind of audio file). "
                "docs/datasets/harmonix.md says what to put there."
            )
        own = root / "dataset" / "metadata.csv"
        content = read_bytes(own) if own.is_file() else read_metadata_file(SONGS, metadata_root, not_pinned)
        self._official_songs = SONGS.matches(content)
        songs = _songs(content, str(own) if own.is_file() else SONGS.path)
        self._annotations = HarmonixAnnotations(root / "dataset", metadata_root)
        offsets = _offsets(root / "offsets.csv", songs)
        files = _audio_files(audio)
        present = keep_present(
            self.name,
            (
                HarmonixTrack(
                    song.file,
                    files.get(song.file, audio / f"{song.file}.*"),
                    song.split,
                    song.group,
                    offsets.get(song.file, 0.0),
                    song.duration_seconds,
                    self._annotations,
                )
                for song in songs
            ),
        )
        self.tracks = present.tracks
        self.skipped = tuple(_without_audio(s, files) for s in present.skipped)

    def verify(self) -> list[str]:
        """Also compares the length of the audio with the annotations, which tells most other versions of a song."""
        lines = super().verify() + self._annotations.differences()
        if not self._official_songs:
            lines.append("dataset/metadata.csv is not as published, so the splits may be others")
        for track in self.tracks:
            lines += _too_short(track)
        return lines


@dataclass(frozen=True)
class Song:
    """A row of `metadata.csv`. group: see `divide`."""

    file: str
    artist: str
    duration_seconds: float
    split: str
    group: str


def songs(metadata_root: str | Path | None = None, root: Path | None = None) -> list[Song]:
    """The official songs in their splits, or those of the copy of the repository in `root`; no audio is needed."""
    own = None if root is None else root / "dataset" / "metadata.csv"
    if own is not None and own.is_file():
        return _songs(read_bytes(own), str(own))
    return _songs(read_metadata_file(SONGS, metadata_root, not_pinned), SONGS.path)


def divide(artists: Sequence[str]) -> list[tuple[str, str]]:
    """(split, group) of each song, from the artists as `metadata.csv` names them. The rule of this package.

    1. Artists are the names between "feat.", "ft.", "featuring", "with", "vs.", "and", "&" and commas, in lower case.
       Songs that share one, directly or through other songs, are a group, called by the alphabetically first name.
    2. Groups are ordered by the SHA-256 of that name. In this order each that still fits goes to the test set, until
       that has 150 songs of 912 (in proportion: `n * 150 // 912`).
    3. In the same order, each of the others that still fits goes to validation, a tenth of the rest (76).

    The largest group (frequent guests of each other, 191 songs) therefore is always in training.
    """
    groups = _groups([_names(artist) for artist in artists])
    sizes = {group: groups.count(group) for group in set(groups)}
    order = sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    num_test = len(artists) * NUM_TEST // 912
    room = {"test": num_test, "valid": (len(artists) - num_test) // 10}
    split = dict.fromkeys(order, "train")
    for name in ("test", "valid"):
        for group in order:
            if split[group] == "train" and sizes[group] <= room[name]:
                split[group] = name
                room[name] -= sizes[group]
    return [(split[group], group) for group in groups]


def _moved(segments: Segments, offset_seconds: float) -> Segments:
    intervals = np.maximum(segments.intervals_seconds + offset_seconds, 0.0)
    kept = intervals[:, 1] > intervals[:, 0]
    labels = [label for label, keep in zip(segments.labels, kept, strict=True) if keep]
    return Segments(intervals[kept], tuple(labels))


# Tables ------------------------------------------------------------------------------------------------------


def _songs(content: bytes, name: str) -> list[Song]:
    columns = ("File", "Artist", "Duration")
    rows: list[tuple[str, str, float]] = []
    seen: set[str] = set()
    for row, where in table_rows(content, name, columns, max_lines=MAX_SONGS):
        file = identifier(row["File"], where, FILE)
        if file in seen:
            raise AnnotationError(f"{where}: {file} is listed already")
        seen.add(file)
        rows.append((file, row["Artist"], seconds(row["Duration"], where)))
    divided = divide([artist for _, artist, _ in rows])
    return [Song(*row, split, group) for row, (split, group) in zip(rows, divided, strict=True)]


def _offsets(path: Path, songs: Sequence[Song]) -> dict[str, float]:
    if not path.is_file():
        return {}
    known = {song.file for song in songs}
    offsets: dict[str, float] = {}
    columns = ("File", "offset_seconds")
    for row, where in table_rows(read_bytes(path), str(path), columns, max_lines=MAX_SONGS):
        file = row["File"]
        if file not in known or file in offsets:
            problem = "is listed already" if file in offsets else "is no file of metadata.csv"
            raise AnnotationError(f"{where}: {shown(file)} {problem}")
        offsets[file] = number(
            row["offset_seconds"], where, at_least=-MAX_OFFSET_SECONDS, at_most=MAX_OFFSET_SECONDS
        )
    return offsets


_SEPARATOR = re.compile(r" (?:feat\.?|ft\.?|featuring|with|vs\.?|and|&) |, ?")


def _names(artist: str) -> list[str]:
    return [name.strip() for name in _SEPARATOR.split(artist.lower()) if name.strip()] or [""]


def _groups(artists: Sequence[Sequence[str]]) -> list[str]:
    """The alphabetically first of all names that each one is linked with."""
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for names in artists:
        roots = sorted({root(name) for name in names})
        first.update(dict.fromkeys(roots, roots[0]))
    return [root(names[0]) for names in artists]


# Audio -------------------------------------------------------------------------------------------------------


def _audio_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
            if path.stem in files:
                raise ValueError(f"{files[path.stem]} and {path.name} are one song; leave one of them there")
            files[path.stem] = path
    return files


def _without_audio(skipped: Skipped, files: Mapping[str, Path]) -> Skipped:
    if skipped.track_id in files:
        return skipped
    return Skipped(skipped.track_id, f"no audio/{skipped.track_id}.* of a known kind", skipped.split)


def _too_short(track: Track) -> list[str]:
    assert isinstance(track, HarmonixTrack)
    try:
        beats = track.beats
        length = audio_info(track.audio_path).duration_seconds
    except (AnnotationError, AudioError) as error:
        return [f"{track.track_id}: {error}"]
    last = float(beats.times_seconds[-1]) if beats is not None and len(beats.times_seconds) else 0.0
    if length > last - SHORTER_SECONDS:
        return []
    return [f"{track.track_id}: {track.audio_path} ends at {length:.1f} s, the last beat is at {last:.1f} s"]
