"""The official split lists of MTG-Jamendo and their tags; no audio is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from audiation.datasets.annotation_files import (
    MAX_SECONDS,
    AnnotationError,
    Line,
    identifier,
    lines_of,
    number,
    read_bytes,
    shown,
)
from audiation.datasets.base import SPLITS
from audiation.datasets.metadata import (
    ENVIRONMENT,
    MetadataFile,
    MetadataUnavailableError,
    read_metadata_file,
)

GENRES = tuple(
    """
    60s 70s 80s 90s acidjazz alternative alternativerock ambient atmospheric blues bluesrock bossanova breakbeat
    celtic chanson chillout choir classical classicrock club contemporary country dance darkambient darkwave
    deephouse disco downtempo drumnbass dub dubstep easylistening edm electronic electronica electropop ethno
    eurodance experimental folk funk fusion groove grunge hard hardrock hiphop house idm improvisation indie
    industrial instrumentalpop instrumentalrock jazz jazzfusion latin lounge medieval metal minimal newage
    newwave orchestral pop popfolk poprock postrock progressive psychedelic punkrock rap reggae rnb rock
    rocknroll singersongwriter soul soundtrack swing symphonic synthpop techno trance triphop world worldfusion
    """.split()
)
INSTRUMENTS = tuple(
    """
    accordion acousticbassguitar acousticguitar bass beat bell bongo brass cello clarinet classicalguitar
    computer doublebass drummachine drums electricguitar electricpiano flute guitar harmonica harp horn keyboard
    oboe orchestra organ pad percussion piano pipeorgan rhodes sampler saxophone strings synthesizer trombone
    trumpet viola violin voice
    """.split()
)
MOODS = tuple(
    """
    action adventure advertising background ballad calm children christmas commercial cool corporate dark deep
    documentary drama dramatic dream emotional energetic epic fast film fun funny game groovy happy heavy
    holiday hopeful inspiring love meditative melancholic melodic motivational movie nature party positive
    powerful relaxing retro romantic sad sexy slow soft soundscape space sport summer trailer travel upbeat
    uplifting
    """.split()
)
_TOP50 = {
    "genre": """
    alternative ambient atmospheric chillout classical dance downtempo easylistening electronic experimental folk
    funk hiphop house indie instrumentalpop jazz lounge metal newage orchestral pop popfolk poprock reggae rock
    soundtrack techno trance triphop world
    """,
    "instrument": """
    acousticguitar bass computer drummachine drums electricguitar electricpiano guitar keyboard piano strings
    synthesizer violin voice
    """,
    "mood/theme": "emotional energetic film happy relaxing",
}
TOP50_TAGS = tuple(f"{category}---{tag}" for category, tags in _TOP50.items() for tag in tags.split())

TAGS = {
    "mtg_top50": TOP50_TAGS,
    "mtg_genre": GENRES,
    "mtg_instrument": INSTRUMENTS,
    "mtg_moodtheme": MOODS,
}
"""Name of the data set -> its tags, alphabetical: those that the splits have (50, 87, 40, 56).

The unsplit files have 95 genres, 41 instruments and 59 moods (D9). Tags of the top 50 carry their category,
'genre---rock'; the others do not.
"""

_FILE_NAMES = {
    "mtg_top50": "top50tags",
    "mtg_genre": "genre",
    "mtg_instrument": "instrument",
    "mtg_moodtheme": "moodtheme",
}
_CATEGORIES = {"mtg_genre": "genre---", "mtg_instrument": "instrument---", "mtg_moodtheme": "mood/theme---"}
_LIST_NAMES = {"train": "train", "valid": "validation", "test": "test"}

_COMMIT = "1b4fa8c32e076c73b5175c1703ae805b4109309d"
REPOSITORY = "mtg-jamendo-dataset"


def _list(name: str, num_bytes: int, sha256: str) -> MetadataFile:
    path = f"data/splits/split-0/autotagging_{name}.tsv"
    url = f"https://raw.githubusercontent.com/MTG/{REPOSITORY}/{_COMMIT}/{path}"
    return MetadataFile(f"{REPOSITORY}/{path}", url, num_bytes, sha256)


# Of split 0. Sizes are as they are sent, with CRLF.
SPLIT_LISTS = {
    "mtg_top50": {
        "train": _list(
            "top50tags-train", 3742433, "20576661e365fe7d71cc852f6af9907e8b00028eb4cf356cc485875df519ec71"
        ),
        "valid": _list(
            "top50tags-validation",
            1368240,
            "33dc832f494b6fa27a30d5d2757b4fbbfd391c727ed80bb8e9596f59ac3c0fbd",
        ),
        "test": _list(
            "top50tags-test", 1349950, "a54553d0ec1d6dd8fe7571b1478195500e32f0ab5e2799cb4e62641ea4db3ea0"
        ),
    },
    "mtg_genre": {
        "train": _list(
            "genre-train", 3352194, "176179e248915a75a9a21f24b121a99fe9c9da06a90bc7e72454f2f02e7fbb2d"
        ),
        "valid": _list(
            "genre-validation", 1149174, "2adae08d0890b7d8c883e450839008a4d2de972376f1e4557e58136cf64d0f32"
        ),
        "test": _list(
            "genre-test", 1178477, "64a863d5cb7f1deb39d1cae90a9cd6dc86488bba56924c3b96962ef6289384b3"
        ),
    },
    "mtg_instrument": {
        "train": _list(
            "instrument-train", 1620241, "e9c89743779a8f477bfe70bcc0a0c675d45fb3c437925f4c78f6c5e46052ef9a"
        ),
        "valid": _list(
            "instrument-validation",
            739141,
            "43b1959e4f7ba6142646c3efe709406e6f45b8036cd2b255c286a97cbfd261e9",
        ),
        "test": _list(
            "instrument-test", 591244, "131ca59d74163441695edf3b926a01adb5703e6e4fa3e0f9f64b4f8c434d14fa"
        ),
    },
    "mtg_moodtheme": {
        "train": _list(
            "moodtheme-train", 994295, "da740502586bfc153bca4a8de0471955a488237119c2d026721057554358e68d"
        ),
        "valid": _list(
            "moodtheme-validation", 367846, "bc9e290997b10c64621d8e695dd176c6e5bf353009e5726b160030963a839df4"
        ),
        "test": _list(
            "moodtheme-test", 421306, "2fb85bdbb2f8b0198754ab7e28a40e16e895cb7f17b011c706fb00fe01e2e54f"
        ),
    },
}

COLUMNS = ("TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS")
MAX_BYTES, MAX_TRACKS = 1 << 25, 100_000  # the longest list has 3.7 MB and 32,136 tracks

SplitNumber = Literal["0", "1", "2", "3", "4"]


@dataclass(frozen=True)
class ListedTrack:
    """A row of a split list. path: of its recording, 'NN/ID.mp3'. tags: named as in `TAGS`."""

    track_id: str
    artist_id: str
    path: str
    split: str
    tags: tuple[str, ...]


def official_tracks(
    name: str, metadata_root: str | Path | None = None, split: SplitNumber = "0"
) -> list[ListedTrack]:
    """All rows of the official lists of a subset, in order: train, valid, test.

    Raises:
        KeyError: `name` is none of `TAGS`.
        others: as the data sets do.
    """
    if name not in TAGS:
        raise KeyError(f"'{name}' is no subset of MTG-Jamendo; these are: {', '.join(TAGS)}")
    return list(listed_tracks(name, read_split_lists(name, split, [], metadata_root)))


def official_split(
    name: str, metadata_root: str | Path | None = None, split: SplitNumber = "0"
) -> dict[str, list[str]]:
    """Split -> track ids of a subset; raises as `official_tracks`."""
    split_of: dict[str, list[str]] = {s: [] for s in SPLITS}
    for track in official_tracks(name, metadata_root, split):
        split_of[track.split].append(track.track_id)
    return split_of


# Reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitList:
    """where: the file it is from, for messages."""

    where: str
    content: bytes


def read_split_lists(
    name: str, split: SplitNumber, clones: Sequence[Path], metadata_root: str | Path | None
) -> dict[str, SplitList]:
    """The three lists of a subset: of the first clone that has any, else the official ones."""
    if split not in get_args(SplitNumber):
        raise ValueError(f"split is one of {', '.join(get_args(SplitNumber))}, got {split!r}")
    folder = f"data/splits/split-{split}"
    names = {s: f"autotagging_{_FILE_NAMES[name]}-{_LIST_NAMES[s]}.tsv" for s in SPLITS}
    metadata = metadata_root or os.environ.get(ENVIRONMENT)
    if split != "0" and metadata:  # no checksums known, so read as they are
        clones = [*clones, Path(metadata).expanduser() / REPOSITORY]
    for clone in clones:
        paths = {s: clone / folder / n for s, n in names.items()}
        missing = [p.name for p in paths.values() if not p.is_file()]
        if missing and len(missing) < len(paths):
            raise ValueError(f"{clone / folder} lacks {', '.join(missing)}; all three are needed, or none")
        if not missing:
            return {s: SplitList(str(p), read_bytes(p, MAX_BYTES)) for s, p in paths.items()}
    if split == "0":
        lists = SPLIT_LISTS[name]
        return {s: SplitList(f.path, read_metadata_file(f, metadata_root)) for s, f in lists.items()}
    looked_for = ", ".join(str(clone / folder) for clone in clones)
    raise MetadataUnavailableError(
        f"the lists of split {split} are not here (looked in {looked_for or 'no folder'}). Clone "
        f"github.com/MTG/{REPOSITORY} into the data folder, or into the folder of --metadata-root."
    )


def listed_tracks(name: str, lists: Mapping[str, SplitList]) -> Iterator[ListedTrack]:
    """The rows of the three lists, each checked: they become paths, and no recording may be there twice.

    Tags are the sixth and all following cells, so this is no table of equally long rows.
    """
    category = _CATEGORIES.get(name, "")
    tag_of = {category + tag: tag for tag in TAGS[name]}
    seen: dict[str, str] = {}
    for split, listed in lists.items():
        lines = lines_of(listed.content, listed.where, max_lines=MAX_TRACKS)
        if not lines or tuple(lines[0].text.split("\t")) != COLUMNS:
            found = shown(lines[0].text) if lines else "an empty file"
            raise AnnotationError(
                f"{listed.where}, line 1: the header {' '.join(COLUMNS)} (with tabs) was expected, got {found}"
            )
        for line in lines[1:]:
            track = _track(line, split, tag_of)
            if track.track_id in seen:
                raise AnnotationError(
                    f"{line.where}: {track.track_id} is listed already in {seen[track.track_id]}"
                )
            seen[track.track_id] = line.where
            yield track


def _track(line: Line, split: str, tag_of: Mapping[str, str]) -> ListedTrack:
    cells = line.text.split("\t")
    if len(cells) < len(COLUMNS):
        raise AnnotationError(f"{line.where}: at least {len(COLUMNS)} cells were expected, got {len(cells)}")
    track_id = identifier(cells[0], line.where, "track_[0-9]{7}")
    artist_id = identifier(cells[1], line.where, "artist_[0-9]{6}")
    identifier(cells[2], line.where, "album_[0-9]{6}")
    number(cells[4], line.where, at_least=0.0, at_most=MAX_SECONDS)
    jamendo_id = int(track_id.removeprefix("track_"))
    path = f"{jamendo_id % 100:02d}/{jamendo_id}.mp3"
    if cells[3] != path:
        raise AnnotationError(f"{line.where}: the path of {track_id} is {path}, got {shown(cells[3])}")
    for i, cell in enumerate(cells[5:], start=5):
        if cell not in tag_of:
            raise AnnotationError(
                f"{line.where}: {shown(cell)} is none of the {len(tag_of)} tags of this subset. Use the lists in "
                "data/splits: the unsplit files have more tags."
            )
        if cell in cells[5:i]:
            raise AnnotationError(f"{line.where}: tag {shown(cell)} is there twice")
    return ListedTrack(track_id, artist_id, path, split, tuple(tag_of[cell] for cell in cells[5:]))
