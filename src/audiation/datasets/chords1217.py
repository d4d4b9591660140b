"""Chords1217: 1,217 songs with chords, from the collections of Isophonics, Billboard and MARL.

Sources: Humphrey & Bello 2015, McFee & Bello 2017 (five folds), Jiang et al. 2019 (files and validation songs as used
here); MARBLE v2 has lists of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from audiation.datasets.annotation_files import AnnotationError, identifier, read_lines, seconds, shown
from audiation.datasets.base import DATASETS, Dataset, DatasetInfo, keep_present, warn_of_skipped
from audiation.datasets.chord_files import LabTrack, with_labs
from audiation.datasets.marble_lists import UniqueIds, read_lists
from audiation.datasets.metadata import ENVIRONMENT

SONG = r"TR[A-Z0-9]{5,40}"
FOLDS = ("0", "1", "2", "3", "4")
REPOSITORY = "ISMIR2019-Large-Vocabulary-Chord-Recognition"  # also the folder below the metadata root
_VALIDATION_SEED = 20190326  # of train_eval_test_split.py in that repository
MAX_SONGS = 20_000

_FOLDER = "chord_data_1217"


@DATASETS.register("chords1217")
class Chords1217(Dataset):
    """`chord_data_1217/audio/<song>.mp3` and `chord_data_1217/chordlab/<song>.lab`, with the lists of the folds.

    The lists `train00.csv`, `test00.csv`, ..., one song per line, are in the data folder, in `data/` there, or in
    `ISMIR2019-Large-Vocabulary-Chord-Recognition/data/` below the metadata root. Validation is what that repository
    takes: a quarter of the training songs, drawn with numpy's legacy generator from the fixed seed 20190326, fold
    after fold.

    Tracks have `chords`, with labels as written. track_id: 'TR6R91L11C8A40D710'.

    Args:
        root: the folder with `chord_data_1217`, or that folder; with lists="jsonl" the one with the three lists.
        metadata_root: see above.
        fold: which of the five folds is the test split. The repository names no main one; MARBLE v2 uses none of them.
        lists: "folds", or "jsonl": `Chords1217.{train,val,test}.jsonl` of MARBLE v2, which hold the chords too.

    Raises:
        FileNotFoundError: no lists, or none of the audio.
        AnnotationError: a list that is not as expected. Names file and line.

    Warns:
        UserWarning: audio or chords of listed songs are missing; `skipped` has each of them.
    """

    name = "chords1217"
    folders = (_FOLDER, "Chords1217")
    info = DatasetInfo(
        title="Chords1217: songs of Isophonics, Billboard and MARL with chords, five folds",
        where="github.com/music-x-lab/ISMIR2019-Large-Vocabulary-Chord-Recognition (folds); the audio is not "
        "distributed there. Lists of MARBLE v2: huggingface.co/datasets/m-a-p/Chords1217 (access on request)",
        size="1,217 songs",
        licence="none stated; commercial recordings, annotations for research",
        commercial_use=False,
        citation="J. Jiang, K. Chen, W. Li, G. Xia: Large-vocabulary chord transcription via chord structure "
        "decomposition, ISMIR 2019; B. McFee, J. P. Bello: Structured training for large-vocabulary chord recognition, "
        "ISMIR 2017",
    )

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        fold: Literal["0", "1", "2", "3", "4"] = "0",
        lists: Literal["folds", "jsonl"] = "folds",
    ) -> None:
        if fold not in FOLDS:
            raise ValueError(f"fold is one of {', '.join(FOLDS)}, got {fold!r}")
        if lists not in ("folds", "jsonl"):
            raise ValueError(f"lists is 'folds' or 'jsonl', got {lists!r}")
        if lists == "jsonl" and fold != "0":
            raise ValueError("the lists of MARBLE v2 have no folds; leave out fold, or use lists=folds")
        root = Path(root)
        songs = _of_folds(root, metadata_root, int(fold)) if lists == "folds" else _of_jsonl(root)
        annotated, without = with_labs(songs)
        present = keep_present(self.name, annotated)
        self.tracks, self.skipped = present.tracks, (*present.skipped, *without)
        warn_of_skipped(self.name, len(annotated) + len(without), without)


# Folds -------------------------------------------------------------------------------------------------------


def official_split(folder: Path, fold: int) -> dict[str, list[str]]:
    """Songs of each split, from the lists in `folder`: no audio is looked for.

    The lists of the folds before are needed too, because the validation songs are drawn one fold after the other.

    Raises: as `Chords1217`.
    """
    generator = np.random.RandomState(_VALIDATION_SEED)  # the published draw; nothing global is touched
    for number in range(fold + 1):
        training = _songs(folder / f"train{number:02d}.csv")
        order = generator.permutation(len(training))
    test = _songs(folder / f"test{fold:02d}.csv")
    if both := set(training) & set(test):
        raise AnnotationError(f"{folder}: {min(both)} is in train{fold:02d}.csv and in test{fold:02d}.csv")
    num_valid = len(training) // 4
    drawn = [training[i] for i in order]
    first_valid = len(drawn) - num_valid
    return {"train": drawn[:first_valid], "valid": drawn[first_valid:], "test": test}


def _of_folds(root: Path, metadata_root: str | Path | None, fold: int) -> Iterator[LabTrack]:
    data = root / _FOLDER if (root / _FOLDER).is_dir() else root
    if not (data / "chordlab").is_dir():
        raise FileNotFoundError(
            f"chords1217 not found at {root} (looked for {_FOLDER}/chordlab and chordlab). "
            "docs/datasets/chords1217.md says where to get it."
        )
    split = official_split(_list_folder(root, data, metadata_root), fold)
    for name, songs in split.items():
        for song in songs:
            yield LabTrack(
                song, data / "audio" / f"{song}.mp3", name, lab_path=data / "chordlab" / f"{song}.lab"
            )


def _list_folder(root: Path, data: Path, metadata_root: str | Path | None) -> Path:
    places = [root, root / "data", data, data / "data"]
    if metadata_root:
        places.append(Path(metadata_root).expanduser() / REPOSITORY / "data")
    for place in places:
        if (place / "train00.csv").is_file():
            return place
    raise FileNotFoundError(
        f"no lists of folds (train00.csv, test00.csv, ...) in {root}, nor in {REPOSITORY}/data below the metadata root "
        f"(--metadata-root, ${ENVIRONMENT}). Copy the folder data of github.com/music-x-lab/{REPOSITORY} there."
    )


def _songs(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; put all lists of the repository {REPOSITORY} there")
    ids = UniqueIds()
    songs = []
    for line in read_lines(path, max_lines=MAX_SONGS):
        song = identifier(line.text.strip(), line.where, SONG)
        ids.add(song, line.where)
        songs.append(song)
    return songs


# Lists of MARBLE v2 ------------------------------------------------------------------------------------------


def _of_jsonl(root: Path) -> Iterator[LabTrack]:
    ids = UniqueIds()
    for record in read_lists(root, "Chords1217"):
        path = record.audio_path(root, "Chords1217")
        ids.add(path.stem, record.where)
        rows = []
        for i, item in enumerate(record.items("label")):
            here = f"{record.where}, chord {i}"
            if not isinstance(item, dict) or not isinstance(item.get("chord_str"), str):
                raise AnnotationError(
                    f"{here}: start_time, end_time and chord_str were expected, got {shown(str(item))}"
                )
            start, end = (seconds(str(item.get(name)), here) for name in ("start_time", "end_time"))
            rows.append((start, end, item["chord_str"], here))
        yield LabTrack(path.stem, path, record.split, rows=tuple(rows))
