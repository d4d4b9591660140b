"""Emomusic ("1000 songs", MediaEval 2013): 744 excerpts of 45 s, with arousal and valence as listeners rated them.

Source: Soleymani, Caro, Schmidt, Sha & Yang 2013; 619 development and 125 evaluation songs. Development songs are
divided by artist as in jukemir (Castellon, Donahue & Liang 2021): 504 / 115 / 125.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from audiation.annotations import Emotion
from audiation.datasets.annotation_files import (
    AnnotationError,
    identifier,
    number,
    read_bytes,
    shown,
    table_rows,
)
from audiation.datasets.base import DATASETS, Dataset, DatasetInfo, Track, keep_present

MIN_RATING, MAX_RATING = 1.0, 9.0

SEGMENT_COLUMNS = ("start of the segment (min.sec)", "end of the segment (min.sec)")
INFO_COLUMNS = ("song_id", "file_name", "Artist", *SEGMENT_COLUMNS, "Mediaeval 2013 set")
STATIC_COLUMNS = ("song_id", "mean_arousal", "mean_valence")

OFFICIAL_CONTENT_SHA256 = "6ca296624903c1084a42be4a6bc469efc8edc4dfc67518bd7e145aec45d060df"
"""Of `content` of the published annotations."""

MAX_SONGS = 20_000


@dataclass(frozen=True)
class Moments:
    """Means and population deviations, each of arousal and valence: what `EmotionTarget` takes."""

    means: tuple[float, float]
    deviations: tuple[float, float]


@dataclass(frozen=True)
class Song:
    """A row of the annotations. set_name: "development" or "evaluation".

    start_seconds, end_seconds: where the excerpt lies in the song.
    """

    song_id: str
    set_name: str
    artist: str
    start_seconds: float
    end_seconds: float
    emotion: Emotion

    @property
    def split(self) -> str:
        """The rule of jukemir. Only development songs are divided by artist; an artist may be in the test too (D18)."""
        if self.set_name == "evaluation":
            return "test"
        return "train" if artist_number(self.artist) < 8 else "valid"


@dataclass(frozen=True)
class EmomusicTrack(Track):
    """One excerpt. track_id: its number, '1000'. group: the artist; "" in the test, which shares artists with training.

    emotion: means over the listeners for the whole excerpt, from 1 to 9 (static annotations, D17).
    """

    emotion: Emotion = field(kw_only=True)


@DATASETS.register("emomusic")
class Emomusic(Dataset):
    """Emomusic as its archives unpack: `clips_45seconds/<id>.mp3` and `annotations/*.csv` (or the CSV files alone).

    Ratings are those of `static_annotations.csv`, as the code of jukemir and MARBLE uses them; the text of jukemir
    speaks of averaged continuous annotations (D17). Windows (D19) are the task's business.

    Args:
        root: the data folder.
        metadata_root: not used; the annotations come with the audio.

    Raises:
        FileNotFoundError: no audio, or no annotations.
        AnnotationError: annotations that are no such tables, or that do not fit together. Names file and line.

    Warns:
        UserWarning: recordings are missing; `skipped` has each of them.
    """

    name = "emomusic"
    folders = ("emoMusic", "EmoMusic", "EMO")
    info = DatasetInfo(
        title="Emomusic: arousal and valence of 744 excerpts",
        where="cvml.unige.ch/databases/emoMusic: clips_45sec.tar.gz and annotations.tar.gz",
        size="744 excerpts of 45 s",
        licence="songs from the Free Music Archive under Creative Commons, another one per song; for research",
        commercial_use=False,
        citation="M. Soleymani, M. Caro, E. Schmidt, C.-Y. Sha, Y.-H. Yang: 1000 songs for emotional analysis of "
        "music, CrowdMM 2013",
    )

    def __init__(self, root: str | Path, *, metadata_root: str | Path | None = None) -> None:
        root = Path(root)
        folder = _first_with("songs_info.csv", [root / "annotations", root])
        audio = next((f for f in (root / "clips_45seconds", root / "clips_45sec") if f.is_dir()), None)
        if folder is None or audio is None:
            raise FileNotFoundError(
                f"emomusic not found at {root} (looked for annotations/songs_info.csv and clips_45seconds/2.mp3). "
                "docs/datasets/emomusic.md says where to get it."
            )
        self.songs = read_songs(folder)
        present = keep_present(
            self.name,
            (
                EmomusicTrack(s.song_id, audio / f"{s.song_id}.mp3", s.split, _group(s), emotion=s.emotion)
                for s in self.songs
            ),
        )
        self.tracks, self.skipped = present.tracks, present.skipped

    def development_moments(self) -> Moments:
        """Of all annotated development songs, whether their audio is here or not: the scale that labels are learned on.

        Of the published annotations: means 4.7561 and 4.9739, deviations 1.3860 and 1.2546.
        """
        return development_moments(self.songs)

    def verify(self) -> list[str]:
        found = hashlib.sha256(content(self.songs)).hexdigest()
        differing = found != OFFICIAL_CONTENT_SHA256
        return super().verify() + (["the annotations are not the published ones"] if differing else [])


def development_moments(songs: Iterable[Song]) -> Moments:
    """Of the development songs; ValueError where there is none."""
    ratings = np.array(
        [(s.emotion.arousal, s.emotion.valence) for s in songs if s.set_name == "development"]
    ).reshape(-1, 2)
    if not len(ratings):
        raise ValueError("no development songs to take means and deviations of")
    means, deviations = ratings.mean(0).tolist(), ratings.std(0).tolist()
    return Moments((means[0], means[1]), (deviations[0], deviations[1]))


def artist_number(artist: str) -> int:
    """0 to 9, by which development songs are divided: the SHA-1 of the normalised name, as an integer, modulo 10."""
    return int(hashlib.sha1(normalised_artist(artist).encode()).hexdigest(), 16) % 10


def normalised_artist(artist: str) -> str:
    """Lower case, ASCII letters and single blanks: 'DJ Foo & Bar' -> 'dj foo bar'. Some names leave nothing."""
    return " ".join(re.sub(r"[^a-z\s]", "", artist.lower(), flags=re.ASCII).split())


def minutes_seconds(text: str, where: str) -> float:
    """'0.48' -> 48.0, '1.3' -> 90.0 (1 min 30 s; a final zero may be lost), '0' -> 0.0. AnnotationError otherwise."""
    match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-5][0-9]?))?", text, re.ASCII)
    if not match:
        raise AnnotationError(f"{where}: a time like 1.05 (minutes.seconds) was expected, got {shown(text)}")
    return 60.0 * int(match[1]) + float((match[2] or "0").ljust(2, "0"))


def content(songs: Iterable[Song]) -> bytes:
    """What splits and labels come from, a line per song in the order of their numbers: to compare annotations by."""
    return "".join(
        f"{s.song_id}\t{s.set_name}\t{s.artist}\t{s.emotion.arousal!r}\t{s.emotion.valence!r}\n"
        for s in sorted(songs, key=lambda song: int(song.song_id))
    ).encode()


# Tables ----------------------------------------------------------------------------------------------------


def read_songs(folder: Path) -> tuple[Song, ...]:
    """The songs of `songs_info.csv` with their ratings of `static_annotations.csv`; the continuous ones are not read.

    Raises:
        AnnotationError: no such tables, a song that is in one of them only, or twice.
        FileNotFoundError: one is missing.
    """
    emotions = _emotions(folder / "static_annotations.csv")
    songs: dict[str, Song] = {}
    for row, where in _rows(folder / "songs_info.csv", INFO_COLUMNS):
        song_id = _new_id(row["song_id"], where, songs)
        if row["file_name"] != f"{song_id}.mp3":
            raise AnnotationError(
                f"{where}: the file of song {song_id} is {song_id}.mp3, got {shown(row['file_name'])}"
            )
        if row["Mediaeval 2013 set"] not in ("development", "evaluation"):
            raise AnnotationError(
                f"{where}: the set of a song is development or evaluation, got {shown(row['Mediaeval 2013 set'])}"
            )
        start, end = (minutes_seconds(row[column], where) for column in SEGMENT_COLUMNS)
        if end <= start:
            raise AnnotationError(
                f"{where}: the segment must end after it starts, got {start:g} s to {end:g} s"
            )
        if song_id not in emotions:
            raise AnnotationError(f"{where}: song {song_id} is not in static_annotations.csv")
        songs[song_id] = Song(
            song_id, row["Mediaeval 2013 set"], row["Artist"], start, end, emotions[song_id].emotion
        )
    for song_id, rated in emotions.items():
        if song_id not in songs:
            raise AnnotationError(f"{rated.where}: song {song_id} is not in songs_info.csv")
    return tuple(songs.values())


@dataclass(frozen=True)
class _Rated:
    emotion: Emotion
    where: str


def _emotions(path: Path) -> dict[str, _Rated]:
    emotions: dict[str, _Rated] = {}
    for row, where in _rows(path, STATIC_COLUMNS):
        song_id = _new_id(row["song_id"], where, emotions)
        arousal, valence = (
            number(row[column], where, at_least=MIN_RATING, at_most=MAX_RATING)
            for column in ("mean_arousal", "mean_valence")
        )
        emotions[song_id] = _Rated(Emotion(arousal, valence), where)
    return emotions


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[dict[str, str], str]]:
    """Rows of a table whose cells have stray blanks and tabs, also behind a closing quotation mark."""
    tidied = re.sub(rb'"[ \t]+(?=[,\r\n]|$)', b'"', read_bytes(path))
    for row, where in table_rows(tidied, str(path), columns, max_lines=MAX_SONGS):
        yield {column: row[column] for column in columns}, where


def _new_id(text: str, where: str, seen: Iterable[str]) -> str:
    song_id = identifier(text, where, "[1-9][0-9]{0,4}")
    if song_id in seen:
        raise AnnotationError(f"{where}: song {song_id} is there already")
    return song_id


def _group(song: Song) -> str:
    return normalised_artist(song.artist) if song.set_name == "development" else ""


def _first_with(name: str, folders: Iterable[Path]) -> Path | None:
    return next((folder for folder in folders if (folder / name).is_file()), None)
