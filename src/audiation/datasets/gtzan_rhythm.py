"""GTZAN-Rhythm: beats and downbeats of the 1,000 GTZAN excerpts, as JAMS files.

Source: Marchand, Fresnel & Peeters 2015 (late-breaking demo). The audio is GTZAN's and is not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audiation.annotations import Beats
from audiation.audio import audio_info
from audiation.datasets.annotation_files import (
    MAX_LINES,
    MAX_SECONDS,
    AnnotationError,
    beats_of,
    parse_json,
    read_bytes,
    shown,
)
from audiation.datasets.base import DATASETS, Dataset, DatasetInfo, Track
from audiation.datasets.gtzan import (
    SPLIT_LISTS,
    audio_path,
    find_audio_folder,
    keep_readable,
    parse_split_lists,
    read_split_lists,
)
from audiation.datasets.gtzan_annotations import GENRES, TempoBeatAnnotations

SAME_BEAT_SECONDS = 0.07
"""A downbeat this near to a beat is that beat: the tolerance with which beats are scored."""

_FOLDER = "GTZAN-Rhythm_v2_ismir2015_lbd"


@dataclass(frozen=True)
class GtzanRhythmTrack(Track):
    """track_id: 'blues.00029'."""

    annotations: JamsAnnotations | TempoBeatAnnotations | None = field(
        default=None, repr=False, compare=False
    )

    @cached_property
    def beats(self) -> Beats | None:
        """Beats up to the end of the audio; later ones are left out. None where the track has no annotation.

        Positions count up from each downbeat. Before the first downbeat they are counted back where the bars have
        one length and less than a bar lies before it, else they are 0, and all are 0 where no downbeat is annotated.

        Raises:
            AnnotationError: a file that is not such an annotation (names file and line or row).
            AudioError: audio that cannot be read.
            MetadataError, MetadataUnavailableError: with `annotations="gtzan_tempo_beat"`, as `GtzanTrack.beats`.
        """
        beats = self.annotations.beats_of(self.track_id) if self.annotations else None
        if beats is None:
            return None
        inside = beats.times_seconds <= audio_info(self.audio_path).duration_seconds
        return Beats(beats.times_seconds[inside], beats.positions[inside])


@DATASETS.register("gtzan_rhythm")
class GtzanRhythm(Dataset):
    """GTZAN audio as the `gtzan` reader takes it, with `GTZAN-Rhythm_v2_ismir2015_lbd/` in or beside its folder.

    Args:
        root: the data folder of GTZAN.
        metadata_root: folder with local copies of the official split lists (and `gtzan_tempo_beat`).
        split: "fault_filtered" (thesis): training, validation and test inside GTZAN, 443 / 197 / 290. "all": every
            track is a test track, for models trained on other data such as the Harmonix Set; which GTZAN tracks
            MusicFM was tested on is not published (D23). The two are different benchmarks.
        annotations: "jams": GTZAN-Rhythm, its JAMS files in `jams/` or in the folder itself (D22).
            "gtzan_tempo_beat" (PETL): the .beats files of that repository, which have no reggae.00086.

    Raises:
        FileNotFoundError: no audio, no JAMS files, or split lists that are neither here nor to be fetched.
        AnnotationError: a list that is not a list of GTZAN tracks (names file and line).

    Warns:
        UserWarning: listed recordings are missing or unreadable; `skipped` has each of them with its reason.
    """

    name = "gtzan_rhythm"
    folders = ("gtzan",)
    info = DatasetInfo(
        title="GTZAN-Rhythm v2: beats and downbeats of GTZAN",
        where="annotations: anasynth.ircam.fr (GTZAN-Rhythm_v2_ismir2015_lbd_2015-10-28.tar_.gz); audio: see gtzan",
        size="1,000 JAMS files; 1,000 x 30 s of audio, 1.2 GB",
        licence="none stated; the audio is excerpts of commercial recordings, for research",
        commercial_use=False,
        citation="U. Marchand, Q. Fresnel, G. Peeters: GTZAN-Rhythm: extending the GTZAN test-set with beat, downbeat "
        "and swing annotations, ISMIR late-breaking demo, 2015",
    )

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        split: Literal["fault_filtered", "all"] = "fault_filtered",
        annotations: Literal["jams", "gtzan_tempo_beat"] = "jams",
    ) -> None:
        if split not in ("fault_filtered", "all"):
            raise ValueError(f"split is 'fault_filtered' or 'all', got {split!r}")
        if annotations not in ("jams", "gtzan_tempo_beat"):
            raise ValueError(f"annotations is 'jams' or 'gtzan_tempo_beat', got {annotations!r}")
        audio = find_audio_folder(self.name, Path(root))
        folders = list(dict.fromkeys([Path(root), audio, audio.parent]))
        self._annotations: JamsAnnotations | TempoBeatAnnotations
        if annotations == "jams":
            self._annotations = JamsAnnotations(_jams_folder([*folders, Path(root).absolute().parent]))
        else:
            self._annotations = TempoBeatAnnotations(tuple(folders), metadata_root)
        self.official_split = True
        if split == "all":
            entries = [("test", f"{genre}.{number:05d}") for genre in GENRES for number in range(100)]
        else:
            lists = read_split_lists(folders, metadata_root)
            self.official_split = all(SPLIT_LISTS[s].matches(listed.content) for s, listed in lists.items())
            entries = list(parse_split_lists(lists))
        listed_tracks = [
            GtzanRhythmTrack(i, audio_path(audio, i), part, annotations=self._annotations)
            for part, i in entries
        ]
        readable = keep_readable(self.name, audio, listed_tracks)
        self.tracks, self.skipped = readable.tracks, readable.skipped

    def verify(self) -> list[str]:
        own = [] if self.official_split else ["the split lists in the data folder are not the published ones"]
        if isinstance(self._annotations, TempoBeatAnnotations):
            return super().verify() + own + self._annotations.differences()
        for track in self.tracks:
            path = self._annotations.path_of(track.track_id)
            try:
                self._annotations.beats_of(track.track_id)
            except AnnotationError as error:
                own.append(f"{track.track_id}: {error}")
            else:
                own += [] if path.is_file() else [f"{track.track_id}: {path} is missing"]
        return super().verify() + own


def _jams_folder(folders: Sequence[Path]) -> Path:
    for folder in dict.fromkeys(folders):
        for place in (folder / _FOLDER / "jams", folder / _FOLDER):
            if next(place.glob("*.wav.jams"), None):
                return place
    raise FileNotFoundError(
        f"gtzan_rhythm not found at {folders[0]} (looked for {_FOLDER}/jams/blues.00000.wav.jams and "
        f"{_FOLDER}/blues.00000.wav.jams, there and beside it). docs/datasets/gtzan_rhythm.md says where to get it."
    )


# JAMS files ------------------------------------------------------------------------------------------------


class JamsAnnotations:
    """The files `<track id>.wav.jams` of a folder, each read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, track_id: str) -> Path:
        return self._folder / f"{track_id}.wav.jams"

    def beats_of(self, track_id: str) -> Beats | None:
        """None where there is no file, or one without a single beat."""
        path = self.path_of(track_id)
        return parse_jams(read_bytes(path), str(path)) if path.is_file() else None


def parse_jams(content: bytes, name: str) -> Beats | None:
    """Beats of a GTZAN-Rhythm JAMS file; None where it has no beat.

    A downbeat that is further than `SAME_BEAT_SECONDS` from every beat is a beat as well.
    """
    jams = parse_json(content, name)
    annotations = jams.get("annotations") if isinstance(jams, dict) else None
    if not isinstance(annotations, list):
        raise AnnotationError(f"{name}, line 1: a JAMS object with a list of annotations was expected")
    beats = _times(annotations, "beat", name)
    downbeats = _times(annotations, "downbeat", name)
    if len(beats) == 0:
        return None
    return number_beats(beats, downbeats)


def number_beats(beats: np.ndarray, downbeats: np.ndarray) -> Beats:
    """Bar positions of beats `(N,)` from downbeats `(M,)`, both in seconds and increasing; see `GtzanRhythmTrack`."""
    nearest = [np.abs(beats - time).min() for time in downbeats]
    further = [t for t, distance in zip(downbeats, nearest, strict=True) if distance > SAME_BEAT_SECONDS]
    times = np.union1d(beats, np.array(further, dtype=np.float64))
    starts = sorted({int(np.abs(times - time).argmin()) for time in downbeats})
    positions = np.zeros(len(times), dtype=np.int64)
    for start, end in pairwise([*starts, len(times)]):
        positions[start:end] = np.arange(1, end - start + 1)
    lengths = {end - start for start, end in pairwise(starts)}
    if len(lengths) == 1 and (length := lengths.pop()) > starts[0]:
        positions[: starts[0]] = np.arange(length - starts[0] + 1, length + 1)
    return Beats(times, positions)


def _times(annotations: list[Any], kind: str, name: str) -> np.ndarray:
    """Times of the one annotation of namespace beat and of this type, checked."""
    found = [
        a
        for a in annotations
        if isinstance(a, dict)
        and a.get("namespace") == "beat"
        and isinstance(a.get("sandbox"), dict)
        and a["sandbox"].get("annotation_type") == kind
    ]
    if len(found) != 1:
        raise AnnotationError(f"{name}, line 1: one {kind} annotation was expected, got {len(found)}")
    data = found[0].get("data")
    if isinstance(data, dict):
        times = data.get("time", [] if not data else None)
    elif isinstance(data, list) and all(isinstance(row, dict) for row in data):
        times = [row.get("time") for row in data]
    else:
        times = None
    if not isinstance(times, list) or len(times) > MAX_LINES:
        raise AnnotationError(
            f"{name}, line 1: data of the {kind} annotation is neither a list of objects with a time nor an object "
            f"with a list of times, or has more than {MAX_LINES} rows"
        )
    rows = []
    for row, time in enumerate(times, 1):
        where = f"{name}, line 1, row {row} of the {kind} annotation"
        if type(time) not in (int, float) or not 0 <= time <= MAX_SECONDS:
            raise AnnotationError(
                f"{where}: a time from 0 to {MAX_SECONDS:g} s was expected, got {shown(repr(time))}"
            )
        rows.append((float(time), 0, where))
    return beats_of(rows).times_seconds
