"""From a corpus to a backbone that loads: what is written, what is refused, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import audiation.pretraining
from audiation import cli
from audiation.backbones.hubert_config import BASE
from audiation.backbones.hubert_layout import build as build_hubert
from audiation.backbones.hubert_layout import official_names
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_sources import find_sources
from audiation.loading import load_backbone
from audiation.objectives.best_rq import BestRq
from audiation.pretrain_log import read_log
from audiation.pretrain_run import PretrainRun
from audiation.pretraining import assemble, pretrain
from audiation.pretraining_config import PretrainConfig
from audiation.training import DivergedError, RunFolderError
from audiation.weights import WeightsError
from corpus_files import tune, write

GOLDEN = Path(__file__).parent / "golden"
TRAIN = PretrainConfig(steps=3, batch_size=2, micro_batch_size=1, learning_rate=1e-3, warmup_steps=1)
OBJECTIVE = "best_rq:codebook_size=32"
RUN = PretrainRun("musicfm-mini", OBJECTIVE, crop_seconds=0.8, train=TRAIN)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretraining")
    for seed in range(3):
        write(root / "music" / f"{seed}.wav", tune(seed, 2.5, 24_000), 24_000)
    build_corpus(find_sources([root / "music"]), root / "corpus", "tunes", BuildSettings(24_000), workers=0)
    return root / "corpus"


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    return pretrain(RUN, corpus, tmp_path_factory.mktemp("run") / "run")


def states_equal(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_the_backbone_loads_under_its_name(trained):
    backbone = load_backbone("musicfm-mini", trained.backbone_dir)
    fresh = load_backbone("musicfm-mini", "random")
    assert not states_equal(backbone, fresh)
    record = json.loads((trained.run_dir / "pretraining.json").read_text())
    assert record["weights_hash"] == backbone.weights_hash
    assert record["corpus"]["name"] == "tunes" and record["corpus"]["hours"] == pytest.approx(
        7.5 / 3600, abs=1e-3
    )
    assert record["steps"] == trained.steps == 3
    assert trained.audio_hours == pytest.approx(3 * 2 * 0.8 / 3600)
    assert PretrainRun.from_json(json.dumps(record["run"])) == RUN


def test_heads_and_codebooks_are_kept(trained):
    held = load_file(trained.run_dir / "objective.safetensors")
    buffers = {"band_mean", "band_std", "quantiser.projections", "quantiser.codebooks"}
    assert set(held) == {"head.weight", "head.bias"} | buffers


def test_the_log_says_what_was_heard(trained):
    curves = read_log(trained.run_dir)
    assert len(curves.curves["loss"].steps) == 3


def test_again_gives_the_same_at_once_and_elsewhere_the_same_bits(trained, corpus, tmp_path):
    before = (trained.run_dir / "backbone" / "model.safetensors").read_bytes()
    assert pretrain(RUN, corpus, trained.run_dir).steps == 3
    assert (trained.run_dir / "backbone" / "model.safetensors").read_bytes() == before
    again = pretrain(RUN, corpus, tmp_path / "again")
    assert (again.backbone_dir / "model.safetensors").read_bytes() == before


def test_a_run_goes_on_where_it_was_stopped(trained, corpus, tmp_path):
    def stop(standing):
        if standing.step == 2:
            raise KeyboardInterrupt

    train = dataclasses.replace(TRAIN, checkpoint_every_steps=1)  # free to change
    with pytest.raises(KeyboardInterrupt):
        pretrain(dataclasses.replace(RUN, train=train), corpus, tmp_path / "run", progress=stop)
    assert not (tmp_path / "run" / "backbone").exists()
    pretrain(dataclasses.replace(RUN, train=train), corpus, tmp_path / "run")
    a, b = (load_file(d / "backbone" / "model.safetensors") for d in (tmp_path / "run", trained.run_dir))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_another_run_in_the_folder_is_refused(trained, corpus):
    other = PretrainRun("musicfm-mini", "best_rq:codebook_size=64", crop_seconds=0.8, train=TRAIN)
    with pytest.raises(RunFolderError, match="holds another run"):
        pretrain(other, corpus, trained.run_dir)


@pytest.mark.parametrize("method", ["finetune", "lora:rank=2"])
def test_training_goes_on_from_weights(trained, corpus, tmp_path, method):
    run = PretrainRun(
        "musicfm-mini",
        OBJECTIVE,
        crop_seconds=0.8,
        train=TRAIN,
        weights=str(trained.backbone_dir),
        method=method,
    )
    ended = pretrain(run, corpus, tmp_path / "more")
    before, after = (load_backbone("musicfm-mini", d) for d in (trained.backbone_dir, ended.backbone_dir))
    changed = [n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert changed
    if method != "finetune":  # folded into the maps that it stands beside; all else stays
        assert all(".weight" in name and "stem" not in name for name in changed)


@pytest.mark.filterwarnings("ignore:.*allow_unverified_hash")
def test_a_published_model_that_is_trained_further_loads_under_its_name(corpus, tmp_path, monkeypatch):
    """It is not the official file any more, and says so; the official one is still checked."""
    golden = load_file(GOLDEN / "musicfm_tiny.safetensors")
    (tmp_path / "official").mkdir()
    official = {name: tensor for name, tensor in golden.items() if name.startswith("model.")}
    save_file(official, tmp_path / "official" / "model.safetensors")
    run = PretrainRun(
        "musicfm-msd", OBJECTIVE, crop_seconds=0.8, train=TRAIN, weights=str(tmp_path / "official")
    )
    with pytest.raises(WeightsError, match="is not the official"):
        pretrain(run, corpus, tmp_path / "refused")
    with monkeypatch.context() as allowed:
        allowed.setenv("AUDIATION_ALLOW_UNVERIFIED_HASH", "1")
        ended = pretrain(run, corpus, tmp_path / "run")
    backbone = load_backbone("musicfm-msd", ended.backbone_dir)
    before = official["model.conv.linear.bias"]
    assert not torch.equal(backbone.stem.projection.bias, before)
    assert float((backbone.stem.projection.bias - before).abs().max()) < 0.01


def test_heads_and_codebooks_are_gone_on_with(trained, tmp_path):
    run = PretrainRun(
        "musicfm-mini", OBJECTIVE, crop_seconds=0.8, train=TRAIN, weights=str(trained.backbone_dir)
    )
    held = load_file(trained.run_dir / "objective.safetensors")
    assert torch.equal(assemble(run).objective.head.weight, held["head.weight"])
    other = dataclasses.replace(run, objective="best_rq:codebook_size=16")  # of another form: fresh
    assert assemble(other).objective.head.weight.shape == (16, 128)


def test_the_mask_vector_of_published_weights_is_gone_on_with(tmp_path):
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small = build_hubert(BASE | tiny | {"conv_dim": (8,) * 7}, "musichubert", 16_000)
    names = {official: small.state_dict()[own] for official, own in official_names(small)}
    names["masked_spec_embed"] = torch.full((32,), 7.0)
    save_file(names, tmp_path / "model.safetensors")
    config = BASE | tiny | {"conv_dim": [8] * 7, "sample_rate": 16_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = assemble(PretrainRun("musichubert", "hubert", weights=str(tmp_path)))
    assert torch.equal(model.objective.mask_vector.detach(), torch.full((32,), 7.0))


@pytest.mark.filterwarnings("ignore:.*allow_unverified_hash")
def test_codes_of_a_checkpoint_are_taken_over(tmp_path, monkeypatch):
    """An official file in miniature: quantiser and head come from it, under other sizes it is refused."""
    golden = load_file(GOLDEN / "musicfm_tiny.safetensors")
    monkeypatch.setenv("AUDIATION_ALLOW_UNVERIFIED_HASH", "1")  # a miniature
    official = {name: tensor for name, tensor in golden.items() if name.startswith("model.")}
    save_file(official, tmp_path / "model.safetensors")
    run = PretrainRun("musicfm-msd", "best_rq:codebook_size=512,codes=checkpoint", weights=str(tmp_path))
    objective = assemble(run).objective
    assert torch.equal(objective.head.weight, official["model.linear.weight"])
    assert torch.equal(objective.quantiser.codebooks[0], official["model.quantizer_melspec_2048_0.codebook"])
    with pytest.raises(ValueError, match="codebooks of the checkpoint have the shape"):
        assemble(PretrainRun("musicfm-msd", "best_rq:codes=checkpoint", weights=str(tmp_path)))
    with pytest.raises(ValueError, match="weights are random"):
        assemble(PretrainRun("musicfm-mini", "best_rq:codes=checkpoint"))


def test_a_loss_that_is_no_number_stops_the_run(corpus, tmp_path, monkeypatch):
    whole = audiation.pretraining.Pretraining.forward

    def broken(self, batch, generator):
        loss = whole(self, batch, generator)
        return type(loss)(loss.sum * float("nan"), loss.count, loss.parts)

    monkeypatch.setattr(audiation.pretraining.Pretraining, "forward", broken)
    with pytest.raises(DivergedError, match="the loss is nan at step 1 of 3"):
        pretrain(RUN, corpus, tmp_path / "run")
    assert not (tmp_path / "run" / "backbone").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "other"}, "is about corpus 'other', and this is 'tunes'"),
        ({"backbone": "mert-v0"}, "hears 16000 Hz, and corpus 'tunes' has 24000 Hz"),
        ({"crop_seconds": 0.01}, "shorter than what musicfm-mini hears"),
        ({"crop_seconds": 0.3}, "hold no window of 0.4 s"),
        ({"crop_seconds": 60.0}, "60 s"),
        ({"crop_seconds": 1e300}, "no recording"),
        ({"objective": "mert:feature_penalty=0,conv_gradient=1"}, "encodec"),
        ({"backbone": "chroma"}, "there is nothing to train"),
        ({"backbone": "musicfm-nano"}, "musicfm-nano"),
    ],
)
def test_what_does_not_go_together_is_refused(corpus, tmp_path, changes, message):
    fields = {
        "backbone": "musicfm-mini",
        "objective": OBJECTIVE,
        "crop_seconds": 0.8,
        "train": TRAIN,
    } | changes
    if fields["backbone"] == "mert-v0":
        fields["objective"] = "best_rq:codebook_size=8"
    with pytest.raises(ValueError, match=message):
        pretrain(PretrainRun(**fields), corpus, tmp_path / "run")


def test_runs_are_values():
    assert PretrainRun.from_json(RUN.to_json()) == RUN
    with pytest.raises(ValueError, match="has no field 'colour'"):
        PretrainRun.from_json(json.dumps(json.loads(RUN.to_json()) | {"colour": 1}))
    with pytest.raises(ValueError, match="not a pre-training run"):
        PretrainRun.from_json("[]")
    with pytest.raises(ValueError, match="weights are random"):
        PretrainRun("musicfm-mini", method="lora:rank=2")
    assert BestRq().targets == ()


def test_the_command(corpus, tmp_path, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["audiation", "pretrain", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        return 0

    given = ["--corpus", corpus, "--out", tmp_path / "run", "--crop-seconds", 0.8, "--objective", OBJECTIVE]
    assert (
        call("run", "--backbone", "musicfm-mini", "--train", "steps=2,batch_size=1,warmup_steps=1", *given)
        == 0
    )
    assert "2 steps on" in capsys.readouterr().out
    again = ["--corpus", corpus, "--out", tmp_path / "two", "--again", tmp_path / "run" / "pretraining.json"]
    assert call("run", *again) == 0
    files = [tmp_path / run / "backbone" / "model.safetensors" for run in ("run", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert call("show", tmp_path / "run") in (0, 1)
    assert "loss" in capsys.readouterr().out
    assert call("run", *again, "--backbone", "musicfm-mini") == 2
    assert "--backbone cannot be given as well" in capsys.readouterr().err
    assert call("run", "--backbone", "musicfm-mini") == 2
    assert call("run", "--corpus", corpus, "--out", tmp_path / "x", "--again", tmp_path / "nothing.json") == 2
