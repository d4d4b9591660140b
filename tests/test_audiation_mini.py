"""The backbone of our own, and the recipe that makes it, without music, training or rendering."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import audiation
from audiation import loading
from audiation.backbones.audiation_mini import (
    CONV_CHANNELS,
    FILE,
    NAME,
    SIZES,
    WEIGHTS,
    build,
)
from audiation.backbones.musicfm_checkpoint import official_tensors
from audiation.corpus import Corpus
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_sources import find_sources
from audiation.loading import load_backbone
from audiation.recipes import audiation_mini
from audiation.recipes.audiation_mini import (
    QUESTIONS,
    AudiationMini,
    judge,
    mel_statistics,
    pretrain_run,
    write_shipped,
)
from audiation.recipes.base import Carried
from audiation.results import Prediction, Result
from audiation.tasks import TASKS
from audiation.weights import WeightsError, file_sha256

MOST_PARAMETERS, MOST_BYTES = 8_000_000, 20_000_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    save_file(official_tensors(build().state_dict(), SIZES), folder / "whole.safetensors")
    write_shipped(folder / "whole.safetensors", folder / FILE)
    return folder / FILE


def test_it_is_as_small_as_it_has_to_be(weights):
    assert sum(p.numel() for p in build().parameters()) <= MOST_PARAMETERS
    assert weights.stat().st_size <= MOST_BYTES
    assert load_file(weights)["model.conv.conv.0.conv1.weight"].shape[0] == CONV_CHANNELS


def test_what_is_shipped_is_the_model_in_half_precision(weights):
    shipped = load_backbone(NAME, weights)
    for name, parameter in build().named_parameters():
        expected = parameter.half().float() if parameter.ndim > 1 else parameter
        assert torch.equal(shipped.get_parameter(name), expected.detach()), name


def test_its_weights_come_with_the_package(monkeypatch, tmp_path):
    """No network (tests have none), no cache, and the file is the one that the code vouches for."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    path = Path(audiation.__file__).parent / "data" / FILE
    assert (path.stat().st_size, file_sha256(path)) == (WEIGHTS.size_bytes, WEIGHTS.sha256)
    assert path.stat().st_size <= MOST_BYTES
    backbone = load_backbone(NAME)
    assert backbone.weights_hash == load_backbone(NAME, path).weights_hash
    states = backbone(torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0)), layers=[0, 5])
    assert states.layers[5].shape == (2, 25, 256) and bool(states.layers[5].isfinite().all())


def test_another_file_in_its_place_is_refused(weights, monkeypatch):
    """Whoever trains a model of the same size may load it by its path, never as the one that came with the package."""
    monkeypatch.setattr(loading, "_fetch_official", lambda *_: weights)
    with pytest.raises(WeightsError, match="is not the official audiation-mini"):
        load_backbone(NAME)


def test_what_is_shipped_has_not_collapsed():
    """Tones three octaves apart and noise give different vectors; a model that has collapsed gives the same for all."""
    generator = torch.Generator().manual_seed(1)
    seconds = torch.arange(48_000) / 24_000
    music = [torch.sin(2 * torch.pi * hz * seconds) * 0.3 for hz in (110.0, 440.0, 1_760.0)]
    waveform = torch.stack([*music, torch.randn(48_000, generator=generator) * 0.1])
    with torch.no_grad():
        states = load_backbone(NAME)(waveform, layers=[5])
    pooled = states.mean().layers[5][:, 0]
    similar = torch.nn.functional.cosine_similarity(pooled[:, None], pooled[None], dim=-1)
    assert float(similar.fill_diagonal_(0).max()) < 0.995


def test_values_beyond_half_precision_are_refused(tmp_path):
    save_file({"a": torch.full((2, 2), 1e6)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a does not fit into half precision"):
        write_shipped(tmp_path / "a.safetensors", tmp_path / FILE)
    assert not (tmp_path / FILE).exists()


def test_the_run_is_a_value_that_goes_together():
    run = pretrain_run(8000)
    assert run.backbone == NAME and run.train.steps == 8000
    assert type(run).from_json(run.to_json()) == run
    assert pretrain_run(8).train.warmup_steps < 8


def test_statistics_are_those_of_the_corpus(tmp_path):
    """Louder music by 20 dB has a mean that is higher by so much, and the same deviation."""
    noise = np.random.default_rng(0).standard_normal(24_000 * 13) * 0.02
    found = []
    for name, gain in (("soft", 1.0), ("loud", 10.0)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", noise * gain, 24_000, subtype="FLOAT")
        sources = find_sources([tmp_path / name])
        build_corpus(sources, tmp_path / f"{name}-corpus", name, BuildSettings(24_000), workers=0)
        found.append(mel_statistics(Corpus(tmp_path / f"{name}-corpus"), num_crops=3))
    soft, loud = found
    assert loud.mean_db - soft.mean_db == pytest.approx(20.0, abs=0.1)
    assert loud.std_db == pytest.approx(soft.std_db, abs=0.1)


def test_questions_are_about_scores():
    for task, *_ in QUESTIONS:
        assert TASKS[task].train_dataset == TASKS[task].test_dataset == "scores"


def stub_results(share):
    """`runs` -> results in which each system has answered that share of 40 tracks rightly."""

    def carry_out(runs, out, device, console, **_):
        results = {}
        for run in runs:
            if run.task != "scores-timbre":
                continue
            right = int(40 * share[run.backbone if run.weights != "random" else "random"])
            predictions = tuple(
                Prediction(f"t{i}", "flute", "flute" if i < right else "brass") for i in range(40)
            )
            record = {"backbone": run.backbone, "task": run.task, "method": "probe", "protocol": run.protocol}
            record |= {"metrics": [m.versioned_name for m in TASKS[run.task].metrics], "seed": 0}
            results[run] = Result(
                run=record | {"weights": run.weights, "weights_hash": "w"}, scores={"accuracy": right / 40},
                intervals={"accuracy": None}, num_test_tracks=40, num_official_test_tracks=40, split_hash="ab",
                predictions=predictions,
            )  # fmt: skip
        return Carried(results, ())

    return carry_out


def test_it_is_judged_beside_its_twin_and_hand_crafted_features(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(
        audiation_mini, "carry_out_runs", stub_results({NAME: 0.9, "random": 0.3, "chroma-mfcc": 1.0})
    )
    rows = judge(weights, tmp_path, "cpu", Console(quiet=True))
    assert [row["task"] for row in rows] == ["scores-timbre", "mean"]
    assert (rows[0]["trained"], rows[0]["random"], rows[0]["hand-crafted"]) == ("0.900", "0.300", "1.000")
    assert str(rows[0]["minus random"]).endswith("better")
    assert str(rows[0]["minus hand-crafted"]).endswith("worse")
    json.dumps(rows)


def test_the_recipe_goes_from_corpus_to_weights(weights, tmp_path, monkeypatch):
    """Training and judging are stubs here; that training works is shown by test_pretraining.py."""
    asked = {}

    def pretrain(run, corpus, run_dir, device, progress):
        asked.update(run=run, corpus=corpus)
        backbone_dir = run_dir / "backbone"
        backbone_dir.mkdir(parents=True)
        save_file(official_tensors(build().state_dict(), SIZES), backbone_dir / "model.safetensors")
        return type("Report", (), {"backbone_dir": backbone_dir})()

    monkeypatch.setattr(audiation_mini, "pretrain", pretrain)
    monkeypatch.setattr(audiation_mini, "judge", lambda *_: [])
    AudiationMini(steps=12, corpus="somewhere").carry_out(tmp_path / "out", "cpu", Console(quiet=True))
    assert str(asked["corpus"]) == "somewhere" and asked["run"].train.steps == 12
    assert (tmp_path / "out" / FILE).read_bytes() == weights.read_bytes()
    assert json.loads((tmp_path / "out" / "judged.json").read_text()) == []
