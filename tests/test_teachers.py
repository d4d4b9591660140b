"""Teachers: their names, features of pieces against those of the whole, clusters, stored codes, the command."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from torch import Tensor

from audiation import corpus_commits, teacher_commands
from audiation.backbones.hubert_layout import HubertBackbone, build
from audiation.corpus import Corpus, CorpusError, CropBatches
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_sources import find_sources
from audiation.features import LogMel
from audiation.folder_lock import FolderLockedError, locked
from audiation.objectives.hubert import Hubert
from audiation.objectives.mert import Mert
from audiation.registry import UnknownNameError
from audiation.teachers import TEACHERS, Recorded, TeacherName, TeacherRequest, parse_teacher, sampling
from audiation.teachers.kmeans import KMeansSettings, KMeansTeacher, fit_kmeans, read_kmeans
from audiation.teachers.layer_features import LayerFeatures
from audiation.teachers.mfcc import MfccFeatures
from audiation.teachers.sampling import draw_sample
from audiation.teachers.spectra import FineChroma, LogMelBands, SpectrumFeatures
from audiation.teachers.targets import CodebookUsage, compute_targets, open_teacher, usage_of
from audiation.workers import Answer
from corpus_files import tune, write

RATE_HZ = 16_000
LENGTHS_SECONDS = (4.0, 1.3, 6.1)
TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
FEW = KMeansSettings(8, share=0.6, batch_frames=100, num_inits=3, max_rounds=60, patience=10_000)


def make_corpus(folder: Path, rate_hz: int = RATE_HZ, lengths: tuple[float, ...] = LENGTHS_SECONDS) -> Corpus:
    for i, seconds in enumerate(lengths):
        write(folder / "music" / f"{i}.wav", tune(i, seconds, rate_hz), rate_hz)
    return build_corpus(
        find_sources([folder / "music"]), folder / "corpus", "tunes", BuildSettings(rate_hz), workers=0
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path)


def backbone(max_seconds: float = 1.0) -> HubertBackbone:
    return build(TINY, "tiny", RATE_HZ, generator=torch.Generator().manual_seed(0), max_seconds=max_seconds)


def noise(num_samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# Names -----------------------------------------------------------------------------------------------


def test_names_are_taken_apart() -> None:
    assert parse_teacher("encodec") == TeacherName("encodec", "encodec")
    assert parse_teacher("mfcc39-km500") == TeacherName("mfcc39-km500", "mfcc39", None, 500)
    assert parse_teacher("layer6-km2000") == TeacherName("layer6-km2000", "layer", 6, 2000)
    marked = TeacherName("layer6.1a2b3c4d-km2000", "layer", 6, 2000, "1a2b3c4d")
    assert parse_teacher("layer6.1a2b3c4d-km2000") == marked
    assert parse_teacher("layer11-km2") == TeacherName("layer11-km2", "layer", 11, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mfcc39", "needs a number of clusters"),
        ("mfcc39-km", "needs a number of clusters"),
        ("mfcc39-km1", "needs a number of clusters"),
        ("mfcc39-km05", "needs a number of clusters"),
        ("logmel-km3x", "needs a number of clusters"),
        ("encodec-km8", "gives codes by itself"),
        ("encodec8", "gives codes by itself"),
    ],
)
def test_names_that_say_too_little_or_too_much_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_teacher(name)


def test_unknown_teachers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'chroma'"):
        parse_teacher("croma-km200")


@pytest.mark.parametrize(
    "settings", [Mert(), Mert(teacher="kmeans"), Hubert(), Hubert(teacher="layer6-km2000")]
)
def test_objectives_ask_for_teachers_that_there_are(settings: Mert | Hubert) -> None:
    for target in settings.targets:
        assert parse_teacher(target).kind in TEACHERS


# Pieces of recordings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (1, 3, [2, 3]),
        (-2, 2, [0, 0, 1, 2]),
        (3, 6, [4, 0, 0]),
        (-1, 5, [0, 1, 2, 3, 4, 0]),
        (-3, -1, [0, 0]),
        (5, 7, [0, 0]),
        (2, 2, []),
    ],
)
def test_silence_is_around_a_recording(start: int, stop: int, expected: list[int]) -> None:
    recording = Recorded.of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert recording.between(start, stop).tolist() == expected


def spectra() -> list[SpectrumFeatures]:
    return [
        SpectrumFeatures("logmel", RATE_HZ, LogMelBands(RATE_HZ)),
        SpectrumFeatures("chroma", RATE_HZ, FineChroma(RATE_HZ)),
    ]


@pytest.mark.parametrize("features", spectra(), ids=["logmel", "chroma"])
@pytest.mark.parametrize("count", [1, 13])
def test_any_frames_of_a_spectrum_are_those_of_the_whole(features: SpectrumFeatures, count: int) -> None:
    recording = Recorded.of(noise(16_100))
    total = features.num_frames(16_100)
    whole = features.frames(recording, 0, total)
    assert whole.shape == (50, features.num_features)
    parts = [features.frames(recording, i, min(count, total - i)) for i in range(0, total, count)]
    assert largest_difference(torch.cat(parts), whole) < 1e-3  # decibels; of chroma at most 1


def test_logmel_is_the_spectrum_of_this_package_away_from_the_ends() -> None:
    features = spectra()[0]
    waveform = noise(16_000)
    expected = LogMel(RATE_HZ, 2048, 320, 229)(waveform[None])[0].t()
    made = features.frames(Recorded.of(waveform), 0, 50)
    assert largest_difference(made[4:46], expected[4:46]) < 1e-3
    assert (features.num_features, features.rate_hz) == (229, 50.0)


@pytest.mark.parametrize("octave", [1, 2, 4])
def test_a_note_is_the_same_pitch_class_in_every_octave(octave: int) -> None:
    features = spectra()[1]
    times = torch.arange(RATE_HZ) / RATE_HZ
    frames = features.frames(Recorded.of(torch.sin(2 * torch.pi * 440.0 * octave * times)), 10, 30)
    assert frames.shape == (30, 264)
    assert bool((frames.max(1).values == 1.0).all())
    # A is 9 semitones above C, and a class is 1/22 of one: within a quarter tone of it.
    assert bool(((frames.argmax(1) - 9 * 22).abs() <= 11).all())


def test_silence_has_features() -> None:
    silence = Recorded.of(torch.zeros(3200))
    logmel, chroma = spectra()
    assert bool((logmel.frames(silence, 0, 10) == -100.0).all())
    assert bool((chroma.frames(silence, 0, 10) == 0.0).all())


@pytest.mark.parametrize("features", spectra(), ids=["logmel", "chroma"])
def test_a_recording_shorter_than_a_frame_has_one(features: SpectrumFeatures) -> None:
    assert features.num_frames(5) == 1
    assert bool(features.frames(Recorded.of(noise(5)), 0, 1).isfinite().all())


# Layers ----------------------------------------------------------------------------------------------


def test_layers_are_those_of_chunks_as_long_as_the_model_hears() -> None:
    model = backbone()
    features = LayerFeatures(model, 1)
    waveform = noise(40_000)
    total = features.num_frames(40_000)
    assert (features.block_frames, total) == (49, model.num_frames(40_000))
    whole = features.frames(Recorded.of(waveform), 0, total)
    assert whole.shape == (124, 8)
    with torch.no_grad():
        # 48 * 320 + 400 samples have 49 frames; the last chunk begins 49 frames before the end.
        for first, begin in ((0, 0), (49, 49 * 320), (75, 75 * 320)):
            expected = model(waveform[None, begin : begin + 15_760], layers=[1]).layers[1][0]
            taken = slice(98, 124) if first == 75 else slice(first, first + 49)
            skipped = 23 if first == 75 else 0
            assert largest_difference(whole[taken], expected[skipped:]) < 1e-4


@pytest.mark.parametrize(("first", "count"), [(0, 124), (10, 5), (40, 30), (97, 27), (48, 2)])
def test_any_frames_of_a_layer_are_those_of_the_whole(first: int, count: int) -> None:
    features, recording = LayerFeatures(backbone(), 2), Recorded.of(noise(40_000))
    whole = features.frames(recording, 0, 124)
    assert largest_difference(features.frames(recording, first, count), whole[first : first + count]) < 1e-4


def test_short_recordings_are_one_chunk() -> None:
    model = backbone()
    features = LayerFeatures(model, 2)
    waveform = noise(8000)
    with torch.no_grad():
        expected = model(waveform[None], layers=[2]).layers[2][0]
    assert largest_difference(features.frames(Recorded.of(waveform), 0, 24), expected) < 1e-6
    assert features.num_frames(10) == 1
    assert features.frames(Recorded.of(noise(10)), 0, 1).shape == (1, 8)


def test_layers_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tiny has layers 0..2, got 3"):
        LayerFeatures(backbone(), 3)
    make = TEACHERS["layer"].features
    assert make is not None
    with pytest.raises(ValueError, match="need its number and a backbone"):
        make(TeacherRequest(RATE_HZ, number=6))
    asked = TeacherRequest(24_000, 0, "1a2b3c4d", "conformer", "random")
    with pytest.raises(
        ValueError, match=r"of weights 1a2b3c4d\.\.\., and these of conformer are \w{8}\.\.\.\. Use"
    ):
        make(asked)
    with pytest.raises(ValueError, match="conformer hears 24000 Hz, and the corpus has 16000 Hz"):
        make(replace(asked, sample_rate_hz=RATE_HZ, weights_mark=None))


# Clusters --------------------------------------------------------------------------------------------


def test_the_sample_is_a_share_of_all_frames(corpus: Corpus) -> None:
    features = MfccFeatures(RATE_HZ, 13)
    totals = [features.num_frames(int(n)) for n in corpus.num_samples]
    everything = draw_sample(corpus, features, 1.0, 0, 10**9)
    assert [s.num_frames for s in everything] == totals
    drawn = [
        sum(s.num_frames for s in draw_sample(corpus, features, 0.3, seed, 10**9)) for seed in range(200)
    ]
    assert np.mean(drawn) == pytest.approx(0.3 * sum(totals), rel=0.1)
    capped = [sum(s.num_frames for s in draw_sample(corpus, features, 0.3, seed, 100)) for seed in range(200)]
    assert np.mean(capped) == pytest.approx(100, rel=0.15)
    rows = [(s.row, s.num_frames) for s in everything]
    assert [row for row, _ in rows] == [0, *np.cumsum([n for _, n in rows])[:-1]]
    for sampled in everything:
        assert all(first + count <= totals[sampled.recording] for first, count in sampled.blocks)


def test_codes_are_the_nearest_centroids(corpus: Corpus, tmp_path: Path) -> None:
    features = MfccFeatures(RATE_HZ, 13)
    teacher = fit_kmeans(corpus, features, FEW, tmp_path / "km")
    recording = Recorded.of(noise(20_000))
    x_NF = features.frames(recording, 0, features.num_frames(20_000))
    expected = torch.cdist(x_NF, teacher.centroids_KF).argmin(1)
    assert torch.equal(teacher.codes(recording), expected[None])
    fit = json.loads((tmp_path / "km" / "kmeans.json").read_text())
    assert sum(fit["histogram"]) == fit["num_frames"] > 500
    assert fit["inertia"] < fit["first_inertia"]
    assert fit["corpus"]["hash"] == corpus.hash
    kept = {p.name for p in (tmp_path / "km").iterdir()}
    assert kept == {".lock", "centroids.safetensors", "kmeans.json"}


def test_centroids_are_those_of_scikit_learn(corpus: Corpus, tmp_path: Path) -> None:
    """All frames are one batch, so that its own fit is this one, from the same first centroids."""
    features = MfccFeatures(RATE_HZ, 13)
    num_frames = sum(s.num_frames for s in draw_sample(corpus, features, 1.0, 0, 10**9))
    once = replace(FEW, share=1.0, batch_frames=num_frames, num_inits=1, max_rounds=1)
    begun = fit_kmeans(corpus, features, once, tmp_path / "begun")
    rows = []
    for sampled in draw_sample(corpus, features, 1.0, 0, 10**9):
        whole = Recorded.of(corpus.read(sampled.recording, 0, int(corpus.num_samples[sampled.recording])))
        rows += [features.frames(whole, first, count) for first, count in sampled.blocks]
    drawn = np.random.default_rng((0, 2, 0)).integers(num_frames, size=num_frames)
    batch = torch.cat(rows).numpy()[np.sort(drawn)]
    rng = np.random.default_rng((0, 1, 0))
    seen = torch.cat(rows).numpy()[np.sort(rng.choice(num_frames, num_frames, replace=False))]
    first, _ = kmeans_plusplus(seen, 8, random_state=int(rng.integers(2**31)))
    theirs = MiniBatchKMeans(8, init=first, n_init=1, reassignment_ratio=0.0, random_state=0).partial_fit(
        batch
    )
    assert largest_difference(begun.centroids_KF, torch.from_numpy(theirs.cluster_centers_)) < 1e-4


def test_a_killed_fit_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the folder in the middle of it is what a process leaves that is killed there."""
    monkeypatch.setattr(corpus_commits, "COMMIT_SECONDS", 0.0)
    features, settings = MfccFeatures(RATE_HZ, 13), replace(FEW, share=1.0)

    def report(what: str, done: int, total: int) -> None:
        if done == {"sample": 2, "first centroids": 2, "clusters": 200}[what]:
            shutil.copytree(tmp_path / "whole", tmp_path / what)

    whole = fit_kmeans(corpus, features, settings, tmp_path / "whole", progress=report)
    begins = {}
    for what in ("sample", "first centroids", "clusters"):
        steps: list[tuple[str, int]] = []
        resumed = fit_kmeans(
            corpus, features, settings, tmp_path / what, progress=lambda *r, s=steps: s.append((r[0], r[1]))
        )
        begins[what] = steps[0]
        assert torch.equal(resumed.centroids_KF, whole.centroids_KF)
        assert resumed.fit == whole.fit
    assert begins["sample"] == ("sample", 3)
    assert begins["first centroids"] == ("first centroids", 3)
    assert begins["clusters"] == ("clusters", 300)


def test_clusters_that_are_there_are_read(corpus: Corpus, tmp_path: Path) -> None:
    features = MfccFeatures(RATE_HZ, 13)
    first = fit_kmeans(corpus, features, FEW, tmp_path / "km")
    assert torch.equal(fit_kmeans(corpus, features, FEW, tmp_path / "km").centroids_KF, first.centroids_KF)
    with pytest.raises(ValueError, match="was fitted with"):
        fit_kmeans(corpus, features, replace(FEW, seed=1), tmp_path / "km")
    with pytest.raises(ValueError, match="has clusters of"):
        fit_kmeans(corpus, MfccFeatures(RATE_HZ, 20), FEW, tmp_path / "km")
    (tmp_path / "km" / "centroids.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="no clusters that can be read"):
        read_kmeans(tmp_path / "km", features)


def test_what_cannot_be_clustered_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    features = MfccFeatures(RATE_HZ, 13)
    many = replace(FEW, num_clusters=5000, batch_frames=5000)
    with pytest.raises(ValueError, match="5000 clusters need as many frames"):
        fit_kmeans(corpus, features, many, tmp_path / "km")
    with pytest.raises(ValueError, match="batch_frames must be at least the 200 clusters, got 100"):
        replace(FEW, num_clusters=200)
    with pytest.raises(ValueError, match="share over 0"):
        replace(FEW, share=0.0)


# Stored codes ----------------------------------------------------------------------------------------


class Half:
    """A teacher that counts: code = loudness of a frame of 160 samples."""

    sample_rate_hz, rate_hz = RATE_HZ, 100.0
    num_codes: tuple[int, ...] = (4, 2)

    def __init__(self, version: int = 1) -> None:
        self.version = version

    def codes(self, recording: Recorded) -> Tensor:
        frames = recording.between(0, recording.num_samples // 160 * 160).view(-1, 160)
        level = (frames.abs().mean(1) * 8).long().clamp(max=3)
        return torch.stack([level, (level > 1).long()])

    def record(self) -> dict[str, object]:
        return {"teacher": "half", "version": self.version}


def test_codes_are_stored_beside_the_corpus(corpus: Corpus) -> None:
    done: list[tuple[str, int, int]] = []
    stored = compute_targets(corpus, "half", Half(), progress=lambda *report: done.append(report))
    assert done == [("codes", i, 3) for i in (1, 2, 3)]
    assert (stored.rate_hz, stored.num_codes) == (100.0, (4, 2))
    for recording in range(3):
        whole = Recorded.of(corpus.read(recording, 0, int(corpus.num_samples[recording])))
        assert torch.equal(stored.read(recording, 0, 10_000), Half().codes(whole))


def test_workers_give_the_same_codes(corpus: Corpus, tmp_path: Path) -> None:
    teacher = fit_kmeans(corpus, MfccFeatures(RATE_HZ, 13), FEW, tmp_path / "km")
    stored = compute_targets(corpus, "mfcc39-km8", teacher, workers=1)
    for recording in range(3):
        whole = Recorded.of(corpus.read(recording, 0, int(corpus.num_samples[recording])))
        assert torch.equal(stored.read(recording, 0, 10_000), teacher.codes(whole))


def test_records_of_mfcc_have_the_rate_of_the_recording() -> None:
    assert MfccFeatures(16_000, 13).record() != MfccFeatures(24_000, 13).record()


def test_workers_notice_a_corpus_that_was_built_anew(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same numbers are other recordings then."""

    def here(jobs, answer, workers, threads):
        yield from (Answer(job, message) for job in jobs for message in answer(job))

    monkeypatch.setattr(sampling, "serve", here)  # what the workers would do, in this process
    before = Corpus(corpus.location)
    write(tmp_path / "music" / "0 new.wav", tune(9, 1.0, RATE_HZ), RATE_HZ)
    make_corpus(tmp_path)
    with pytest.raises(CorpusError, match="was built anew meanwhile"):
        compute_targets(before, "half", Half(), workers=1)
    assert compute_targets(Corpus(corpus.location), "half", Half(), workers=1).num_frames(0) == 100


def test_two_processes_do_not_fit_the_same_clusters(corpus: Corpus, tmp_path: Path) -> None:
    features = MfccFeatures(RATE_HZ, 13)
    with locked(tmp_path / "km", "fitting"), pytest.raises(FolderLockedError, match="km is in use by"):
        fit_kmeans(corpus, features, FEW, tmp_path / "km")


def test_a_damaged_fit_says_what_to_do(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_commits, "COMMIT_SECONDS", 0.0)
    features = MfccFeatures(RATE_HZ, 13)

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("first centroids", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_kmeans(corpus, features, FEW, tmp_path / "km", progress=stop)
    for name, message in (
        ("state.safetensors", "the state of a begun fit, cannot be read"),
        ("sample.f32", "the begun sample of a fit, cannot be read"),
        ("begun.json", "cannot be read"),
    ):
        (tmp_path / "km" / name).write_bytes(b"[")
        with pytest.raises(ValueError, match=rf"{name}.*{message}.*Delete its folder to fit anew"):
            fit_kmeans(corpus, features, FEW, tmp_path / "km")


def test_only_what_is_missing_is_computed(corpus: Corpus) -> None:
    class Broken(Half):
        calls = 0

        def codes(self, recording: Recorded) -> Tensor:
            Broken.calls += 1
            if Broken.calls == 2:
                raise OSError("the disk is gone")
            return super().codes(recording)

    with pytest.raises(OSError, match="the disk is gone"):
        compute_targets(corpus, "half", Broken())
    with pytest.raises(CorpusError, match="1 of 3 recordings"):
        corpus.open_targets("half")
    Broken.calls = 10
    compute_targets(corpus, "half", Broken())
    assert Broken.calls == 12


def test_codes_of_two_teachers_never_meet(corpus: Corpus) -> None:
    compute_targets(corpus, "half", Half())
    with pytest.raises(ValueError, match=r"has codes of .*'version': 1.*, not of .*'version': 2"):
        compute_targets(corpus, "half", Half(version=2))


def test_usage_is_counted_over_all_codes(corpus: Corpus) -> None:
    stored = compute_targets(corpus, "half", Half())
    first, second = usage_of(corpus, stored)
    codes = torch.cat([stored.read(i, 0, 10_000)[1] for i in range(3)]).float()
    p = float(codes.mean())
    assert second.num_codes == 2 and second.num_used == 2
    assert second.most_frequent == pytest.approx(max(p, 1 - p))
    assert second.perplexity == pytest.approx(np.exp(-p * np.log(p) - (1 - p) * np.log(1 - p)))
    assert first.num_codes == 4 and 2 <= first.num_used <= 4


# The command -----------------------------------------------------------------------------------------


def spoken() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200), text


def test_the_command_fits_computes_and_says_how_codes_are_used(corpus: Corpus) -> None:
    console, text = spoken()
    stored = teacher_commands.targets(corpus.location, "mfcc39-km20", console=console)
    assert stored is not None and stored.num_codes == (20,)
    assert "20 of 20 clusters in the sample" in text.getvalue()
    assert "codebook 0: " in text.getvalue()
    opened = open_teacher("mfcc39-km20", corpus)
    assert isinstance(opened, KMeansTeacher)
    whole = Recorded.of(corpus.read(0, 0, int(corpus.num_samples[0])))
    assert torch.equal(stored.read(0, 0, 10_000), opened.codes(whole))
    batch = CropBatches(corpus, 1.0, 2, 1, seed=0, targets=["mfcc39-km20"]).micro_batch(0, 0)
    assert batch.targets["mfcc39-km20"].shape[:2] == (2, 1)
    assert 97 <= batch.targets["mfcc39-km20"].shape[2] <= 100


def test_the_command_encodes_with_encodec(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 24_000, (1.1, 1.0))
    console, text = spoken()
    stored = teacher_commands.targets(corpus.location, "encodec", weights="random", console=console)
    assert stored is not None and stored.num_codes == (1024,) * 8 and stored.rate_hz == 75.0
    assert [stored.num_frames(i) for i in range(2)] == [83, 75]
    assert text.getvalue().count("most codes never occur") == 8


def test_the_command_lists_teachers() -> None:
    console, text = spoken()
    assert teacher_commands.targets("nowhere", None, console=console) is None
    for name in ("encodec", "logmel-km300", "chroma-km200", "mfcc39-km500", "mfcc60-km500", "layer6-km2000"):
        assert name in text.getvalue()


def test_the_command_refuses_what_does_not_go_together(corpus: Corpus) -> None:
    console, _ = spoken()
    with pytest.raises(ValueError, match="teacher 'mfcc39' has no weights"):
        teacher_commands.targets(corpus.location, "mfcc39-km20", weights="random", console=console)
    with pytest.raises(ValueError, match="has 20 clusters, and the settings 8"):
        open_teacher("mfcc39-km20", corpus, settings=FEW)
    with pytest.raises(CorpusError, match="no finished corpus"):
        teacher_commands.targets(str(corpus.location) + "-other", "encodec", console=console)


def test_usage_is_a_line_per_codebook(corpus: Corpus) -> None:
    stored = compute_targets(corpus, "half", Half())
    console, text = spoken()
    teacher_commands.show_usage(
        console, stored, [CodebookUsage(4, 4, 3.5, 0.4), CodebookUsage(2, 2, 1.5, 0.9)]
    )
    assert "codebook 0: 4 of 4 codes (100%), perplexity 3.5, the most frequent 40.0%" in text.getvalue()
