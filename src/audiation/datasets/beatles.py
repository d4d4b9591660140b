"""The Beatles: chords of 180 songs on twelve albums, by C. Harte, published by Isophonics. No audio.

Sources: Harte 2010; Mauch et al. 2009. PETL's code lists "Beatles-Chord" with 121 / 30 / 29 songs and does not publish
which. The split here is by album and has those numbers; it is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiation.datasets.annotation_files import AnnotationError, shown
from audiation.datasets.base import DATASETS, SPLITS, Dataset, DatasetInfo, keep_present
from audiation.datasets.chord_files import LabTrack
from audiation.datasets.own_recordings import recordings_in

ALBUM_SPLITS = {f"{number:02d}": "train" for number in range(1, 10)} | {
    "10CD1": "valid",
    "10CD2": "valid",
    "11": "test",
    "12": "test",
}
"""Number of an album, as its folder begins -> split: up to Magical Mystery Tour; the white album; the last two."""

OFFICIAL_COUNTS = {"train": 121, "valid": 30, "test": 29}


@DATASETS.register("beatles_chord")
class BeatlesChord(Dataset):
    """`chordlab/The_Beatles/<album>/<song>.lab` of Isophonics, and your recordings: `audio/<album>/<song>.<suffix>`.

    Tracks have `chords`, with labels as written. track_id: '01_-_Please_Please_Me/06_-_Ask_Me_Why'. group: the album.

    Args:
        root: the folder with `chordlab` and `audio`; `The Beatles` with a blank is found too.
        metadata_root: not used; the annotations are the data set.

    Raises:
        FileNotFoundError: no annotations, or none of the audio.
        AnnotationError: a folder that is no album of Isophonics.

    Warns:
        UserWarning: recordings are missing; `skipped` has each of them.
    """

    name = "beatles_chord"
    folders = ("beatles", "Beatles", "The Beatles Annotations")
    info = DatasetInfo(
        title="The Beatles: chords of 180 songs (Isophonics), split by album",
        where="isophonics.net/content/reference-annotations-beatles (annotations); the audio is not distributed",
        size="180 songs, 8 hours; annotations below 1 MB",
        licence="none stated; commercial recordings, annotations for research",
        commercial_use=False,
        citation="C. Harte: Towards automatic extraction of harmony information from music signals, PhD thesis, "
        "Queen Mary University of London, 2010",
    )

    def __init__(self, root: str | Path, *, metadata_root: str | Path | None = None) -> None:
        songs = list(_songs(Path(root)))
        self._num_listed = {split: sum(song.split == split for song in songs) for split in SPLITS}
        present = keep_present(self.name, songs)
        self.tracks, self.skipped = present.tracks, present.skipped

    def verify(self) -> list[str]:
        return super().verify() + [
            f"{self._num_listed[split]} songs with chords in {split}, {count} are published"
            for split, count in OFFICIAL_COUNTS.items()
            if self._num_listed[split] != count
        ]


def _songs(root: Path) -> Iterator[LabTrack]:
    labs = next((p for n in ("The_Beatles", "The Beatles") if (p := root / "chordlab" / n).is_dir()), None)
    if labs is None:
        raise FileNotFoundError(
            f"beatles_chord not found at {root} (looked for chordlab/The_Beatles). "
            "docs/datasets/beatles.md says where to get it."
        )
    for album in sorted(path for path in labs.iterdir() if path.is_dir()):
        split = ALBUM_SPLITS.get(album.name.partition("_-_")[0])
        if split is None:
            raise AnnotationError(
                f"{album}: {shown(album.name)} is no album of Isophonics (01_-_Please_Please_Me to 12_-_Let_It_Be)"
            )
        recordings = recordings_in([root / "audio" / album.name, root / album.name])
        for lab in sorted(album.glob("*.lab")):
            path = recordings.get(lab.stem, root / "audio" / album.name / f"{lab.stem}.wav")
            yield LabTrack(f"{album.name}/{lab.stem}", path, split, album.name, lab)
