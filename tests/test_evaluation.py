"""A run from end to end on a GTZAN folder made of sines: genre k sounds at its own pitch."""

import dataclasses

import numpy as np
import pytest
import soundfile

from audiation.evaluation import EvaluationProgress, Run, evaluate, load_splits
from audiation.results import Result
from audiation.tasks import TASKS

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
LISTS = {"train": range(2), "valid": range(2, 4), "test": range(4, 6)}
RUN = Run("chroma", "gtzan_genre")


@pytest.fixture(scope="module")
def gtzan(tmp_path_factory):
    """Data root with 6 clips per genre, 2 in each split; one listed test file is text."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    names = {split: [] for split in LISTS}
    for k, genre in enumerate(GENRES):
        folder = root / "gtzan" / "genres" / genre
        folder.mkdir(parents=True)
        for split, numbers in LISTS.items():
            for n in numbers:
                name = f"{genre}.{n:05}.wav"
                names[split].append(f"{genre}/{name}")
                time = np.arange(16000 + 500 * n) / 22050
                tone = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (k / 12) * time)
                soundfile.write(folder / name, tone + 0.01 * rng.standard_normal(len(time)), 22050)
    (root / "gtzan" / "genres" / "rock" / "rock.00005.wav").write_text("not audio")
    for split, lines in names.items():
        (root / "gtzan" / f"{split}_filtered.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def places(gtzan, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_METADATA_ROOT", raising=False)
    return {"data_root": gtzan, "store_dir": tmp_path / "store"}


def test_separable_genres_are_learned_and_the_bad_file_counts_against_coverage(places):
    seen: list[EvaluationProgress] = []
    result = evaluate(RUN, progress=seen.append, **places)
    assert result.scores == {"accuracy": 1.0, "accuracy_class_macro": 1.0}
    assert result.run["metrics"] == ["accuracy@1", "accuracy_class_macro@1"]
    assert (result.num_test_tracks, result.num_official_test_tracks) == (19, 20)
    assert result.coverage == 0.95
    assert [f.track_id for f in result.failures] == ["rock.00005"]
    assert result.run["layer"] == 0 and "librosa" in result.run["weights_hash"]
    assert {s.stage for s in seen} == {"data", "features", "probe", "test"}


def test_a_bad_training_file_is_told_in_the_result(places, gtzan, impatient):
    path = gtzan / "gtzan" / "genres" / "pop" / "pop.00000.wav"
    whole = path.read_bytes()
    try:
        soundfile.write(path, np.full(16000, np.nan), 22050, subtype="FLOAT")
        result = evaluate(RUN, **places)
    finally:
        path.write_bytes(whole)
    assert [(f.track_id, f.split) for f in result.failures] == [
        ("pop.00000", "train"),
        ("rock.00005", "test"),
    ]
    assert (result.num_test_tracks, result.coverage) == (19, 0.95)


def test_a_genre_without_training_tracks_is_refused_before_anything_is_extracted(places, gtzan):
    for number in LISTS["train"]:
        path = gtzan / "gtzan" / "genres" / "jazz" / f"jazz.{number:05}.wav"
        path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match="no example of jazz"):
            evaluate(RUN, **places)
    finally:
        for path in (gtzan / "gtzan" / "genres" / "jazz").glob("*.away"):
            path.rename(path.with_suffix(".wav"))
    assert not places["store_dir"].exists()


@pytest.mark.parametrize(
    "edit", [{"seed": "x"}, {"seed": None}, {"seed": -1}, {"layer": 1.5}, {"num_layers": "3"}, {"weights": 3}]
)
def test_a_run_that_somebody_edited(edit):
    with pytest.raises(ValueError, match=f"{next(iter(edit))} of a run is"):
        Run(**{**dataclasses.asdict(RUN), **edit})


def test_a_stored_result_repeats_itself(places, tmp_path, impatient):
    first = evaluate(RUN, **places)
    first.save(tmp_path / "result.json")
    again = evaluate(Run.of(Result.load(tmp_path / "result.json")), **places)
    assert again.scores == first.scores
    assert again.predictions == first.predictions
    assert again.split_hash == first.split_hash
    assert (
        again.run == first.run | {"layer": 0, "features_from_store": 59}
        and first.run["features_from_store"] == 0
    )


def test_another_seed_is_another_run(places):
    assert RUN.key != dataclasses.replace(RUN, seed=1).key
    assert RUN.key == Run("chroma", "gtzan_genre").key


def test_a_backbone_with_blocks_and_random_weights(places, impatient):
    run = Run("mert-v1-95m", "gtzan_genre", weights="random", num_layers=1)
    result = evaluate(run, **places)
    assert result.run["layer"] == 1
    assert result.run["weights_source"] == "random:seed=0"
    assert result.run["chunk_policy"] == "chunk5s"
    assert 0 <= result.scores["accuracy"] <= 1


def test_splits_hash_changes_with_the_split(places, gtzan):
    splits, before = load_splits(TASKS["gtzan_genre"], gtzan)
    assert [len(splits[s].tracks) for s in ("train", "valid", "test")] == [20, 20, 19]
    listing = gtzan / "gtzan" / "valid_filtered.txt"
    text = listing.read_text()
    try:
        listing.write_text("\n".join(text.split()[:-1]) + "\n")
        _, after = load_splits(TASKS["gtzan_genre"], gtzan)
    finally:
        listing.write_text(text)
    assert before != after


def test_missing_data_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="gtzan not found"):
        evaluate(RUN, data_root=tmp_path)


def test_layer_that_does_not_exist(places):
    with pytest.raises(ValueError, match=r"layers 0\.\.0, got 3"):
        evaluate(dataclasses.replace(RUN, layer=3), **places)


ADAPTED = Run(
    "musicfm-mini", "gtzan_genre", "lora", "petl", weights="random", num_layers=1,
    train="steps=6,precision=fp32,validate_every_steps=3,batch_size=8",
)  # fmt: skip


def test_an_adapted_backbone_is_judged_like_any_other_and_repeats_itself(places, tmp_path):
    seen: list[EvaluationProgress] = []
    result = evaluate(ADAPTED, progress=seen.append, **places)
    assert (result.num_test_tracks, result.num_official_test_tracks) == (19, 20)
    assert [(f.track_id, f.split) for f in result.failures] == [("rock.00005", "test")]
    assert result.run["method_parameters"] == 8448 and result.departures
    assert result.num_parameters == 8448 + 128 * 128 + 128 + 128 * 10 + 10
    assert result.run["frozen_mode"] == "eval" and "is kept" in result.run["caching"]
    assert result.run["config"]["steps"] == 6 and result.run["layer"] == 1
    assert {s.stage for s in seen} == {"data", "training", "test"}
    result.save(tmp_path / "result.json")
    again = evaluate(Run.of(Result.load(tmp_path / "result.json")), **places)
    assert again.scores == result.scores and again.predictions == result.predictions
    assert not any((tmp_path / "cache" / "runs").iterdir())  # checkpoints go when the result is there


def test_a_probe_under_the_petl_protocol_trains_only_the_head(places):
    result = evaluate(dataclasses.replace(ADAPTED, method="probe"), **places)
    assert result.run["method_parameters"] == 0 and "pooled layer 1 is kept" in result.run["caching"]


def test_protocols_refuse_what_they_have_no_place_for(places):
    with pytest.raises(
        ValueError,
        match=r"changes the features\. Use method 'probe', or a protocol that adapts: marble-unconstrained, ",
    ):
        evaluate(dataclasses.replace(ADAPTED, protocol="jukemir-single", train=""), **places)
    with pytest.raises(ValueError, match="train has no field 'steps'"):
        evaluate(dataclasses.replace(RUN, train="steps=3"), **places)
    with pytest.raises(ValueError, match="no field 'step'"):
        evaluate(dataclasses.replace(ADAPTED, train="step=3"), **places)
    with pytest.raises(ValueError, match="no encoder to adapt"):
        evaluate(dataclasses.replace(RUN, method="lora", protocol="petl"), **places)
    with pytest.raises(ValueError, match="rounded to bf16"):
        evaluate(dataclasses.replace(ADAPTED, precision="bf16"), **places)


@pytest.mark.parametrize(
    "choices",
    [
        {"protocol": "marble-constrained", "train": "max_epochs=1,patience=1"},
        {"protocol": "marble-weighted-sum", "train": "max_epochs=1"},
        {"protocol": "jukemir-single", "train": "patience=1,layer=0"},
        {"protocol": "marble-v2", "train": "max_epochs=1"},
    ],
    ids=["searched", "weighted sum", "named in train", "one layer"],
)
def test_a_run_that_chose_its_layer_is_the_same_run_when_repeated(places, choices):
    run = Run("musicfm-mini", "gtzan_genre", weights="random", num_layers=2, **choices)
    result = Result.from_json(evaluate(run, **places).to_json())
    again = Run.of(result)
    assert again == run or again == dataclasses.replace(
        run, layer=2
    )  # the one layer of a protocol is written out
    assert (again.layer is None) == (run.protocol != "marble-v2")
    repeated = evaluate(again, **places)
    assert repeated.scores == result.scores and len(repeated.trials) == len(result.trials)
    assert repeated.departures == result.departures
