"""Contracts that every registered data set is held to, and the common part of `Dataset`."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from audiation.datasets import DATASETS, Dataset, DatasetInfo, Skipped, Track

PAGE = Path(__file__).parent.parent / "docs" / "datasets.md"


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_names_itself_and_says_what_a_user_must_know(name):
    kind = DATASETS[name]
    assert issubclass(kind, Dataset) and kind.name == name
    assert isinstance(kind.info, DatasetInfo)
    for field in dataclasses.fields(DatasetInfo):
        value = getattr(kind.info, field.name)
        if field.name == "downloads":
            assert all(d.url.startswith("https://") and not Path(d.path).is_absolute() for d in value)
            continue
        assert isinstance(value, bool) if field.name == "commercial_use" else len(value) > 5, field.name


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_made_from_a_root_and_keyword_options_with_defaults(name):
    root, *options = list(inspect.signature(DATASETS[name]).parameters.values())
    assert root.name == "root"
    assert "metadata_root" in [o.name for o in options]
    assert all(o.kind is o.KEYWORD_ONLY and o.default is not o.empty for o in options)


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_that_is_not_there_is_file_not_found_and_names_the_place(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    missing = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"{name}.*nowhere"):
        DATASETS[name](missing)
    assert not missing.exists() and not (tmp_path / "cache").exists()  # constructors only build


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_documented(name):
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


class Tiny(Dataset):
    name = "tiny"

    def __init__(self, *tracks, skipped=()):
        self.tracks, self.skipped = tracks, skipped


def track(track_id, split, group="", path="x.wav"):
    return Track(track_id, Path(path), split, group)


def test_splits_counts_and_hash():
    data = Tiny(track("a", "train"), track("b", "test"), track("c", "train"))
    assert [t.track_id for t in data.split("train")] == ["a", "c"]
    assert data.counts == {"train": 2, "valid": 0, "test": 1}
    assert data.split_hash == Tiny(*reversed(data.tracks)).split_hash
    moved = Tiny(track("a", "train"), track("b", "test"), track("c", "valid"))
    assert data.split_hash != moved.split_hash
    with pytest.raises(ValueError, match="train, valid, test, got 'validation'"):
        data.split("validation")


def test_a_group_may_not_be_in_two_splits():
    Tiny(
        track("a", "train", "tune"), track("b", "train", "tune"), track("c", "test"), track("d", "train")
    ).check_groups()
    with pytest.raises(ValueError, match="group 'tune' is in 'train' and 'test'"):
        Tiny(track("a", "train", "tune"), track("b", "test", "tune")).check_groups()


def test_verify_names_what_is_missing_and_what_was_skipped(tmp_path):
    (tmp_path / "here.wav").write_bytes(b"")
    data = Tiny(
        track("a", "train", path=tmp_path / "here.wav"),
        track("b", "test", path=tmp_path / "gone.wav"),
        skipped=(Skipped("c", "not audio", "train"),),
    )
    assert data.verify() == [f"b: {tmp_path / 'gone.wav'} is missing", "c: not audio"]
