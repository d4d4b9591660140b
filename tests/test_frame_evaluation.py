"""Questions about every frame from end to end: beats, chords, keys over time, sections, and stems."""

import dataclasses
import gzip
import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch

from audiation import probe_evaluation
from audiation.adaptation import AdaptConfig, train_adaptation
from audiation.adapted import AdaptedModel, answer_track
from audiation.adapter_files import save_adapter
from audiation.adapters import load_adapter
from audiation.annotations import Beats, Key, Segments
from audiation.audio import AudioError
from audiation.datasets.musdb18 import STEMS, VALIDATION_TITLES
from audiation.datasets.synthesis import TIMBRES
from audiation.evaluation import Run, default_protocol, evaluate
from audiation.frame_targets import BeatTarget, ChordTarget, SectionTarget
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.metrics import BOUNDARY_HR05_F, CHORD_MAJMIN_WCSR, Metric, mean_over_tracks
from audiation.metrics_separation import SEPARATION_METRICS
from audiation.own_audio import predict
from audiation.probe import mean_per_track
from audiation.results import Result
from audiation.tasks import TASKS
from audiation.track_windows import Example
from audiation.windows import WINDOW_POLICIES

RATE_HZ = 22_050
CLIP_SECONDS = 6.0
SPLITS = {"train": 24, "valid": 4, "test": 5}
TRIADS = ("C:maj", "Eb:min", "F:maj", "A:min")
ROOTS = {"C": 0, "Eb": 3, "F": 5, "A": 9}


def tone(midi, num_samples):
    return np.sin(2 * np.pi * 440 * 2 ** ((midi - 69) / 12) * np.arange(num_samples) / RATE_HZ)


def triad(root, mode, num_samples):
    third = 4 if mode.startswith("maj") else 3
    return 0.1 * sum(tone(60 + root + n, num_samples) for n in (0, third, 7, 12))


def chords_of(number):
    """Three chords, other lengths in every track."""
    bounds = np.round([0.0, 1.7 + 0.1 * (number % 5), 4.1 + 0.1 * (number % 3), CLIP_SECONDS], 3)
    labels = tuple(TRIADS[(number + i) % 4] for i in range(3))
    return Segments(np.stack([bounds[:-1], bounds[1:]], axis=1), labels)


def beats_of(number):
    times = 0.15 + 0.02 * number % 0.3 + np.arange(40) * 60 / (96 + 7 * (number % 8))
    times = times[times < CLIP_SECONDS - 0.05]
    return Beats(times, np.arange(len(times)) % 4 + 1)


def chord_audio(segments):
    parts = []
    for (start, end), label in zip(segments.intervals_seconds, segments.labels, strict=True):
        root, _, mode = label.partition(":")
        parts.append(triad(ROOTS[root], mode, round(end * RATE_HZ) - round(start * RATE_HZ)))
    return np.concatenate(parts)


def click_audio(beats, seconds, rng):
    wave = 0.002 * rng.standard_normal(round(seconds * RATE_HZ))
    for time in beats.times_seconds:
        start = round(time * RATE_HZ)
        wave[start : start + 220] += 0.5 * rng.standard_normal(len(wave[start : start + 220]))
    return wave


def write_scores(root, audio):
    """The layout of `scores`, with sounds of our own."""
    (root / "scores" / "clips").mkdir(parents=True)
    clips, number = [], 0
    for split, count in SPLITS.items():
        for _ in range(count):
            chords, beats = chords_of(number), beats_of(number)
            clips.append(
                {
                    "id": f"{split}-{number:03}", "split": split, "group": f"{number}", "sha256": "", "notes": [],
                    "source": "x", "transposition": 0, "key": str(Key.from_index(number % 24)), "bpm": 100.0,
                    "timbre": list(TIMBRES)[number % len(TIMBRES)],
                    "beats": beats.times_seconds.tolist(), "positions": beats.positions.tolist(),
                    "chord_intervals": chords.intervals_seconds.tolist(), "chords": list(chords.labels),
                }
            )  # fmt: skip
            soundfile.write(root / "scores" / "clips" / f"{split}-{number:03}.wav", audio(number), RATE_HZ)
            number += 1
    index = {"version": 1, "seed": 0, "num_clips": len(clips), "drops": {}, "windows": {}, "clips": clips}
    (root / "scores" / "index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    rng = np.random.default_rng(0)
    return write_scores(
        tmp_path_factory.mktemp("clicks"), lambda number: click_audio(beats_of(number), CLIP_SECONDS, rng)
    )


@pytest.fixture(scope="module")
def triads(tmp_path_factory):
    return write_scores(tmp_path_factory.mktemp("triads"), lambda number: chord_audio(chords_of(number)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_METADATA_ROOT", raising=False)


BEAT_RUN = Run(
    "onset-frames", "scores-beats", protocol="musicfm",
    train="steps=120,validate_every_steps=60,learning_rate=1e-2,batch_size=8",
)  # fmt: skip
CHORD_RUN = Run(
    "chroma-frames", "scores-chords", protocol="musicfm",
    train="steps=160,validate_every_steps=80,learning_rate=3e-3",
)  # fmt: skip


# Whole runs ------------------------------------------------------------------------------------------------


def answers_like_the_run(result, directory, root, audio=lambda track_id: f"scores/clips/{track_id}.wav"):
    """A model that was written answers the test tracks as the result says."""
    paths = [root / audio(p.track_id) for p in result.predictions]
    found = [str(p.answer.annotation) for p in predict(paths, [directory])]
    assert found == [p.estimate for p in result.predictions]


def test_beats_of_clicks_are_found_and_the_model_that_was_written_finds_the_same(clicks, tmp_path):
    result = evaluate(BEAT_RUN, data_root=clicks, model_out=tmp_path / "model")
    assert result.scores["beat_f_70ms_per_track"] > 0.9 and result.num_test_tracks == 5
    assert set(result.scores) == {m.name for m in TASKS["scores-beats"].metrics}
    assert result.coverage == 1.0 and result.failures == ()
    assert result.run["windows"]["name"] == "whole-track" and result.run["caching"].startswith(
        "frames of layer 0"
    )
    for p in result.predictions:
        estimate, reference = Beats.parse(p.estimate), Beats.parse(p.reference)
        assert abs(len(estimate.times_seconds) - len(reference.times_seconds)) <= 2
    answers_like_the_run(result, tmp_path / "model", clicks)


def test_chords_of_triads_are_found_and_cover_the_track(triads, tmp_path):
    result = evaluate(CHORD_RUN, data_root=triads, model_out=tmp_path / "model")
    assert result.scores["chord_majmin_wcsr"] > 0.9 and result.scores["chord_frame_accuracy"] > 0.9
    for p in result.predictions:
        intervals = Segments.parse(p.estimate).intervals_seconds
        assert intervals[0, 0] == 0.0 and intervals[-1, 1] == pytest.approx(CLIP_SECONDS, abs=0.1)
    answers_like_the_run(result, tmp_path / "model", triads)
    result.save(tmp_path / "result.json")
    again = evaluate(Run.of(Result.load(tmp_path / "result.json")), data_root=triads)
    assert again.scores == result.scores and again.predictions == result.predictions


# Keys over time, in excerpts of longer files ----------------------------------------------------------------

EXCERPT = (2.0, 5.0)
MODES = {"major": [2, 2, 1, 2, 2, 2], "minor": [2, 1, 2, 2, 1, 2], "dorian": [2, 1, 2, 2, 2, 1]}
TAUGHT = (Key(0, "major"), Key(6, "major"), Key(3, "minor"))


def excerpt(split, number, tonic, mode):
    """Six beats from 2 s to 5 s, in one key."""
    key = {"beat": 0, "tonic_pitch_class": tonic, "scale_degree_intervals": MODES[mode]}
    return {
        "tags": ["AUDIO_AVAILABLE"], "split": split,
        "hooktheory": {"id": "x", "artist": f"{split}-{number}", "song": "tune", "annotators": [], "urls": {}},
        "youtube": {"id": f"video{number:06}", "url": "", "duration": 8.0},
        "alignment": {"swing": "STRAIGHT", "user": None,
                      "refined": {"beats": [0, 6], "times": list(EXCERPT)}},
        "annotations": {"num_beats": 6, "meters": [{"beat": 0, "beats_per_bar": 4, "beat_unit": 4}],
                        "keys": [key], "melody": [], "harmony": None},
    }  # fmt: skip


def in_excerpt(inside, outside, seconds=8.0):
    """One sound in the excerpt and another around it."""
    samples = [round(t * RATE_HZ) for t in (0.0, *EXCERPT, seconds)]
    first, middle, last = (b - a for a, b in pairwise(samples))
    return np.concatenate([outside[:first], inside[:middle], outside[:last]])


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Songs that are in another key outside of the excerpt, one of them in dorian; and three GiantSteps tracks."""
    root = tmp_path_factory.mktemp("keys")
    audio = root / "hooktheory" / "audio"
    audio.mkdir(parents=True)
    entries, number = {}, 0
    for split, count in (("TRAIN", 9), ("VALID", 3)):
        for i in range(count):
            key = TAUGHT[i % 3]
            other = TAUGHT[(i + 1) % 3]
            sounds = (triad(k.tonic, k.mode, 4 * RATE_HZ) for k in (key, other))
            soundfile.write(audio / f"video{number:06}.wav", in_excerpt(*sounds), RATE_HZ)
            entries[f"excerpt{number}"] = excerpt(split, number, key.tonic, key.mode)
            number += 1
    for split in ("TRAIN", "VALID"):  # of no key that GiantSteps asks for
        soundfile.write(audio / f"video{number:06}.wav", in_excerpt(*np.zeros((2, 4 * RATE_HZ))), RATE_HZ)
        entries[f"excerpt{number}"] = excerpt(split, number, 2, "dorian")
        number += 1
    list_file = root / "hooktheory" / "Hooktheory.json.gz"
    list_file.write_bytes(gzip.compress(json.dumps(entries).encode()))
    steps = root / "giantsteps-key-dataset"
    for folder in ("audio", "annotations/key"):
        (steps / folder).mkdir(parents=True)
    for i, key in enumerate(TAUGHT):
        wave = triad(key.tonic, key.mode, 14 * RATE_HZ)
        soundfile.write(steps / "audio" / f"{i + 1}.LOFI.mp3", wave, RATE_HZ, format="WAV")
        (steps / "annotations" / "key" / f"{i + 1}.LOFI.key").write_text(str(key))
    return root


def test_keys_are_learned_from_excerpts_and_asked_of_whole_tracks(keys, tmp_path):
    run = Run(
        "chroma-frames", "hooktheory_giantsteps_key", protocol="musicfm",
        train="steps=120,validate_every_steps=60,learning_rate=3e-3",
    )  # fmt: skip
    result = evaluate(run, data_root=keys, model_out=tmp_path / "model")
    assert result.scores == {"key_weighted": 1.0, "key_weighted_symmetric": 1.0}
    assert [p.reference for p in result.predictions] == [str(k) for k in TAUGHT]
    answers_like_the_run(
        result, tmp_path / "model", keys, lambda track_id: f"giantsteps-key-dataset/audio/{track_id}.LOFI.mp3"
    )
    # Twelve seconds of 14, and the last twelve, a frame every two seconds.
    (one,) = predict([keys / "giantsteps-key-dataset" / "audio" / "1.LOFI.mp3"], [tmp_path / "model"])
    assert one.answer.starts_seconds == (0.0, 2.0) and one.answer.logits.shape == (7, 25)


# Sections ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Noise, low tones and high tones, for eight seconds each or so."""
    folder, rng = tmp_path_factory.mktemp("songs"), np.random.default_rng(0)
    sounds = {"intro": 48, "verse": 60, "chorus": 84}
    examples = []
    for i in range(8):
        bounds = [0.0, 7.0 + 0.5 * i, 15.5 + 0.25 * i, 24.0]
        names = [list(sounds)[(i + j) % 3] for j in range(3)]
        parts = [
            0.2 * tone(sounds[name], round(b * RATE_HZ) - round(a * RATE_HZ))
            for name, (a, b) in zip(names, pairwise(bounds), strict=True)
        ]
        path = folder / f"{i}.wav"
        wave = np.concatenate(parts)
        soundfile.write(path, wave + 0.001 * rng.standard_normal(len(wave)), RATE_HZ)
        segments = Segments(np.stack([bounds[:-1], bounds[1:]], axis=1), tuple(names))
        examples.append(Example(str(i), path, segments))
    return examples


def test_sections_are_found_and_end_with_the_song(songs, tmp_path):
    target = SectionTarget(("intro", "verse", "chorus"), 5.0)
    config = AdaptConfig(
        steps=120, batch_size=6, learning_rate=3e-3, validate_every_steps=60, crop_seconds=24.0
    )
    trunk = load_backbone("logmel-frames")
    inject(trunk, "probe")
    adaptation = train_adaptation(
        trunk, target, songs[:6], songs[6:], BOUNDARY_HR05_F, config, tmp_path / "run"
    )
    for example in songs[6:]:
        answer = answer_track(adaptation.model, example.path)
        accuracy = TASKS["harmonix"].metrics[1].per_track(example.annotation, answer.annotation)
        assert accuracy > 0.8
        assert answer.annotation.intervals_seconds[0, 0] == 0.0
        assert answer.annotation.intervals_seconds[-1, 1] == pytest.approx(24.0, abs=0.2)


# Refusals ----------------------------------------------------------------------------------------------------


def test_protocols_and_backbones_that_cannot_answer_about_frames_say_what_can(clicks, tmp_path):
    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            evaluate(dataclasses.replace(BEAT_RUN, **changes), data_root=clicks, store_dir=tmp_path / "store")

    able = r"Use a protocol that trains on frames: marble-unconstrained, musicfm, petl"
    refused(rf"'jukemir-single' probes one vector per window.*'scores-beats' asks about every frame\. {able}",
            protocol="jukemir-single", train="")  # fmt: skip
    refused("chroma gives one vector per clip, and this question is about every frame.*chroma-frames",
            backbone="chroma")  # fmt: skip
    refused(r"'marble-v1-separation' cannot be asked 'scores-beats'.*Use one of: .*musicfm",
            protocol="marble-v1-separation", train="")  # fmt: skip
    refused("no window policy 'sometimes'", train="windows=sometimes")
    assert not (tmp_path / "store").exists()


def test_the_protocol_that_is_used_where_nobody_names_one():
    expected = {
        ("scores-beats", "probe"): "musicfm",
        ("scores-beats", "lora:rank=4"): "petl",
        ("gtzan_genre", "probe"): "jukemir-single",
        ("gtzan_genre", "finetune"): "petl",
        ("musdb18", "probe"): "marble-v1-separation",
    }
    assert {pair: default_protocol(*pair) for pair in expected} == expected


# Windows of long tracks --------------------------------------------------------------------------------------


def frame_model(backbone="onset-frames", target=None, **options):
    trunk = load_backbone(backbone)
    inject(trunk, "probe")
    generator = torch.Generator().manual_seed(1)
    return AdaptedModel(
        trunk, target or BeatTarget("beat", decoder="peaks"), generator=generator, **options
    ).eval()


@pytest.mark.parametrize("seconds", [7.3, 2.0, 1.1, 4.001, 8.0])
def test_a_long_track_is_answered_from_its_beginning_to_its_end(tmp_path, seconds):
    rng = np.random.default_rng(0)
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * RATE_HZ)), RATE_HZ)
    model = frame_model(crop_seconds=2.0)
    answer = answer_track(model, path)
    rate = model.backbone.frame_rate_hz
    starts = [2.0 * i for i in range(int(seconds // 2.0))] or [0.0]
    if seconds > 2.0 and seconds % 2.0:
        starts.append(seconds - 2.0)  # the last window ends with the track
    assert answer.starts_seconds == pytest.approx(starts, abs=1e-4)
    assert answer.grid.num_frames == len(answer.logits)
    assert answer.grid.start_seconds == pytest.approx(-0.5 / rate)
    assert answer.grid.end_seconds == pytest.approx(seconds, abs=1.5 / rate)
    # Where one window alone heard a frame, it says what that window said.
    inside = answer.grid.positions(np.array([0.5, 1.0]))
    own = model.frame_grid(round(min(seconds, 2.0) * RATE_HZ)).positions(np.array([0.5, 1.0]))
    torch.testing.assert_close(answer.logits[inside], answer.window_logits[0][own].double())


def test_the_rest_behind_the_last_whole_window_is_heard(tmp_path):
    """Noise at the end of a hum: a head that looks at one high band says where."""
    model = frame_model("logmel-frames", ChordTarget(None), crop_seconds=2.0)
    with torch.no_grad():
        for p in model.head.parameters():
            p.zero_()
        model.head.hidden.weight[0, 100] = 1.0
        model.head.hidden.bias[0] = 200.0
        model.head.output.weight[7, 0] = 1.0
        model.head.output.bias[24] = 180.0  # above -20 dB it is class 7
    wave = 0.5 * np.sin(2 * np.pi * 110 * np.arange(round(5.3 * RATE_HZ)) / RATE_HZ)
    begins = round(5.0 * RATE_HZ)
    wave[begins:] += 0.3 * np.random.default_rng(0).standard_normal(len(wave) - begins)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, RATE_HZ, subtype="FLOAT")
    annotation = answer_track(model, path).annotation
    assert annotation.labels == ("N", "G:maj")
    assert annotation.intervals_seconds[-1].tolist() == pytest.approx([5.0, 5.3], abs=0.08)


def test_a_part_of_a_file_is_answered_like_a_file_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    inside, outside = 0.1 * rng.standard_normal((2, 8 * RATE_HZ))
    soundfile.write(tmp_path / "whole.wav", in_excerpt(inside, outside), RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "quiet.wav", in_excerpt(inside, 0 * outside), RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "part.wav", inside[: 3 * RATE_HZ], RATE_HZ, subtype="FLOAT")
    for crop_seconds in (None, 1.0, 1.3):
        model = frame_model(crop_seconds=crop_seconds)
        part = answer_track(model, tmp_path / "part.wav")
        for name in ("whole.wav", "quiet.wav"):
            answer = answer_track(model, tmp_path / name, span_seconds=EXCERPT)
            torch.testing.assert_close(answer.logits, part.logits)
            assert answer.grid == part.grid and answer.starts_seconds == part.starts_seconds
    with pytest.raises(AudioError, match="no window can start"):
        answer_track(frame_model(), tmp_path / "part.wav", span_seconds=(4.0, 5.0))


# Training: spans, and what is kept ---------------------------------------------------------------------------

BASE = AdaptConfig(steps=6, batch_size=3, learning_rate=1e-3, validate_every_steps=3, crop_seconds=1.0)


@pytest.fixture(scope="module")
def excerpts(tmp_path_factory):
    """Chords in the middle of files; in half of them what lies around is silent."""
    folder, rng = tmp_path_factory.mktemp("excerpts"), np.random.default_rng(0)
    found = {"loud": [], "quiet": []}
    for i in range(4):
        chords = Segments(
            np.array([[0.0, 1.2 + 0.1 * i], [1.2 + 0.1 * i, 3.0]]), (TRIADS[i], TRIADS[(i + 1) % 4])
        )
        inside = chord_audio(chords)
        for name, outside in (
            ("loud", 0.3 * rng.standard_normal(5 * RATE_HZ)),
            ("quiet", np.zeros(5 * RATE_HZ)),
        ):
            path = folder / f"{name}{i}.wav"
            soundfile.write(path, in_excerpt(inside, outside), RATE_HZ, subtype="FLOAT")
            found[name].append(Example(f"{i}", path, chords, EXCERPT))
    return found


def as_whole_files(examples):
    """The same files without their spans; what lies behind the chords is called no chord."""
    found = []
    for e in examples:
        intervals = np.concatenate([e.annotation.intervals_seconds, [[3.0, 8.0]]])
        found.append(
            dataclasses.replace(
                e, annotation=Segments(intervals, (*e.annotation.labels, "N")), span_seconds=None
            )
        )
    return found


def losses(adaptation):
    lines = [json.loads(line) for line in adaptation.report.log.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def trained(examples, folder, backbone="logmel-frames", method="probe", config=BASE, target=None):
    options = {"weights": "random", "num_layers": 1} if backbone == "musicfm-mini" else {}
    trunk = load_backbone(backbone, **options)
    inject(trunk, method, torch.Generator().manual_seed(0))
    return train_adaptation(
        trunk, target or ChordTarget(8.0), examples, examples, CHORD_MAJMIN_WCSR, config, folder
    )


@pytest.mark.parametrize("crops", ["fixed", "random"])
def test_nothing_outside_of_a_part_is_heard_in_training(excerpts, tmp_path, crops):
    config = dataclasses.replace(BASE, crops=crops)
    loud, quiet = (trained(excerpts[k], tmp_path / k, config=config) for k in ("loud", "quiet"))
    assert losses(loud) == losses(quiet) and loud.report.best_score == quiet.report.best_score
    whole = trained(as_whole_files(excerpts["loud"]), tmp_path / "whole", config=config)
    assert losses(whole) != losses(loud)


@pytest.mark.parametrize(
    ("backbone", "method", "crops", "sentence"),
    [
        ("logmel-frames", "probe", "fixed", "frames of layer 0 are kept per window"),
        ("logmel-frames", "probe", "random", "nothing of the training is kept"),
        ("musicfm-mini", "probe", "fixed", "frames of layer 1 are kept per window"),
        ("musicfm-mini", "lora", "fixed", "the stem's output is kept per window"),
        ("musicfm-mini", "lora", "random", "kept per recording (4 of 4 fit)"),
        ("musicfm-mini", "prompt", "fixed", "the stem's output is kept per window"),
    ],
)  # fmt: skip
def test_keeping_the_frozen_part_changes_no_loss_of_frames(
    excerpts, tmp_path, backbone, method, crops, sentence
):
    examples = as_whole_files(excerpts["loud"])
    config = dataclasses.replace(BASE, crops=crops)
    kept = trained(examples, tmp_path / "a", backbone, method, config)
    plain = trained(examples, tmp_path / "b", backbone, method, dataclasses.replace(config, cache_gib=0.0))
    assert sentence in kept.caching and "cache_gib is 0" in plain.caching
    assert kept.cache_misses > 0 and plain.cache_misses == 0
    assert losses(kept) == pytest.approx(losses(plain), rel=1e-4)
    assert kept.report.best_score == pytest.approx(plain.report.best_score, abs=1e-6)


def test_a_lora_that_was_trained_on_frames_is_saved_and_loaded_and_answers_the_same(excerpts, tmp_path):
    adaptation = trained(excerpts["loud"], tmp_path / "run", "musicfm-mini", "lora")
    moved = [p.abs().sum() for n, p in adaptation.model.backbone.named_parameters() if p.requires_grad]
    assert moved and all(m > 0 for m in moved)
    save_adapter(adaptation.model, tmp_path / "adapter")
    for merge in (False, True):
        loaded = load_adapter(tmp_path / "adapter", merge=merge)
        assert loaded.target == ChordTarget(8.0) and loaded.policy.name == "whole-track"
        for example in excerpts["loud"][:2]:
            ours, theirs = (
                answer_track(m, example.path, span_seconds=EXCERPT) for m in (adaptation.model, loaded)
            )
            torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=1e-4 if merge else 0)
            assert theirs.grid == ours.grid and theirs.annotation.labels == ours.annotation.labels


def recording_metric(seen):
    """A score that remembers what it was asked about."""

    def per_track(reference, estimate):
        seen.append(estimate)
        return CHORD_MAJMIN_WCSR.per_track(reference, estimate)

    return mean_over_tracks("seen", per_track)


@pytest.mark.parametrize("windows", ["", "marble-v2-frames", "marble-v2", "marble-v1", "jukemir"])
@pytest.mark.parametrize("crop_seconds", [2.0, 4.0], ids=["longer", "shorter"])
def test_validation_answers_as_the_test_does(excerpts, tmp_path, windows, crop_seconds):
    """Tracks of 3 s in windows of 2 s, with a rest, and of 4 s, which they do not fill."""
    config = dataclasses.replace(
        BASE, steps=1, validate_every_steps=1, crop_seconds=crop_seconds, windows=windows, learning_rate=1e-9
    )
    seen: list[Segments] = []
    metric: Metric = recording_metric(seen)
    trunk = load_backbone("logmel-frames")
    inject(trunk, "probe")
    examples = excerpts["loud"]
    try:
        adaptation = train_adaptation(
            trunk, ChordTarget(8.0), examples, examples, metric, config, tmp_path / "run"
        )
    except ValueError as error:  # which is fine, if the test has no answer either
        assert "none of the 4 valid recordings can be used" in str(error)
        assert (windows, crop_seconds) in (("jukemir", 4.0), ("marble-v2", 4.0))
        with pytest.raises(AudioError, match=f"no window is long enough for the rule '{windows}'"):
            policy = WINDOW_POLICIES[windows]
            model = frame_model("logmel-frames", ChordTarget(8.0), crop_seconds=crop_seconds, policy=policy)
            answer_track(model, examples[0].path, span_seconds=EXCERPT)
        return
    validated = seen[-len(examples) :]
    for example, estimate in zip(examples, validated, strict=True):
        answer = answer_track(adaptation.model, example.path, span_seconds=EXCERPT)
        assert str(answer.annotation) == str(estimate)


# A model out of stored features --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "max_seconds"),
    [
        ("mfcc", None),
        ("musicfm-mini", None),
        ("musicfm-mini", 2.5),
        pytest.param("mert-v1-95m", None, marks=pytest.mark.slow),
    ],
)
def test_a_probe_that_was_written_answers_as_its_run_did(
    triads, tmp_path, monkeypatch, backbone, max_seconds
):
    """Also where a backbone hears a clip of 6 s in several pieces.

    max_seconds: what it is made to hear at once.
    """

    def load(*arguments, **options):
        loaded = load_backbone(*arguments, **options)
        loaded.max_seconds = max_seconds or loaded.max_seconds
        return loaded

    monkeypatch.setattr("audiation.stored_vectors.load_backbone", load)
    monkeypatch.setattr("audiation.adapters.load_backbone", load)
    given: list[torch.Tensor] = []
    answer = probe_evaluation.track_logits

    def remember(target, logits, track_of_window, rule="logits_mean"):
        given.append(mean_per_track(logits, track_of_window))
        return answer(target, logits, track_of_window, rule)

    monkeypatch.setattr(probe_evaluation, "track_logits", remember)
    run = Run(backbone, "scores-timbre")
    if backbone != "mfcc":
        run = dataclasses.replace(run, weights="random", num_layers=1)
    result = evaluate(run, data_root=triads, model_out=tmp_path / "model")
    paths = [triads / "scores" / "clips" / f"{p.track_id}.wav" for p in result.predictions]
    found = list(predict(paths, [tmp_path / "model"]))
    logits = torch.stack([p.answer.logits for p in found])
    if backbone == "mfcc":
        answers_like_the_run(result, tmp_path / "model", triads)
    # The logarithm of probabilities differs from logits by a constant.
    ours, theirs = (x.double() - x.double().mean(1, keepdim=True) for x in (logits, given[-1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


# Stems ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def musdb(tmp_path_factory):
    root, rate = tmp_path_factory.mktemp("data"), 44_100
    places = (
        "train/Foo - Bar",
        "train/Foo - Baz",
        f"train/{VALIDATION_TITLES[0]}",
        "test/A - B",
        "test/C - D",
    )
    for number, place in enumerate(places):
        folder = root / "musdb18hq" / place
        folder.mkdir(parents=True)
        time = np.arange(rate) / rate
        stems = {
            name: np.stack(
                [0.1 * np.sin(2 * np.pi * 110 * 2 ** ((7 * k + number) / 12) * time + k)] * 2, axis=1
            )
            for k, name in enumerate(STEMS)
        }
        for name, samples in (stems | {"mixture": sum(stems.values())}).items():
            soundfile.write(folder / f"{name}.wav", samples, rate, subtype="FLOAT")
    return root


SEPARATION_RUN = Run(
    "musicfm-mini", "musdb18", protocol="marble-v1-separation", weights="random", num_layers=1,
    train="steps=4,batch_size=2,validate_every_steps=2,hidden_size=8,segment_seconds=0.5,valid_seconds=0.5",
)  # fmt: skip


def test_stems_are_separated_and_scored_at_both_rates(musdb, tmp_path):
    result = evaluate(SEPARATION_RUN, data_root=musdb)
    assert list(result.scores) == [m.name for m in SEPARATION_METRICS] and len(result.scores) == 10
    assert all(np.isfinite(v) for v in result.scores.values())
    for rate in ("", "_24khz"):
        of_stems = [result.scores[f"sdr_mdx2021{rate}_{stem}"] for stem in STEMS]
        assert result.scores[f"sdr_mdx2021{rate}"] == pytest.approx(np.mean(of_stems))
    assert [p.track_id for p in result.predictions] == ["A - B", "C - D"]
    assert result.predictions[0].reference == "vocals, drums, bass, other"
    assert "24000 Hz: vocals" in result.predictions[0].estimate
    assert result.run["layer"] is None and result.run["layers"] == [1]
    assert result.run["config"]["steps"] == 4 and result.departures
    assert result.coverage == 1.0 and result.failures == ()
    result.save(tmp_path / "result.json")
    assert Run.of(Result.load(tmp_path / "result.json")) == SEPARATION_RUN
    assert not list((tmp_path / "cache" / "runs").glob("*"))


def test_separation_has_a_protocol_of_its_own(musdb, clicks, tmp_path):
    for task, protocol in (("musdb18", "petl"), ("musdb18", "musicfm"), ("musdb18", "jukemir-single")):
        message = rf"'{protocol}' cannot be asked 'musdb18'.*one of: marble-v1-separation\."
        with pytest.raises(ValueError, match=message):
            evaluate(
                dataclasses.replace(SEPARATION_RUN, task=task, protocol=protocol, train=""), data_root=musdb
            )
    for task in ("scores-key", "scores-beats", "scores-timbre"):
        with pytest.raises(ValueError, match=rf"'marble-v1-separation' cannot be asked '{task}'"):
            evaluate(dataclasses.replace(SEPARATION_RUN, task=task), data_root=clicks)
    with pytest.raises(ValueError, match="cannot be written as a model yet; leave model_out out"):
        evaluate(SEPARATION_RUN, data_root=musdb, model_out=tmp_path / "model")
    with pytest.raises(ValueError, match="leaves out vocals, other"):
        evaluate(dataclasses.replace(SEPARATION_RUN, train="stems=drums+bass"), data_root=musdb)
    with pytest.raises(ValueError, match="no field 'crops'"):
        evaluate(dataclasses.replace(SEPARATION_RUN, train="crops=fixed"), data_root=musdb)
    assert not (tmp_path / "model").exists()
