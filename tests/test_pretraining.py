"""From a corpus to a backbone that loads: what is written, what is refused, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
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
from audiation.folder_lock import FolderLockedError, locked
from audiation.loading import load_backbone
from audiation.objectives.base import share_of
from audiation.objectives.best_rq import BestRq, BestRqObjective
from audiation.pretrain_log import read_log
from audiation.pretrain_run import PretrainRun
from audiation.pretraining import assemble, pretrain
from audiation.pretraining_config import PretrainConfig
from audiation.training import DivergedError, Loss, RunFolderError, fit
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
    assert (
        json.loads((tmp_path / "more" / "pretraining.json").read_text())["weights_hash"] == after.weights_hash
    )
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
    # As it was pre-trained (MERT spec, section 3.6); published configs have 0.1 for activations too.
    (block,) = model.backbone.encoder.blocks
    assert (block.activation_dropout.p, block.dropout.p) == (0.0, 0.1)


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


# The folder of a run, and what is fitted before it ---------------------------------------------------------------

TINY = "conformer:dim=16,num_heads=2,ffn_dim=16,num_layers=1,conv_channels=4"
BERT = "bert:stem=waveform,dim=16,num_heads=2,ffn_dim=16,num_layers=1,conv_channels=4,frame_rate_hz=75"
BANDS = PretrainRun(TINY, "best_rq:codebook_size=8,standardise=bands", crop_seconds=0.8, train=TRAIN)


def test_a_second_process_is_refused_before_it_writes(corpus, tmp_path):
    with (
        locked(tmp_path / "run", "pre-training"),
        pytest.raises(FolderLockedError, match="is in use by process"),
    ):
        pretrain(BANDS, corpus, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_no_machine_is_noted_in_the_folder_of_another_run(corpus, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"config": {}, "identity": {}, "trained": {}}))
    with pytest.raises(RunFolderError, match="holds another run"):
        pretrain(BANDS, corpus, tmp_path)
    assert not (tmp_path / "machines.jsonl").exists()


def test_statistics_are_measured_once_on_no_more_crops_than_said(corpus, tmp_path, monkeypatch):
    seen, measured = [], BestRqObjective.prepare

    def counted(self, backbone, crops):
        crops = list(crops)
        seen.append(sum(len(crop) for crop in crops))
        measured(self, backbone, crops)

    def stop(standing):
        raise KeyboardInterrupt

    monkeypatch.setattr(audiation.pretraining, "PREPARE_CROPS", 5)
    monkeypatch.setattr(BestRqObjective, "prepare", counted)
    train = dataclasses.replace(TRAIN, checkpoint_every_steps=1, batch_size=4, micro_batch_size=2)
    run = dataclasses.replace(BANDS, train=train)
    with pytest.raises(KeyboardInterrupt):
        pretrain(run, corpus, tmp_path / "run", progress=stop)
    held = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]["objective.band_mean"]
    assert bool(held.any())
    pretrain(run, corpus, tmp_path / "run")
    assert seen == [5]
    kept = load_file(tmp_path / "run" / "objective.safetensors")
    assert torch.equal(kept["band_mean"], held)
    # A run that goes on from these weights keeps what the heads were trained for.
    more = dataclasses.replace(
        run,
        backbone="conformer",
        weights=str(tmp_path / "run" / "backbone"),
        train=dataclasses.replace(train, seed=5),
    )
    pretrain(more, corpus, tmp_path / "more")
    assert seen == [5]
    assert torch.equal(load_file(tmp_path / "more" / "objective.safetensors")["band_mean"], held)


def test_the_mask_vector_goes_on_under_another_objective(corpus, tmp_path):
    first = PretrainRun(BERT, "data2vec:top_layers=1", crop_seconds=0.8, train=TRAIN)
    ended = pretrain(first, corpus, tmp_path / "first")
    held = load_file(tmp_path / "first" / "objective.safetensors")["mask_vector"]
    model = assemble(PretrainRun("bert", "hubert", weights=str(ended.backbone_dir)))
    assert torch.equal(model.objective.mask_vector.detach(), held)


def test_a_micro_batch_counts_as_often_in_the_masked_fraction_as_it_has_frames(tmp_path):
    """Not as often as it has masked ones."""
    module = torch.nn.Linear(1, 1)

    class Batches:
        def micro_batch(self, step, index):
            return index

    def step(module, index, generator):
        masked = torch.tensor([[True] * 8 + [False] * 2, [True, False] + [False] * 8][index])
        total = module(torch.ones(1, 1)).square().sum() * masked.sum()
        return Loss(total, masked.sum(), {"fraction": share_of(masked), "mean": torch.tensor(float(index))})

    config = PretrainConfig(steps=1, batch_size=2, micro_batch_size=1)
    report = fit(module, step, Batches(), config, tmp_path)
    parts = json.loads(report.log.read_text().splitlines()[0])["parts"]
    assert parts == pytest.approx({"fraction": 9 / 20, "mean": 1 / 9}, rel=1e-6)


def test_a_step_that_masks_nothing_stops_and_says_so(corpus, tmp_path, monkeypatch):
    """A micro-batch without masked frames counts nothing; a step of nothing else has no loss."""
    none = lambda clips, frames, *rest: torch.zeros(clips, frames, dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr("audiation.objectives.data2vec.span_mask", none)
    run = PretrainRun(BERT, "data2vec:top_layers=1", crop_seconds=0.8, train=TRAIN)
    with pytest.raises(ValueError, match=r"the loss of step 1 has no terms \(count 0\)"):
        pretrain(run, corpus, tmp_path / "run")


def exit_code(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["audiation", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


def test_the_command(corpus, tmp_path, monkeypatch, capsys):
    def call(*arguments):
        return exit_code(monkeypatch, "pretrain", *arguments)

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
    record = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    record["corpus"]["hash"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(record))
    assert call("run", *again[:-1], tmp_path / "other.json") == 2
    assert "heard corpus 'tunes' with the hash another" in capsys.readouterr().err
    assert call("run", *again, "--backbone", "musicfm-mini") == 2
    assert "--backbone cannot be given as well" in capsys.readouterr().err
    assert call("run", "--backbone", "musicfm-mini") == 2
    assert call("run", "--corpus", corpus, "--out", tmp_path / "x", "--again", tmp_path / "nothing.json") == 2


@pytest.mark.slow
def test_all_objectives_from_music_to_a_figure(tmp_path, monkeypatch):
    """From the command line: music of several rates and forms, k-means teachers, four objectives, a picture."""

    def call(*arguments):
        assert exit_code(monkeypatch, *arguments) == 0

    for seed, (ending, rate_hz) in enumerate(
        (("wav", 24_000), ("ogg", 44_100), ("flac", 22_050), ("wav", 16_000))
    ):
        write(tmp_path / "music" / f"{seed}.{ending}", tune(seed, 6.0, rate_hz), rate_hz)
    corpus = tmp_path / "corpus"
    call("corpus", "build", tmp_path / "music", "--out", corpus, "--workers", 1)
    for teacher in ("mfcc39-km20", "logmel-km24", "chroma-km12"):
        call("corpus", "targets", corpus, "--teacher", teacher, "--workers", 1)
    train = (
        "steps=6,batch_size=4,micro_batch_size=2,learning_rate=1e-3,warmup_steps=2,checkpoint_every_steps=2"
    )
    runs = {
        "best_rq": (TINY, "best_rq:codebook_size=64,standardise=bands"),
        "mert": (BERT, "mert:teacher=kmeans,logmel_clusters=24,chroma_clusters=12"),
        "hubert": (BERT, "hubert:teacher=mfcc39-km20"),
        "data2vec": (BERT, "data2vec:top_layers=1"),
    }
    for name, (backbone, objective) in runs.items():
        out = tmp_path / name
        call("pretrain", "run", "--backbone", backbone, "--objective", objective, "--corpus", corpus, "--out", out,
             "--crop-seconds", 2, "--train", train)  # fmt: skip
        curves = read_log(out).curves
        assert len(curves["loss"].steps) == 6 and bool(np.isfinite(curves["loss"].values).all())
        assert 0.3 < float(curves["masked_fraction"].values.mean()) < 0.8
        assert load_backbone(backbone.partition(":")[0], out / "backbone").dim == 16
    call("pretrain", "compare", *(tmp_path / name for name in runs), "--out", tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes()[:4] == b"\x89PNG"
