"""Splits and labels of readers against the metadata files that jukemir published, where no other file asks them."""

import gzip
import json

import pytest

from audiation.datasets.gtzan import parse_split_lists, read_split_lists


def jukemir(official, name):
    path = official / "jukemir-metadata" / "metadata" / name
    if not path.is_file():
        pytest.skip(f"needs jukemir-metadata/metadata/{name} below the metadata root")
    return json.loads(gzip.decompress(path.read_bytes())).values()


def test_the_fault_filtered_split_of_gtzan_is_jukemirs(real_metadata):
    ours = {track_id: split for split, track_id in parse_split_lists(read_split_lists([], real_metadata))}
    theirs = jukemir(real_metadata, "gtzan_ff.json.gz")
    assert ours == {t["extra"]["id"]: t["split"] for t in theirs}
    assert [list(ours.values()).count(s) for s in ("train", "valid", "test")] == [443, 197, 290]
    assert all(t["y"] == t["extra"]["id"].partition(".")[0] for t in theirs)
