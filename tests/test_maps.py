import dataclasses
import sys

import numpy as np
import pytest
import torch

from audiation import maps
from audiation.annotations import Emotion, Key, Label, Tags, Tempo, Values
from audiation.datasets import Track
from audiation.maps import ClipMap, clip_maps, project
from audiation.registry import UnknownNameError
from audiation.run import Run
from audiation.stored_vectors import SplitVectors
from audiation.tasks import TASKS


def cloud(num_clips, num_dims, seed=0):
    """Clips that vary most along one direction, less along another, little along the rest."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.full((num_dims,), 0.1, dtype=torch.float64)
    spread[:2] = torch.tensor([3.0, 1.5], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(num_dims, num_dims, generator=generator, dtype=torch.float64))[0]
    return (torch.randn(num_clips, num_dims, generator=generator, dtype=torch.float64) * spread) @ turn


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_pca_is_the_decomposition_of_the_standardised_training_clips(shape):
    train, test = cloud(*shape), cloud(9, shape[1], seed=1)
    found = project(train, test)
    x = train.numpy()
    mean, deviation = x.mean(0), x.std(0)
    u, s, vt = np.linalg.svd((x - mean) / deviation, full_matrices=False)
    signs = np.sign(vt[:2][np.arange(2), np.abs(vt[:2]).argmax(1)])
    np.testing.assert_allclose(found.train_xy, u[:, :2] * s[:2] * signs, atol=1e-8)
    np.testing.assert_allclose(
        found.test_xy, ((test.numpy() - mean) / deviation) @ (vt[:2].T * signs), atol=1e-8
    )
    shares = 100 * s[:2] ** 2 / (s**2).sum()
    assert (
        found.explained
        == f"PCA of standardised features: {shares[0]:.0f} % + {shares[1]:.0f} % of the variance"
    )


def test_a_projection_knows_the_training_clips_only():
    train = cloud(30, 5)
    alone = project(train, torch.zeros(0, 5))
    beside = project(train, 1000 * torch.ones(3, 5))
    assert alone.test_xy.shape == (0, 2) and beside.test_xy.shape == (3, 2)
    np.testing.assert_array_equal(alone.train_xy, beside.train_xy)
    # A clip lands in one place, whichever split it comes from; in a matrix of another size the last bits may differ.
    np.testing.assert_allclose(project(train, train[:4]).test_xy, alone.train_xy[:4], atol=1e-12)


def test_float32_features_of_any_scale_are_projected_in_float64():
    train = cloud(30, 5).float()
    scaled = train * torch.tensor([1e-6, 1.0, 1e6, 3.0, 0.5])
    np.testing.assert_allclose(
        project(scaled, scaled).train_xy, project(train, train).train_xy, rtol=1e-4, atol=1e-4
    )
    assert project(train, train).train_xy.dtype == np.float64


def test_directions_that_do_not_exist_are_zero():
    line = torch.linspace(0, 1, 7, dtype=torch.float64).unsqueeze(1)
    one_dimension = project(line, line)
    assert one_dimension.explained.endswith("100 % + 0 % of the variance")
    np.testing.assert_array_equal(one_dimension.train_xy[:, 1], 0)
    on_a_line = project(torch.cat([line, 2 * line, torch.ones_like(line)], 1), torch.cat([line] * 3, 1))
    assert on_a_line.explained.endswith("100 % + 0 % of the variance")
    np.testing.assert_array_equal(on_a_line.train_xy[:, 1], 0)
    same = project(torch.ones(4, 3), torch.ones(2, 3))
    np.testing.assert_array_equal(same.train_xy, np.zeros((4, 2)))
    assert same.explained.endswith("0 % + 0 % of the variance")


@pytest.mark.parametrize(
    "train, test, method, message",
    [
        (torch.ones(4, 3), torch.ones(4, 2), "pca", r"\(4, 3\), \(4, 2\)"),
        (torch.ones(4), torch.ones(4), "pca", r"needs features \(N, D\)"),
        (torch.ones(1, 3), torch.ones(4, 3), "pca", "fitted on 2 clips or more, got 1"),
        (torch.ones(3, 3), torch.ones(4, 3), "umap", "fitted on 4 clips or more, got 3"),
        (torch.ones(4, 3), torch.ones(4, 3), "tsne", "one of pca, umap, got 'tsne'"),
        (torch.full((4, 3), torch.nan), torch.ones(4, 3), "pca", "the train features hold NaN"),
        (torch.ones(4, 3), torch.full((4, 3), torch.inf), "pca", "the test features hold NaN"),
    ],
)
def test_what_cannot_be_projected_is_refused(train, test, method, message):
    with pytest.raises(ValueError, match=message):
        project(train, test, method)


def test_umap_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"pip install 'audiation\[maps\]'"):
        project(cloud(10, 4), cloud(3, 4), "umap")


def test_umap_is_fitted_on_training_clips_and_transforms_the_others(monkeypatch):
    calls = []

    class Stand:
        def __init__(self, **options):
            calls.append(options)

        def fit_transform(self, x):
            calls.append(("fit", x.shape, x.dtype))
            return x[:, :2]

        def transform(self, x):
            calls.append(("transform", x.shape, x.dtype))
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", type(sys)("umap"))
    sys.modules["umap"].UMAP = Stand
    found = project(cloud(10, 4), cloud(3, 4), "umap")
    assert calls == [
        {"n_components": 2, "n_neighbors": 9, "random_state": 0, "n_jobs": 1},
        ("fit", (10, 4), np.float32),
        ("transform", (3, 4), np.float32),
    ]
    assert found.train_xy.shape == (10, 2) and found.test_xy.shape == (3, 2)
    assert found.explained.startswith("UMAP of standardised features, 9 neighbours")


def test_the_real_umap_keeps_groups_apart_and_repeats_itself():
    pytest.importorskip("umap")
    train = torch.cat([cloud(30, 6), cloud(30, 6) + 40])
    first, second = (project(train, train[:1] + 0.01, "umap") for _ in range(2))
    np.testing.assert_array_equal(first.train_xy, second.train_xy)
    near, far = first.train_xy[:30].mean(0), first.train_xy[30:].mean(0)
    assert np.linalg.norm(first.test_xy[0] - near) < np.linalg.norm(first.test_xy[0] - far)


# Maps of a run --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Labelled(Track):
    timbre: Label | None = None


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """Two layers of features of 5 + 3 recordings; the second of training has two windows, the last of test none."""
    (tmp_path / "train-0.wav").write_bytes(b"RIFF")
    seen = {}

    def tracks(split, names):
        return tuple(
            Labelled(f"{split}-{i}", tmp_path / f"{split}-{i}.wav", split, timbre=Label(name))
            for i, name in enumerate(names)
        )

    def read(run, **options):
        seen.update(options, run=run)
        owners = {"train": [0, 1, 1, 2, 3, 4], "test": [0, 1], "valid": []}
        members = {
            "train": tracks("train", ["flute", "organ", "flute", "organ", "flute"]),
            "test": tracks("test", ["organ", "flute", "organ"]),
            "valid": (),
        }
        generator = torch.Generator().manual_seed(3)
        return {
            name: SplitVectors(
                members[name],
                {i: torch.randn(len(owner), 4, generator=generator) for i in options["layers"]},
                torch.tensor(owner, dtype=torch.int64),
                (("test-2", "too short"),) if name == "test" else (),
            )
            for name, owner in owners.items()
        }

    monkeypatch.setattr(maps, "read_splits", read)
    seen["read"] = read
    return seen


def test_one_map_per_layer_with_a_point_per_recording(stored, tmp_path):
    run = Run(backbone="mert-v0", task="scores-timbre", num_layers=1)
    found = clip_maps(run, data_root=tmp_path)
    assert stored["layers"] == (0, 1) and stored["data_root"] == tmp_path and stored["run"] == run
    assert [m.layer for m in found] == [0, 1]
    first = found[0]
    assert first.title == "scores-timbre: mert-v0, layer 0"
    assert first.track_ids == (*(f"train-{i}" for i in range(5)), "test-0", "test-1")
    assert first.splits == ("train",) * 5 + ("test",) * 2
    assert first.labels == ("flute", "organ", "flute", "organ", "flute", "organ", "flute")
    assert first.audio_paths == (str(tmp_path / "train-0.wav"), *[None] * 6)
    assert first.explained.endswith("of the variance; 1 recordings without features are left out")
    splits = stored["read"](run, layers=(0, 1))
    windows = splits["train"].vectors[0]
    means = torch.stack([windows[0], windows[1:3].mean(0), *windows[3:]])
    expected = project(means, splits["test"].vectors[0])
    np.testing.assert_allclose(
        first.points, np.concatenate([expected.train_xy, expected.test_xy]), rtol=0, atol=1e-6
    )
    assert first.points != found[1].points


def test_layers_are_those_asked_for_else_that_of_the_run(stored):
    assert [m.layer for m in clip_maps(Run(backbone="mert-v0", task="scores-timbre", layer=4))] == [4]
    assert [m.layer for m in clip_maps(Run(backbone="mert-v0", task="scores-timbre"), layers=[7, 2])] == [
        2,
        7,
    ]
    assert len(clip_maps(Run(backbone="chroma", task="scores-timbre"))) == 1


def test_tasks_of_frames_have_no_map(stored):
    for task in ("scores-beats", "musdb18"):
        with pytest.raises(ValueError, match="answered for every frame"):
            clip_maps(Run(backbone="mert-v0", task=task))
    with pytest.raises(UnknownNameError):
        clip_maps(Run(backbone="mert-v0", task="no-such-task"))
    assert "read" in stored and "run" not in stored  # nothing was read


def test_every_task_with_one_answer_per_clip_has_a_map_by_its_kind_of_label():
    kinds = {type(t.target).__name__ for t in map(TASKS.__getitem__, TASKS) if not t.target.per_frame}
    assert kinds - {"MagnitudeTarget"} == {
        "ClassTarget", "EmotionTarget", "KeyTarget", "PitchTarget", "TagsTarget", "TempoTarget",
    }  # fmt: skip


def test_labels_of_classes_are_their_text():
    label_of = maps._labelling([Key(0, "major")])
    assert label_of(Key(9, "minor")) == "A minor" and label_of(None) == "(none)"


def test_of_tags_the_most_frequent_is_the_label():
    def tags(*present):
        return Tags({t: float(t in present) for t in ("guitar", "piano", "voice")})

    label_of = maps._labelling(
        [tags("piano"), tags("piano", "guitar"), tags("guitar", "piano"), tags("voice")]
    )
    assert label_of(tags("guitar", "piano", "voice")) == "piano"
    assert label_of(tags("voice", "guitar")) == "guitar"
    assert label_of(tags()) == "(none)"


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda v: Tempo(v), "BPM"),
        (lambda v: Emotion(arousal=v, valence=0.0), "arousal"),
        (lambda v: Values({"year": v, "other": 0.0}), "year"),
    ],
)
def test_numbers_are_labelled_by_their_quarter_of_the_training_split(make, name):
    label_of = maps._labelling([make(float(v)) for v in (100, 110, 120, 130, 140)])
    assert label_of(make(90.0)) == f"{name} to 110"
    assert label_of(make(115.0)) == f"{name} 110 to 120"
    assert label_of(make(125.0)) == f"{name} 120 to 130"
    assert label_of(make(500.0)) == f"{name} over 130"


def test_a_map_with_lists_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match="1 points, 0 labels"):
        ClipMap("t", "pca", 0, ((0.0, 0.0),), (), ("a",), (None,), ("train",), "")
