"""NSynth: 305,979 single notes of 4 s, with the pitch and the family of the instrument.

Source: Engel et al. 2017. Split as released, 289,205 / 12,678 / 4,096 notes. The instruments of training are not in
validation and test; these two share theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from audiation.annotations import Label, Pitch
from audiation.datasets.annotation_files import AnnotationError, identifier, read_bytes, shown
from audiation.datasets.base import DATASETS, SPLITS, Dataset, DatasetInfo, Download, Track, keep_present

FAMILIES = (
    "bass",
    "brass",
    "flute",
    "guitar",
    "keyboard",
    "mallet",
    "organ",
    "reed",
    "string",
    "synth_lead",
    "vocal",
)
"""The eleven families in the order of `instrument_family`. synth_lead is said to occur in training only."""

OFFICIAL_COUNTS = {"train": 289_205, "valid": 12_678, "test": 4_096}

NOTE = rf"({'|'.join(FAMILIES)})_(acoustic|electronic|synthetic)_[0-9]{{3}}-[0-9]{{3}}-[0-9]{{3}}"
MAX_LIST_BYTES = 1 << 29  # examples.json of training has about 150 MB
_PLACE = "https://storage.googleapis.com/download.magenta.tensorflow.org/datasets/nsynth"


@dataclass(frozen=True)
class NsynthTrack(Track):
    """One note. track_id: 'bass_synthetic_033-022-050': instrument, MIDI pitch, velocity.

    Annotations are read off the name; the reader has checked that `examples.json` says the same.
    """

    @property
    def pitch(self) -> Pitch:
        return Pitch(int(self.track_id.rsplit("-", 2)[1]))

    @property
    def instrument(self) -> Label:
        """One of `FAMILIES`."""
        return Label(self.track_id.rsplit("_", 2)[0])

    @property
    def velocity(self) -> int:
        """MIDI velocity, 25 to 127."""
        return int(self.track_id.rsplit("-", 1)[1])


@DATASETS.register("nsynth")
class Nsynth(Dataset):
    """NSynth as its three archives unpack: `nsynth-<split>/examples.json` and `nsynth-<split>/audio/<note>.wav`.

    Pitch is the MIDI number (D20: the released code of MARBLE subtracts 1 or 9 from it; accuracy is the same).

    Args:
        root: the folder with `nsynth-train`, `nsynth-valid` and `nsynth-test`.
        metadata_root: not used; the lists come with the audio.

    Raises:
        FileNotFoundError: one of the three folders is missing, or no audio is there.
        AnnotationError: an `examples.json` that does not say what the names of its notes say, or with an instrument
            of training in validation or test. Names file and line.

    Warns:
        UserWarning: listed notes are missing; `skipped` has each of them.
    """

    name = "nsynth"
    folders = ("NSynth",)
    info = DatasetInfo(
        title="NSynth: single notes of 1,006 instruments",
        where="magenta.tensorflow.org/datasets/nsynth, the three json/wav archives",
        size="305,979 notes of 4 s at 16 kHz, 39 GB unpacked",
        licence="CC BY 4.0",
        commercial_use=True,
        citation="J. Engel et al.: Neural audio synthesis of musical notes with WaveNet autoencoders, ICML 2017",
        downloads=tuple(
            Download(f"{_PLACE}/nsynth-{split}.jsonwav.tar.gz", f"nsynth-{split}.jsonwav.tar.gz", unpack=True)
            for split in SPLITS
        ),
    )

    def __init__(self, root: str | Path, *, metadata_root: str | Path | None = None) -> None:
        folders = {split: Path(root) / f"nsynth-{split}" for split in SPLITS}
        for folder in folders.values():
            if not (folder / "examples.json").is_file():
                raise FileNotFoundError(
                    f"nsynth not found at {root} (looked for {folder.name}/examples.json). "
                    "docs/datasets/nsynth.md says where to get it."
                )
        notes = {split: _notes(folder / "examples.json") for split, folder in folders.items()}
        _check_instruments(notes, folders)
        present = keep_present(self.name, _listed(notes, folders))
        self.tracks, self.skipped = present.tracks, present.skipped
        self._num_listed = {split: len(ids) for split, ids in notes.items()}

    def verify(self) -> list[str]:
        return super().verify() + [
            f"nsynth-{split}/examples.json lists {found} notes, the official one {OFFICIAL_COUNTS[split]}"
            for split, found in self._num_listed.items()
            if found != OFFICIAL_COUNTS[split]
        ]


def _listed(notes: dict[str, list[str]], folders: dict[str, Path]) -> Iterator[Track]:
    for split, note_strs in notes.items():
        audio = folders[split] / "audio"
        for note_str in note_strs:
            yield NsynthTrack(note_str, audio / f"{note_str}.wav", split)


def _instrument(note_str: str) -> str:
    return note_str.rsplit("-", 2)[0]


def _check_instruments(notes: dict[str, list[str]], folders: dict[str, Path]) -> None:
    """Said here and not by `Track.group`, because validation and test share instruments."""
    learned = {_instrument(note) for note in notes["train"]}
    for split in ("valid", "test"):
        for note in notes[split]:
            if _instrument(note) in learned:
                raise AnnotationError(
                    f"{_where(folders[split] / 'examples.json', note)}: the instrument {_instrument(note)} is in "
                    "nsynth-train too; the official splits share none with it. Unpack the archives again."
                )


# examples.json -----------------------------------------------------------------------------------------------


class _Fields(NamedTuple):
    """What is kept of a note while the file is read: 290,000 whole records would fill 600 MB."""

    note_str: Any
    pitch: Any
    family: Any
    family_name: Any


def _notes(path: Path) -> list[str]:
    """The notes of a list, in its order, each checked against its name."""
    records = _parse(read_bytes(path, MAX_LIST_BYTES), str(path))
    if not isinstance(records, dict) or not records:
        raise AnnotationError(f"{path}, line 1: an object with a record per note was expected")
    pattern = re.compile(NOTE, re.ASCII)
    for note, fields in records.items():
        found = pattern.fullmatch(note)
        if found is None:
            identifier(note, _where(path, note), NOTE)  # raises
        elif type(fields) is not _Fields or fields.note_str != note:
            raise AnnotationError(f"{_where(path, note)}: a record with note_str {shown(note)} was expected")
        elif type(fields.pitch) is not int or fields.pitch != int(note[-7:-4]) or fields.pitch > 127:
            raise AnnotationError(
                f"{_where(path, note)}: the pitch of {note} is the MIDI number {note[-7:-4]} of its name, from 0 to "
                f"127, got {shown(str(fields.pitch))}"
            )
        elif (
            type(fields.family) is not int
            or fields.family_name != found[1]
            or fields.family != FAMILIES.index(found[1])
        ):
            raise AnnotationError(
                f"{_where(path, note)}: the instrument_family of {note} is {FAMILIES.index(found[1])} ({found[1]}), "
                f"got {shown(str(fields.family))} ({shown(str(fields.family_name))})"
            )
    return list(records)


def _parse(content: bytes, name: str) -> Any:
    """As `annotation_files.parse_json`, with records reduced to `_Fields` on the way and no name given twice."""

    def reduced(pairs: list[tuple[str, Any]]) -> Any:
        record = dict(pairs)
        if len(record) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            note = record.get("note_str")
            where = _line(content, note if isinstance(note, str) else twice, name)
            raise AnnotationError(f"{where}: {shown(twice)} is there twice")
        if "note_str" not in record:
            return record
        wanted = ("note_str", "pitch", "instrument_family", "instrument_family_str")
        return _Fields(*(record.get(field) for field in wanted))

    def refuse(constant: str) -> Any:
        line = content[: max(content.find(constant.encode()), 0)].count(b"\n") + 1
        raise AnnotationError(f"{name}, line {line}: {constant} is not a number that JSON has")

    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=reduced, parse_constant=refuse)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{name}, line {line}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{name}, line {error.lineno}: not JSON ({error.msg})") from None
    except AnnotationError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise AnnotationError(f"{name}: {error}") from None
    except RecursionError:
        raise AnnotationError(f"{name}: nested too deeply") from None


def _where(path: Path, note: str) -> str:
    """File and line of a note; read again, so that the file need not be kept."""
    return _line(read_bytes(path, MAX_LIST_BYTES), note, str(path))


def _line(content: bytes, key: str, name: str) -> str:
    line = content[: max(content.find(json.dumps(key).encode()), 0)].count(b"\n") + 1
    return f"{name}, line {line}"
