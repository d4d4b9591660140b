"""Backbone cards: they agree with the models and with what was published, and say what nobody knows."""

import dataclasses
import json
from importlib.resources import files

import pytest

from audiation.backbones import BACKBONES
from audiation.backbones.base import Pretraining
from audiation.cards import CORPORA, UNKNOWN, Exposure, card_of, check_datasets, exposure, seen_in_pretraining
from audiation.datasets import DATASETS
from audiation.registry import UnknownNameError
from audiation.tasks import TASKS

SMALL = ("musicfm-mini", "chroma", "mfcc", "chroma-frames", "short-chunk-cnn", "genre-cnn", "tempo-cnn")


def text_of(card, label):
    (text,) = (line.text for line in card.lines() if line.label == label)
    return text


def variant(monkeypatch, **changes):
    """musicfm-msd as if its file said something else."""
    BACKBONES["musicfm-msd"]
    monkeypatch.setitem(
        BACKBONES._entries, "musicfm-msd", dataclasses.replace(BACKBONES["musicfm-msd"], **changes)
    )


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_has_a_card_without_weights(name, monkeypatch):
    spec = BACKBONES[name]
    if spec.outline is not None:  # then nothing is drawn
        monkeypatch.setitem(BACKBONES._entries, name, dataclasses.replace(spec, build=None))
        assert all(p.is_meta for p in spec.outline().parameters())
    card = card_of(name)
    assert card.name == name and card.dim > 0 and card.num_layers >= 0
    assert card.gives_frames == (card.frame_rate_hz is not None)
    assert all(line.text for line in card.lines())


@pytest.mark.parametrize("name", SMALL)
def test_sizes_are_those_of_the_model(name):
    card, model = card_of(name), BACKBONES[name].build()
    assert (card.dim, card.num_layers, card.frame_rate_hz) == (
        model.dim,
        model.num_layers,
        model.frame_rate_hz,
    )
    assert (card.context_seconds, card.sample_rate_hz) == (model.max_seconds, model.sample_rate_hz)
    assert card.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["musicfm-msd", "mert-v1-95m", "mert-v1-330m"])
def test_the_outline_is_of_published_size(name):
    spec = BACKBONES[name]
    model = spec.outline()
    counted = sum(p.numel() for p in model.parameters())
    # The rest are tensors of the checkpoint that no forward pass reads.
    assert 0.96 * spec.published_parameters < counted <= spec.published_parameters
    assert card_of(name).parameters == spec.published_parameters


def test_facts_of_the_published_models():
    msd, fma, small, large = (
        card_of(n) for n in ("musicfm-msd", "musicfm-fma", "mert-v1-95m", "mert-v1-330m")
    )
    assert (msd.pretrain_datasets, msd.context_seconds, msd.frame_rate_hz) == (("msd",), 30.0, 25.0)
    assert (msd.num_layers, msd.dim, msd.commercial_use) == (12, 1024, True)
    assert msd.pretrain_hours is None and text_of(msd, "hours of it") == UNKNOWN
    assert fma.pretrain_datasets == ("fma",) and fma.pretrain_hours is None
    assert (large.num_layers, large.dim, large.frame_rate_hz) == (24, 1024, 75.0)
    assert (small.context_seconds, small.weights_licence, small.commercial_use) == (
        5.0,
        "CC-BY-NC-4.0",
        False,
    )
    hours = {n: card_of(n).pretrain_hours for n in BACKBONES if n.startswith("mert")}
    assert hours == {"mert-v0": 1_000, "mert-v0-public": 910, "mert-v1-95m": 17_000, "mert-v1-330m": 160_000}
    assert "sources disagree" in small.pretrain_data
    assert not card_of("mfcc").gives_frames and text_of(card_of("mfcc"), "pre-trained on") == "none"
    assert card_of("musicfm-mini").pretrain_hours == 0.0 and card_of("musicfm-mini").parameters == 1_705_984


def test_systems_with_published_numbers_have_a_paper():
    printed = {
        r["system"]
        for r in json.loads(files("audiation").joinpath("data/published_results.json").read_text())["records"]
    }
    ours = [name for name in BACKBONES if set(BACKBONES[name].published_names) & printed]
    assert "mert-v1-330m" in ours and "chroma" in ours
    assert all(card_of(name).paper for name in ours)


def test_what_nobody_says_is_unknown(monkeypatch):
    variant(monkeypatch, pretraining=None)  # weights, and not a word about them
    card = card_of("musicfm-msd")
    assert (card.pretrain_data, card.pretrain_hours) == (UNKNOWN, None)
    assert exposure("musicfm-msd", "mtt").mark == "cannot be excluded"


# Contamination --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone, task, says",
    [
        ("musicfm-fma", "emomusic", "come from the same place (the Free Music Archive)"),
        ("musicfm-msd", "gtzan_genre", "which recordings of gtzan are in it is not known"),
        ("musicfm-msd", "mtt", "which recordings of mtt are in it is not known"),
        ("mert-v1-330m", "gtzan_key", "no list of its recordings is published"),
        ("mert-v1-95m", "nsynth_pitch", "no list of its recordings is published"),
        ("mert-v0-public", "emomusic", "the Free Music Archive"),
    ],
)
def test_what_cannot_be_excluded_is_not_said_to_be(backbone, task, says):
    sentence = seen_in_pretraining(backbone, task)
    assert sentence.startswith("cannot be excluded: ") and says in sentence and backbone in sentence


@pytest.mark.parametrize(
    "backbone, task",
    [
        ("chroma", "gtzan_key"),  # nothing was learnt
        ("musicfm-mini", "mtt"),
        ("key-cnn", "giantsteps_key"),
        ("mert-v1-330m", "scores-key"),  # rendered here
        ("musicfm-msd", "nsynth_pitch"),  # made for the data set
        ("musicfm-fma", "vocalset_singer"),
    ],
)
def test_no_mark_where_nothing_can_have_been_heard(backbone, task):
    assert seen_in_pretraining(backbone, task) == ""
    assert exposure(backbone, task) == Exposure("none")


def test_weights_of_a_run_decide():
    assert seen_in_pretraining("musicfm-msd", "gtzan_genre", "random") == ""
    assert "'mine.safetensors'" in seen_in_pretraining("musicfm-mini", "gtzan_genre", "mine.safetensors")
    assert seen_in_pretraining("musicfm-mini", "scores-key", "mine.safetensors") == ""


@pytest.mark.parametrize(
    "datasets, task",
    [
        (("mtt", "msd"), "mtt_clean"),
        (("gtzan",), "gtzan_rhythm"),  # the same recordings
        (("gtzan_rhythm",), "gtzan_genre"),
        (("gtzan",), "harmonix_rhythm"),  # tested on GTZAN-Rhythm, in a variant
        (("mtg_jamendo",), "mtg_moodtheme"),
        (("giantsteps_key",), "giantsteps_key"),
    ],
)
def test_test_data_that_was_in_the_pretraining_data_is_said_to_be(datasets, task, monkeypatch):
    variant(monkeypatch, pretraining=Pretraining("tags of two data sets", datasets))
    sentence = seen_in_pretraining("musicfm-msd", task)
    assert sentence.startswith("was: musicfm-msd was trained on tags of two data sets, of which ")


def test_training_data_of_a_task_is_not_its_test_data(monkeypatch):
    variant(monkeypatch, pretraining=Pretraining("keys", ("giantsteps_mtg_key",)))
    assert TASKS["giantsteps_key"].train_dataset == "giantsteps_mtg_key"
    assert exposure("musicfm-msd", "giantsteps_key").mark == "cannot be excluded"


def test_wrong_names_are_refused(monkeypatch):
    with pytest.raises(UnknownNameError, match="Did you mean 'musicfm-m"):
        card_of("musicfm-msx")
    with pytest.raises(UnknownNameError, match="Did you mean 'gtzan_genre'"):
        seen_in_pretraining("musicfm-msd", "gtzan_genres")
    variant(monkeypatch, pretraining=Pretraining("songs", ("music4al",)))
    for ask in (lambda: card_of("musicfm-msd"), lambda: seen_in_pretraining("musicfm-msd", "gtzan_genre")):
        with pytest.raises(
            ValueError, match=r"trained on 'music4al', which nobody knows\. Did you mean 'music4all'"
        ):
            ask()


def test_data_sets_and_corpora_are_known():
    check_datasets("mine", [*DATASETS, *CORPORA, "mtg_jamendo", "vocalset"])
