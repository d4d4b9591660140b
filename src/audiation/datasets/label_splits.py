"""Splits of labelled recordings where none are given: by group, stratified, the same for a seed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from audiation.datasets.base import SPLITS
from audiation.datasets.label_files import Kind, LabelError, Listing, Row

SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}  # of splits that are made here
SHARES_OF_TRAIN = {"train": 0.85, "valid": 0.15}  # where splits are given, but none to validate on


def make_splits(source: Path, listing: Listing, usable: list[Row], seed: int) -> tuple[dict[str, str], str]:
    """(track id -> split, how they were made)."""
    kind = listing.kind
    given = {row.split for row in listing.rows}
    by = "group" if any(row.group for row in usable) else "recording"
    if given == {""}:
        return _split(source, usable, SHARES, kind, seed), f"split 70/15/15 by {by}, seed {seed}"
    if "train" not in given:
        raise LabelError(
            f"{source}: no recording is in the training split, only in {', '.join(sorted(given))}. "
            "Give some rows the split train, or leave the splits out."
        )
    splits = {row.track_id: row.split for row in usable}
    if lost := [s for s in SPLITS if s in given and s not in splits.values()]:
        first = next(row.missing for row in listing.rows if row.split == lost[0])
        raise LabelError(f"{source}: no file of the split {lost[0]} can be used: {first}. Correct the paths.")
    if "valid" in given:
        return splits, "splits as given"
    train = [row for row in usable if row.split == "train"]
    return (
        splits | _split(source, train, SHARES_OF_TRAIN, kind, seed),
        f"splits as given, and validation is 15 % of training by {by}, seed {seed}",
    )


class _Group(NamedTuple):
    """Recordings that stay together. labels: how many of them have each."""

    track_ids: tuple[str, ...]
    labels: dict[str, int]


def _split(
    source: Path, rows: Sequence[Row], shares: Mapping[str, float], kind: Kind, seed: int
) -> dict[str, str]:
    """Track id -> split: iterative stratification (Sechidis et al. 2011) over groups.

    Label by label, the one with the fewest groups first: one group to training, then one to each other split that has
    none with that label, then each to the split that is furthest behind its share of the label. So a class with one
    group is in training, and one with a group for every split is in all of them, unless groups mix classes.
    """
    groups = _groups(rows, seed)
    of_label: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        for label in group.labels:
            of_label[label].append(index)
    least = least_tracks(kind)
    have: dict[str, Counter[str]] = {split: Counter() for split in shares}
    total = Counter(label for row in rows for label in row.labels or ("",))
    num_tracks: Counter[str] = Counter()
    home: dict[int, str] = {}

    def behind(split: str) -> float:
        return shares[split] * len(rows) - num_tracks[split]

    def put(index: int, split: str, sign: int = 1) -> None:
        home[index] = split
        num_tracks[split] += sign * len(groups[index].track_ids)
        for label, count in groups[index].labels.items():
            have[split][label] += sign * count

    def choice(label: str) -> str:
        lacking = [split for split in shares if have[split][label] < least]
        if "train" in lacking:
            return "train"
        if lacking:
            return max(lacking, key=behind)
        return max(shares, key=lambda s: (shares[s] * total[label] - have[s][label], behind(s)))

    for label in sorted(of_label, key=lambda name: (len(of_label[name]), name)):
        waiting = [i for i in of_label[label] if i not in home]
        for index in sorted(waiting, key=lambda i: -len(groups[i].track_ids)):
            put(index, choice(label))
    for label in sorted(of_label):  # where groups mix labels, others may have taken all of one's groups
        if not have["train"][label]:
            index = of_label[label][0]
            put(index, home[index], -1)
            put(index, "train")
    what = "groups" if any(row.group for row in rows) else "recordings"
    for split in shares:
        if num_tracks[split] < least:
            of = {"regression": "", "tags": " with one tag"}.get(kind, " of one class")
            raise LabelError(
                f"{source}: {len(groups)} {what} are too few to make {', '.join(shares)}: {split} would have "
                f"{num_tracks[split]} recordings. At least {least * len(shares)} {what}{of} are needed, or splits of "
                "your own."
            )
    return {track_id: home[i] for i, group in enumerate(groups) for track_id in group.track_ids}


def least_tracks(kind: Kind) -> int:
    """Recordings that a split needs for its score to be defined."""
    return 2 if kind == "regression" else 1


def _groups(rows: Sequence[Row], seed: int) -> list[_Group]:
    """In an order that is random and depends on the seed and the track ids alone."""
    members: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        members["group" if row.group else "track", row.group or row.track_id].append(row)
    groups = []
    for together in members.values():
        labels: dict[str, int] = {}
        for label in (label for row in together for label in row.labels or ("",)):
            labels[label] = labels.get(label, 0) + 1
        groups.append(_Group(tuple(sorted(row.track_id for row in together)), labels))
    return sorted(groups, key=lambda g: hashlib.sha256(f"{seed}\t{g.track_ids[0]}".encode()).digest())
