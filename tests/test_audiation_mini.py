"""The backbone of our own, and the recipe that makes it, without music, training or rendering."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from audiation.backbones.audiation_mini import CONV_CHANNELS, FILE, NAME, SIZES, build
from audiation.backbones.musicfm_checkpoint import official_tensors
from audiation.loading import load_backbone
from audiation.recipes import audiation_mini
from audiation.recipes.audiation_mini import QUESTIONS, AudiationMini, judge, pretrain_run, write_shipped
from audiation.recipes.base import Carried
from audiation.results import Prediction, Result
from audiation.tasks import TASKS

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
