"""Training on labelled recordings: windows, the kept frozen part, bad files, and the protocol that uses it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import soundfile
import torch

from audiation.adaptation import AdaptConfig, copies_of, epoch_steps, train_adaptation
from audiation.adapted import AdaptedModel, answer_track
from audiation.annotations import Key, Label
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.metrics import ACCURACY
from audiation.targets import ClassTarget, KeyTarget
from audiation.track_windows import Example, augmented_examples
from audiation.training import DivergedError

RATE = 24_000
CLASSES = ("high", "low")
TARGET = ClassTarget(CLASSES)
BASE = AdaptConfig(steps=4, batch_size=4, learning_rate=1e-3, validate_every_steps=2, crop_seconds=0.5)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Eight tones of two heights, 0.5 to 1.9 s long."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(0)
    examples = []
    for i in range(8):
        label = CLASSES[i % 2]
        seconds = np.arange(round(RATE * (0.5 + 0.2 * i))) / RATE
        hz = {"high": 2000, "low": 150}[label] * (1 + 0.1 * generator.random())
        path = folder / f"{i}.wav"
        wave = 0.3 * np.sin(2 * np.pi * hz * seconds) + 0.01 * generator.standard_normal(len(seconds))
        soundfile.write(path, wave, RATE, subtype="FLOAT")
        examples.append(Example(path.stem, path, Label(label)))
    return examples


def trunk(method="lora", name="musicfm-mini"):
    backbone = load_backbone(name, "random", num_layers=1)
    inject(backbone, method)
    return backbone


def run(recordings, folder, config=BASE, method="lora", name="musicfm-mini", **options):
    return train_adaptation(
        trunk(method, name), TARGET, recordings, recordings[-4:], ACCURACY, config, folder, **options
    )


def state(adaptation):
    return {k: v for k, v in adaptation.model.state_dict().items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("crops", ["fixed", "random"])
@pytest.mark.parametrize("method", ["lora", "probe", "prompt"])
def test_keeping_the_frozen_part_changes_nothing_but_rounding(recordings, tmp_path, method, crops):
    with_cache = run(recordings, tmp_path / "a", dataclasses.replace(BASE, crops=crops), method)
    without = run(recordings, tmp_path / "b", dataclasses.replace(BASE, crops=crops, cache_gib=0.0), method)
    assert with_cache.cache_hits > 0 and "is kept" in with_cache.caching
    assert without.cache_hits == 0 and "cache_gib is 0" in without.caching
    losses = [[line["loss"] for line in log(a) if "loss" in line] for a in (with_cache, without)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert with_cache.report.best_score == without.report.best_score


def log(adaptation):
    return [json.loads(line) for line in adaptation.report.log.read_text().splitlines()]


def test_the_run_says_what_was_kept(recordings, tmp_path):
    expected = {
        ("probe", "fixed", "musicfm-mini"): "pooled layer 1 is kept per window",
        ("lora", "fixed", "musicfm-mini"): "the stem's output is kept per window",
        (
            "lora",
            "random",
            "musicfm-mini",
        ): "kept per recording (8 of 8 fit), and cropped at multiples of 960",
        ("lora", "random", "mert-v1-95m"): "mert-v1-95m sees the whole window, and windows are random",
        ("finetune", "fixed", "musicfm-mini"): "the whole backbone is trained",
    }
    for number, ((method, crops, name), sentence) in enumerate(expected.items()):
        config = dataclasses.replace(BASE, crops=crops, steps=1, validate_every_steps=1, batch_size=2)
        assert sentence in run(recordings, tmp_path / str(number), config, method, name).caching
    published = dataclasses.replace(BASE, frozen_mode="published", steps=1, validate_every_steps=1)
    assert "frozen_mode 'published'" in run(recordings, tmp_path / "p", published).caching
    dropout = dataclasses.replace(BASE, backbone_dropout=True, steps=1, validate_every_steps=1)
    assert "dropout is active" in run(recordings, tmp_path / "d", dropout).caching


def test_a_run_that_was_interrupted_ends_with_the_same_bits(recordings, tmp_path):
    config = dataclasses.replace(BASE, steps=6, checkpoint_every_steps=1, crops="random")
    whole = run(recordings, tmp_path / "whole", config)

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(recordings, tmp_path / "parts", config, progress=stop)
    resumed = run(recordings, tmp_path / "parts", config)
    ours, theirs = state(resumed), state(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_kept_on_disk_for_the_next_run(recordings, tmp_path):
    first = run(recordings, tmp_path / "a", cache_directory=tmp_path / "cache")
    second = run(recordings, tmp_path / "b", cache_directory=tmp_path / "cache")
    assert first.cache_misses > 0 and second.cache_misses == 0
    assert all(torch.equal(value, state(first)[name]) for name, value in state(second).items())


def test_windows_of_one_batch_may_have_several_lengths(recordings, tmp_path):
    config = dataclasses.replace(BASE, crop_seconds=30.0)  # every recording at its own length
    adaptation = run(recordings, tmp_path, config)
    assert adaptation.report.last_step == 4
    assert all(math.isfinite(line["loss"]) for line in log(adaptation) if "loss" in line)


def test_micro_batches_make_the_same_step(recordings, tmp_path):
    whole = run(recordings, tmp_path / "a", dataclasses.replace(BASE, head_dropout=0.0))
    parts = run(recordings, tmp_path / "b", dataclasses.replace(BASE, head_dropout=0.0, micro_batch_size=1))
    losses = [[line["loss"] for line in log(a) if "loss" in line] for a in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_gradient_checkpointing_gives_the_same_losses(recordings, tmp_path):
    plain = run(recordings, tmp_path / "a")
    saving = run(recordings, tmp_path / "b", dataclasses.replace(BASE, gradient_checkpointing=True))
    losses = [[line["loss"] for line in log(a) if "loss" in line] for a in (plain, saving)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# Bad input ---------------------------------------------------------------------------------------------------


def test_recordings_that_cannot_be_read_are_reported_and_left_out(recordings, tmp_path):
    (tmp_path / "text.wav").write_text("not audio at all")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), RATE)
    bad = [Example(n, tmp_path / f"{n}.wav", Label("low")) for n in ("text", "short", "missing")]
    said = []
    adaptation = train_adaptation(
        trunk(), TARGET, [*recordings, *bad], recordings[-2:], ACCURACY, BASE, tmp_path / "run",
        on_ready=lambda sentence, unused: said.append((sentence, unused)),
    )  # fmt: skip
    assert {u.track_id: u.split for u in adaptation.unused} == dict.fromkeys(
        ("text", "short", "missing"), "train"
    )
    assert said[0][1] == adaptation.unused
    reasons = {u.track_id: u.reason for u in adaptation.unused}
    assert "no audio that can be read" in reasons["text"] and "needs" in reasons["short"]


def test_a_recording_that_breaks_off_while_training_is_replaced_and_reported(
    recordings, tmp_path, monkeypatch
):
    import audiation.output_cache as output_cache

    real = output_cache.load_audio
    broken = recordings[0].path

    def load(path, *arguments, **options):
        if path == broken:
            raise output_cache.AudioError(path, "breaks off.")
        return real(path, *arguments, **options)

    monkeypatch.setattr(output_cache, "load_audio", load)
    adaptation = run(recordings, tmp_path)
    assert [(u.track_id, u.split) for u in adaptation.unused] == [("0", "train")]
    assert adaptation.report.last_step == BASE.steps


def test_nothing_usable_is_an_error_that_names_the_files(recordings, tmp_path):
    missing = [Example("gone", tmp_path / "gone.wav", Label("low"))]
    with pytest.raises(ValueError, match=r"none of the 1 valid recordings can be used. gone"):
        train_adaptation(trunk(), TARGET, recordings, missing, ACCURACY, BASE, tmp_path / "run")


def test_a_diverging_loss_names_step_and_files_and_keeps_the_last_good_checkpoint(recordings, tmp_path):
    config = dataclasses.replace(
        BASE, steps=50, learning_rate=1e30, clip_norm=None, checkpoint_every_steps=1, validate_every_steps=50
    )
    with pytest.raises(DivergedError) as caught:
        run(recordings, tmp_path, config)
    assert (
        caught.value.step >= 2 and caught.value.checkpoint is not None and caught.value.checkpoint.is_file()
    )
    assert caught.value.names and all(name.endswith(".wav") for name in caught.value.names)


def test_choices_that_make_no_sense_are_refused(recordings, tmp_path):
    for wrong in (
        {"crops": "sometimes"}, {"frozen_mode": "train"}, {"crop_seconds": -1.0}, {"head_dropout": 1.0},
        {"cache_gib": -1.0}, {"cache_gib": float("nan")},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(BASE, **wrong)
    with pytest.raises(ValueError, match="at least"):
        run(recordings, tmp_path, dataclasses.replace(BASE, crop_seconds=0.01))
    plain = load_backbone("musicfm-mini", "random", num_layers=1)
    with pytest.raises(ValueError, match="is not adapted"):
        train_adaptation(plain, TARGET, recordings, recordings, ACCURACY, BASE, tmp_path)


# Answers -----------------------------------------------------------------------------------------------------


def test_a_track_is_answered_by_the_mean_probability_of_its_whole_windows(recordings):
    model = AdaptedModel(trunk(), TARGET, crop_seconds=0.5).eval()
    answer = answer_track(model, recordings[7].path)  # 1.9 s: three windows, and a rest that is dropped
    assert answer.starts_seconds == (0.0, 0.5, 1.0) and torch.stack(answer.window_logits).shape == (3, 2)
    expected = torch.stack(answer.window_logits).double().softmax(-1).mean(0)
    torch.testing.assert_close(answer.logits.double().softmax(-1), expected)
    assert answer.annotation == Label(CLASSES[int(expected.argmax())])
    whole = answer_track(AdaptedModel(trunk(), TARGET).eval(), recordings[7].path)
    assert len(whole.window_logits) == 1 and whole.durations_seconds == pytest.approx((1.9,))


def test_the_head_is_that_of_the_paper_and_its_size_too():
    head = AdaptedModel(load_backbone("musicfm-mini", "random", num_layers=1), TARGET).head
    assert [tuple(p.shape) for p in head.parameters()] == [(128, 128), (128,), (2, 128), (2,)]
    assert head.dropout == 0.5 and not head.input_dropout


def test_an_epoch_uses_every_track_once():
    assert [epoch_steps(n, 16) for n in (1, 16, 17, 168)] == [1, 1, 2, 11]


def test_training_recordings_are_augmented_with_their_annotations(tmp_path, monkeypatch):
    """Every recording once as it is and eight times moved; keys move along; validation stays as it is."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    examples = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        wave = sum(np.sin(2 * np.pi * 220 * 2 ** ((i + n) / 12) * np.arange(RATE) / RATE) for n in (0, 4, 7))
        soundfile.write(path, 0.1 * wave + 0.001 * rng.standard_normal(RATE), RATE)
        examples.append(Example(str(i), path, Key(9 + i, "major")))
    config = dataclasses.replace(BASE, augment="pitch_shift", crop_seconds=None)
    said = []
    adaptation = train_adaptation(
        trunk("probe"), KeyTarget(), examples, examples, ACCURACY, config, tmp_path / "run",
        on_ready=lambda sentence, unused: said.append(sentence),
    )  # fmt: skip
    assert said[0].startswith("24 augmented copies are made in")
    copies = sorted((tmp_path / "cache" / "augmented").glob("*.flac"))
    assert len(copies) == 24 and not adaptation.unused
    times = [c.stat().st_mtime_ns for c in copies]
    unused = []
    found = augmented_examples(
        examples, copies_of(config.augment), tmp_path / "cache" / "augmented", RATE, KeyTarget(), unused
    )
    assert [c.stat().st_mtime_ns for c in copies] == times  # used again
    assert len(found) == 27 and {str(e.annotation) for e in found[:9]} == {
        str(Key((9 + n) % 12, "major")) for n in range(-4, 5)
    }
    with pytest.raises(ValueError, match="augment is 'pitch_shift', 'time_stretch'"):
        dataclasses.replace(BASE, augment="noise")
