"""What is kept of the frozen part equals what would be computed anew, within bounds, and outlives whoever kept it."""

from __future__ import annotations

import errno
import itertools
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from torch import Tensor, nn

from audiation import output_cache, output_table
from audiation.audio import (
    AudioError,
    AudioWindowError,
    MissingAudioError,
    NotAudioError,
    TruncatedAudioError,
    content_hash,
    load_audio,
)
from audiation.backbones import Backbone
from audiation.backbones.base import LocalStem
from audiation.backbones.mert import Mert
from audiation.backbones.mert import build as build_mert
from audiation.backbones.precision import set_precision
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.output_cache import CacheStats, Clip, OutputCache, Prepared, cache_plan, load_window
from audiation.output_table import OutputTable, OutputTableError

KEY = "0123456789abcdef" * 4
HOP, RATE = 960, 24_000  # of MusicFM
TOY_HOP, TOY_RATE, TOY_DIM = 40, 4000, 3


class Toy(Backbone):
    """A local stem of hardly any width: frames of 40 samples, each of which sees its neighbours."""

    stem: nn.Conv1d

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.name, self.weights_hash = "toy", f"toy-{seed}"
        self.sample_rate_hz, self.hop_samples, self.min_samples = TOY_RATE, TOY_HOP, TOY_HOP
        self.frame_rate_hz, self.max_seconds = TOY_RATE / TOY_HOP, None
        self.dim, self.num_layers = TOY_DIM, 2
        self.normalisation, self.accepts_padding = "none", False
        self.local_stem = LocalStem(step_samples=TOY_HOP, edge_frames=1)
        self.stem = nn.Conv1d(TOY_HOP, TOY_DIM, 3, padding=1)
        for parameter in self.stem.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=torch.Generator().manual_seed(seed))

    def num_frames(self, num_samples: int) -> int:
        return num_samples // TOY_HOP

    def project(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        frames = waveform[:, : self.num_frames(waveform.shape[1]) * TOY_HOP].unflatten(1, (-1, TOY_HOP))
        return self.stem(frames.mT).mT


class Recording:
    """A file of noise, loud and soft in turn, and its clips."""

    def __init__(self, path: Path, num_samples: int, rate: int, seed: int = 0, **options: Any) -> None:
        times = np.arange(num_samples) / rate
        noise = np.random.default_rng(seed).standard_normal(num_samples)
        soundfile.write(path, 0.1 * noise * (1.2 + np.sin(5 * times)), rate, **options)
        self.path, self.content, self.num_samples = path, content_hash(path), num_samples

    def clip(self, start_sample: int, num_samples: int) -> Clip:
        return Clip(self.path, self.content, start_sample, num_samples)

    @property
    def size(self) -> tuple[str, int]:
        return self.content, self.num_samples


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return load_backbone("musicfm-mini", "random")


@pytest.fixture(scope="module")
def mert() -> Mert:
    """Its first layer normalises over the whole clip, so no output of it can be cropped."""
    config = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    backbone = build_mert(config, "mert-tiny", RATE)
    backbone.weights_hash = "mert-tiny-1"
    return backbone.eval()


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """9.3 s at MusicFM's rate; no multiple of its hop."""
    return Recording(tmp_path_factory.mktemp("music") / "music.wav", 232 * HOP + 517, RATE, subtype="FLOAT")


@pytest.fixture
def toys(tmp_path: Path) -> list[Recording]:
    """Five recordings of 100 frames at the toy's rate."""
    folder = tmp_path / "audio"
    folder.mkdir()
    return [Recording(folder / f"{i}.wav", 100 * TOY_HOP, TOY_RATE, seed=i) for i in range(5)]


TOY_BYTES = 100 * TOY_DIM * 4  # the stem's output for one of these


def stem_cache(backbone: Backbone, **changes: Any) -> OutputCache:
    return OutputCache(backbone, "stem", **{"layer": 1, "max_bytes": 1 << 30} | changes)


def visit(cache: OutputCache, clip: Clip, crops: output_cache.Crops = "fixed") -> Tensor:
    return cache.outputs(cache.prepare([clip], crops))


@torch.no_grad()
def projected(backbone: Backbone, clip: Clip) -> Tensor:
    return backbone.project(load_window(clip, backbone.sample_rate_hz)[None])


def deviation(got: Tensor, expected: Tensor) -> float:
    """Largest difference, in standard deviations of what is expected."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    return float((got - expected).abs().max() / expected.std())


# Fixed windows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", "mert"])
def test_fixed_windows_are_what_the_backbone_gives(
    name: str, music: Recording, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    clips = [music.clip(start, 40_000) for start in (0, 40_000, 77_777)]
    waveforms = [load_window(clip, RATE)[None] for clip in clips]
    with torch.no_grad():
        alone = [backbone(x, layers=[0, 2], reduce="mean").layers for x in waveforms]
        batch = backbone(torch.cat(waveforms), layers=[0, 2], reduce="mean").layers
        frames = torch.cat([backbone.project(x) for x in waveforms])
    stem = stem_cache(backbone)
    for outputs in (stem.outputs(stem.prepare(clips)) for _ in range(2)):
        assert torch.equal(outputs, frames) and not outputs.requires_grad
    assert stem.stats == CacheStats(3, 3, 3, frames.numel() * 4, 0)
    for layer in (0, 2):
        expected = torch.cat([states[layer] for states in alone])
        pooled = OutputCache(backbone, "pooled", layer=layer, max_bytes=1 << 20)
        with torch.no_grad():
            from_stem = backbone.encode(stem.outputs(stem.prepare(clips)), [layer], reduce="mean")
        assert deviation(from_stem.layers[layer], batch[layer]) < 5e-6
        for outputs in (pooled.outputs(pooled.prepare(clips)) for _ in range(2)):
            assert outputs.shape == (3, 1, backbone.dim)
            assert deviation(outputs, expected) < 1e-6
        assert (pooled.stats.hits, pooled.stats.misses) == (3, 3)


def test_an_entry_does_not_depend_on_its_neighbours_in_the_batch(mini: Backbone, music: Recording) -> None:
    clips = [music.clip(start, 30_000) for start in (0, 30_000, 60_000)]
    first, cache = stem_cache(mini), stem_cache(mini)
    together = first.outputs(first.prepare(clips))
    for clip, one in zip(clips, together, strict=True):
        assert torch.equal(visit(stem_cache(mini), clip)[0], one)
    joined = OutputCache.join([cache.prepare([clip]) for clip in reversed(clips)])
    assert isinstance(joined, Prepared)
    assert torch.equal(cache.outputs(joined), together.flip(0))


def test_what_is_given_out_is_a_copy(mini: Backbone, music: Recording) -> None:
    cache, clip = stem_cache(mini), music.clip(0, 30_000)
    for crops in ("fixed", "random"):
        cache.admit([music.size])
        first = visit(cache, clip, crops)
        expected = first.clone()
        first.zero_()
        assert torch.equal(visit(cache, clip, crops), expected)


def test_bf16_is_what_autocast_gives(mini: Backbone, music: Recording) -> None:
    clip = music.clip(0, 30_000)
    samples = load_window(clip, RATE)[None]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = mini.project(samples)
        exact = visit(stem_cache(mini), clip)
    rounded = visit(stem_cache(mini, precision="bf16"), clip)
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, expected)
    assert exact.dtype == torch.float32 and deviation(exact, projected(mini, clip)) < 1e-6


# Keys ----------------------------------------------------------------------------------------------------


def test_keys_separate_whatever_changes_an_output(mini: Backbone) -> None:
    def key(backbone: Backbone, stage: output_cache.CachedStage = "stem", **changes: Any) -> str:
        return OutputCache(backbone, stage, **{"layer": 2, "max_bytes": 0} | changes).key

    other_weights = load_backbone("musicfm-mini", "random", seed=1)
    rounded = load_backbone("musicfm-mini", "random")
    set_precision(rounded, "bf16", native=False)  # multiplies in float32, but not what `mini` multiplies
    cut = load_backbone("musicfm-mini", "random", num_layers=2)
    keys = [
        key(mini),
        key(other_weights),
        key(rounded),
        key(mini, precision="bf16"),
        key(mini, "pooled"),
        key(mini, "pooled", layer=3),
        key(mini, "pooled", precision="bf16"),
        key(cut, "pooled"),  # its layer 2 is its last, with the final norm
    ]
    assert len(set(keys)) == len(keys)
    assert key(mini, layer=3) == key(mini)  # the stem knows no layers
    assert key(load_backbone("musicfm-mini", "random")) == key(mini)


def test_outputs_of_other_weights_are_not_taken_from_one_folder(
    tmp_path: Path, toys: list[Recording]
) -> None:
    clip = toys[0].clip(0, 800)
    for seed in (0, 1, 0, 1):
        cache = stem_cache(Toy(seed), directory=tmp_path / "kept", max_disk_bytes=1 << 20)
        assert deviation(visit(cache, clip), projected(Toy(seed), clip)) < 1e-6
        cache.close()
    assert len(list((tmp_path / "kept").glob("*.lance"))) == 2


def test_what_a_method_trains_is_not_kept(mini: Backbone) -> None:
    adapted = load_backbone("musicfm-mini", "random", num_layers=1)
    inject(adapted, "lora")
    assert OutputCache(adapted, "stem", layer=1, max_bytes=1).key
    with pytest.raises(ValueError, match="cannot be kept"):
        OutputCache(adapted, "pooled", layer=1, max_bytes=1)
    trained = load_backbone("musicfm-mini", "random", num_layers=1)
    inject(trained, "finetune")
    with pytest.raises(ValueError, match="cannot be kept"):
        OutputCache(trained, "stem", layer=1, max_bytes=1)


def test_nothing_goes_to_disk_without_a_name_for_its_weights(tmp_path: Path) -> None:
    toy = Toy()
    toy.weights_hash = "none"
    with pytest.raises(ValueError, match="has no weights_hash"):
        stem_cache(toy, directory=tmp_path / "kept", max_disk_bytes=1)
    assert stem_cache(toy).key


# Bounds in memory ----------------------------------------------------------------------------------------


def test_memory_stays_within_its_bound_and_counts_what_it_refuses(toys: list[Recording]) -> None:
    frames = 20
    size = frames * TOY_DIM * 4
    clips = [recording.clip(0, frames * TOY_HOP) for recording in toys]
    cache = stem_cache(Toy(), max_bytes=3 * size + size // 2)
    expected = [projected(cache.backbone, clip) for clip in clips]
    for epoch in range(1, 4):
        for clip, output in zip(clips, expected, strict=True):
            assert deviation(visit(cache, clip), output) < 1e-6
            assert cache.stats.num_bytes == cache.stats.num_units * size <= cache.max_bytes
        # Five windows, of which three fit; two are computed in every epoch and stay the same two.
        assert cache.stats == CacheStats(3 * (epoch - 1), 3 + 2 * epoch, 3, 3 * size, 2)


def test_no_memory_keeps_nothing(toys: list[Recording]) -> None:
    cache, clip = stem_cache(Toy(), max_bytes=0), toys[0].clip(0, 800)
    first, second = visit(cache, clip), visit(cache, clip)
    assert torch.equal(first, second)
    assert cache.stats == CacheStats(0, 2, 0, 0, 1)


def test_a_unit_twice_in_a_batch_is_computed_once(toys: list[Recording]) -> None:
    cache = stem_cache(Toy())
    cache.admit([toys[0].size])
    cache.outputs(cache.prepare([toys[0].clip(0, 800), toys[0].clip(400, 800)], "random"))
    cache.outputs(cache.prepare([toys[1].clip(0, 800)] * 3))
    assert (cache.stats.misses, cache.stats.hits, cache.stats.refused) == (2, 3, 0)


def test_recordings_are_admitted_in_order_as_long_as_they_fit(toys: list[Recording]) -> None:
    cache = stem_cache(Toy(), max_bytes=2 * TOY_BYTES + TOY_BYTES // 2)
    admitted = cache.admit([recording.size for recording in toys])
    assert (admitted.num_kept, admitted.num_given) == (2, 5)
    small = ("another", 50 * TOY_HOP)
    admitted = stem_cache(Toy(), max_bytes=cache.max_bytes).admit([*(r.size for r in toys), small])
    assert (admitted.num_kept, admitted.num_given) == (3, 6)
    for _ in range(2):
        # Whoever was not admitted came first, and so did a window of a fixed set: the room is kept free.
        visit(cache, toys[4].clip(0, 100 * TOY_HOP))
        for recording in reversed(toys):
            visit(cache, recording.clip(0, 800), "random")
    assert cache.stats.num_units == 2 and cache.stats.num_bytes == 2 * TOY_BYTES
    assert (cache.stats.hits, cache.stats.misses) == (2, 2 + 2 * 3 + 2)


# Random windows out of whole recordings ------------------------------------------------------------------


def starts_of(recording_samples: int, num_samples: int, hop: int, generator: torch.Generator) -> list[int]:
    """First and last start, and some in between."""
    last = (recording_samples - num_samples) // hop
    return [0, last * hop, *(hop * torch.randint(0, last + 1, (2,), generator=generator)).tolist()]


# 640: what a backbone needs at least; 15359 gives 16 frames, the shortest that is cut, and 14639 one less; the last
# ends 4 mel frames and a bit before the file does.
LENGTHS = [1025, 9_600, 14_399, 14_400, 14_639, 15_359, 15_360, 15_599, 16_001, 50_000, 100_001, 222_000]


@pytest.mark.parametrize("piece_seconds", [30.0, 0.7])
def test_random_windows_equal_the_stem_on_each(
    piece_seconds: float, mini: Backbone, music: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_cache, "PIECE_SECONDS", piece_seconds)
    cache, generator = stem_cache(mini), torch.Generator().manual_seed(0)
    assert cache.admit([music.size]).num_kept == 1
    computed = 0
    for num_samples in [*LENGTHS, music.num_samples]:
        for start in starts_of(music.num_samples, num_samples, HOP, generator):
            clip = music.clip(start, num_samples)
            before = cache.stats
            got = visit(cache, clip, "random")
            assert deviation(got, projected(mini, clip)) < 1e-4, (start, num_samples)
            assert torch.equal(visit(cache, clip, "random"), got)
            computed += cache.stats.misses - before.misses
    short = sum(4 for n in LENGTHS if mini.num_frames(n) < 16)
    assert computed == 2 * short + 1  # the recording once, windows shorter than their ends every time
    assert cache.stats.num_units == 1


def test_windows_of_a_recording_of_many_pieces(mini: Backbone, tmp_path: Path) -> None:
    """Pieces as they are, and a recording that ends just behind the second of them."""
    frames = 2 * 750 + 7
    long = Recording(tmp_path / "long.wav", frames * HOP - 300, RATE, subtype="FLOAT")
    cache = stem_cache(mini)
    cache.admit([long.size])
    for start in (0, 720, 745, 749, 750, 760, 1450, frames - 41):
        clip = long.clip(start * HOP, 40 * HOP)
        assert deviation(visit(cache, clip, "random"), projected(mini, clip)) < 1e-4
    assert cache.stats.misses == 1


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
def test_random_windows_of_resampled_files(format: str, mini: Backbone, tmp_path: Path) -> None:
    """A resampled window differs from the resampled whole in its last bits."""
    source = Recording(tmp_path / "music", 5 * 44_100 + 11, 44_100, format=format)
    num_samples, generator = len(load_audio(source.path, RATE).samples), torch.Generator().manual_seed(0)
    cache = stem_cache(mini)
    cache.admit([(source.content, num_samples)])
    for length in (15_360, 50_001, num_samples):
        for start in starts_of(num_samples, length, HOP, generator):
            clip = source.clip(start, length)
            assert deviation(visit(cache, clip, "random"), projected(mini, clip)) < 1e-4
    assert cache.stats.misses == 1


def test_random_windows_in_bf16(mini: Backbone, music: Recording) -> None:
    cache = stem_cache(mini, precision="bf16", max_bytes=mini.num_frames(music.num_samples) * mini.dim * 2)
    assert cache.admit([music.size]).num_kept == 1
    clip = music.clip(7 * HOP, 60_000)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = mini.project(load_window(clip, RATE)[None])
    got = visit(cache, clip, "random")
    assert got.dtype == torch.bfloat16 and deviation(got.float(), expected.float()) < 0.02
    assert cache.stats.num_bytes == cache.max_bytes and cache.stats.refused == 0


def test_random_windows_that_are_not_admitted_are_computed(mini: Backbone, music: Recording) -> None:
    cache, clip = stem_cache(mini, max_bytes=1000), music.clip(3 * HOP, 40_000)
    admitted = cache.admit([music.size])
    assert (admitted.num_kept, admitted.num_given) == (0, 1)
    for _ in range(2):
        assert torch.equal(visit(cache, clip, "random"), projected(mini, clip))
    assert cache.stats == CacheStats(0, 2, 0, 0, 0)


@pytest.mark.parametrize("num_samples", [2_000, 40_000])
@pytest.mark.parametrize("start", [1, 240, HOP - 1, 5 * HOP + 480])
def test_random_windows_begin_at_frames(
    start: int, num_samples: int, mini: Backbone, music: Recording
) -> None:
    cache = stem_cache(mini)
    for _ in range(2):  # whether or not the recording is admitted
        with pytest.raises(ValueError, match=f"multiple of {HOP} samples, got {start}$"):
            cache.prepare([music.clip(start, num_samples)], "random")
        cache.admit([music.size])
    assert cache.stats.misses == 0


def test_backbones_whose_frames_see_everything_refuse_random_windows(mert: Mert, music: Recording) -> None:
    cache = stem_cache(mert)
    with pytest.raises(ValueError, match=r"of mert-tiny cannot be cut .* \(crops='fixed'\)"):
        cache.admit([music.size])
    with pytest.raises(ValueError, match=r"of mert-tiny cannot be cut .* \(crops='fixed'\)"):
        cache.prepare([music.clip(0, 40_000)], "random")


def test_pooled_outputs_cannot_be_cropped(mini: Backbone, music: Recording) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        OutputCache(mini, "pooled", layer=1, max_bytes=1 << 20).admit([music.size])


# Training on it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crops", ["fixed", "random"])
def test_gradients_of_lora_are_the_same_with_and_without(crops: output_cache.Crops, music: Recording) -> None:
    backbone = load_backbone("musicfm-mini", "random", num_layers=2)
    inject(backbone, "lora:rank=2")
    generator = torch.Generator().manual_seed(0)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    with torch.no_grad():
        for (
            parameter
        ) in trained:  # half of them are zero at the start, and so are the gradients of the others
            parameter.normal_(std=0.1, generator=generator)
    clips = [music.clip(start * HOP, 40_000) for start in (0, 17, 100)]
    weight = torch.randn(3, 1, backbone.dim, generator=generator)

    def gradients(states: Any) -> list[Tensor]:
        return list(torch.autograd.grad((states.layers[2] * weight).sum(), trained))

    batch = torch.stack([load_window(clip, RATE) for clip in clips])
    expected = gradients(backbone(batch, layers=[2], reduce="mean"))
    cache = stem_cache(backbone, layer=2)
    cache.admit([music.size])
    for _ in range(2):  # computed, and kept
        outputs = cache.outputs(cache.prepare(clips, crops))
        got = gradients(backbone.encode(outputs, layers=[2], reduce="mean"))
        for one, other in zip(got, expected, strict=True):
            assert float(other.abs().max()) > 0
            assert float((one - other).abs().max() / other.abs().max()) < 1e-4
    assert cache.stats.hits >= 3


def test_outputs_made_in_inference_mode_can_be_trained_on(toys: list[Recording]) -> None:
    cache, clip = stem_cache(Toy()), toys[0].clip(0, 800)
    with torch.inference_mode():
        visit(cache, clip)
    linear = nn.Linear(TOY_DIM, 1)
    linear(visit(cache, clip)).sum().backward()
    assert linear.weight.grad is not None and cache.stats.hits == 1


# Files that cannot be read -------------------------------------------------------------------------------


def broken_files(folder: Path) -> dict[type[AudioError], Path]:
    flac = Recording(folder / "cut.flac", 40_000, RATE).path
    flac.write_bytes(flac.read_bytes()[:-3000])
    (folder / "text.wav").write_bytes(b"no sound at all" * 100)
    return {
        MissingAudioError: folder / "missing.wav",
        NotAudioError: folder / "text.wav",
        TruncatedAudioError: flac,
    }


@pytest.mark.parametrize("crops", ["fixed", "random"])
def test_what_reading_raises_comes_out_unchanged(
    crops: output_cache.Crops, mini: Backbone, tmp_path: Path
) -> None:
    for error, path in broken_files(tmp_path).items():
        cache = stem_cache(mini)
        cache.admit([("content", 40_000)])
        clip = Clip(path, "content", 0, 30_000)
        with pytest.raises(AudioError) as direct:
            load_window(clip, RATE)
        with pytest.raises(AudioError) as through:
            cache.prepare([clip], crops)
        assert type(through.value) is type(direct.value) is error
        assert str(through.value) == str(direct.value) and through.value.path == path
        assert cache.stats == CacheStats(0, 0, 0, 0, 0)


@pytest.mark.parametrize("crops", ["fixed", "random"])
def test_windows_beyond_the_end_are_refused(
    crops: output_cache.Crops, mini: Backbone, music: Recording
) -> None:
    cache = stem_cache(mini)
    cache.admit([music.size])
    for _ in range(2):
        with pytest.raises(AudioError, match="samples from"):
            cache.prepare([music.clip(200 * HOP, 35_000)], crops)
        with pytest.raises(AudioWindowError):
            cache.prepare([music.clip(300 * HOP, 40_000)], crops)
        visit(cache, music.clip(100 * HOP, 40_000), crops)  # from now on the recording is kept


def test_a_fixed_window_that_is_kept_needs_no_file(toys: list[Recording]) -> None:
    cache, clip = stem_cache(Toy()), toys[0].clip(0, 800)
    first = visit(cache, clip)
    clip.path.unlink()
    assert torch.equal(visit(cache, clip), first)
    with pytest.raises(MissingAudioError):
        cache.prepare([toys[0].clip(800, 800)])


# On disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_next_run_finds_the_same_bits(precision: str, toys: list[Recording], tmp_path: Path) -> None:
    def cache() -> OutputCache:
        opened = stem_cache(
            Toy(), precision=precision, directory=tmp_path / "kept", max_disk_bytes=1 << 20, max_bytes=1000
        )
        assert opened.admit([recording.size for recording in toys]).num_kept == 5
        return opened

    def epoch(opened: OutputCache) -> list[Tensor]:
        whole = [visit(opened, recording.clip(0, 4000)) for recording in toys]
        cut = [visit(opened, recording.clip(40, 2000), "random") for recording in toys]
        return whole + cut

    first = cache()
    expected = epoch(first)
    assert first.stats.misses == 10
    assert all(torch.equal(a, b) for a, b in zip(epoch(first), expected, strict=True))  # not written yet
    assert first.stats.misses == 10
    first.close()
    second = cache()
    assert all(torch.equal(a, b) for a, b in zip(epoch(second), expected, strict=True))
    assert (second.stats.hits, second.stats.misses) == (10, 0) and second.stats.num_bytes <= 1000
    second.close()


def test_pooled_outputs_on_disk(mini: Backbone, music: Recording, tmp_path: Path) -> None:
    clips = [music.clip(start, 30_000) for start in (0, 30_000)]
    outputs = []
    for _ in range(2):
        cache = OutputCache(
            mini, "pooled", layer=2, max_bytes=0, directory=tmp_path / "kept", max_disk_bytes=1 << 20
        )
        outputs.append(cache.outputs(cache.prepare(clips)))
        cache.close()
    assert torch.equal(*outputs) and cache.stats.hits == 2


def test_the_disk_stays_within_its_bound(toys: list[Recording], tmp_path: Path) -> None:
    size = 20 * TOY_DIM * 4
    clips = [recording.clip(0, 800) for recording in toys]
    for attempt in range(2):
        cache = stem_cache(Toy(), max_bytes=0, directory=tmp_path / "kept", max_disk_bytes=3 * size)
        for _ in range(2):
            for clip in clips:
                visit(cache, clip)
        # Three of five are there: none at first, then found twice.
        assert (cache.stats.hits, cache.stats.misses) == ((3, 7) if attempt == 0 else (6, 4))
        cache.close()
    (table,) = (tmp_path / "kept").glob("*.lance")
    assert lance.dataset(str(table)).count_rows() == 3


def admission(cache: OutputCache, toys: list[Recording]) -> int:
    """Admit all, visit them for three epochs, and check that each that was admitted is computed at most once."""
    num_kept = cache.admit([recording.size for recording in toys]).num_kept
    for _ in range(3):
        for recording in toys:
            visit(cache, recording.clip(40, 2000), "random")
    refused = len(toys) - num_kept
    assert cache.stats.misses <= num_kept + 3 * refused
    return num_kept


def test_recordings_are_admitted_only_where_they_can_be_kept(toys: list[Recording], tmp_path: Path) -> None:
    """A recording that is admitted and not kept would be computed as a whole for every window of it."""
    folder = tmp_path / "kept"
    # The disk gets what the memory gets, so that there is not room for the sum of both.
    writer = stem_cache(Toy(), max_bytes=2 * TOY_BYTES, directory=folder, max_disk_bytes=3 * TOY_BYTES)
    assert admission(writer, toys) == 3
    # Another process may read what is there, and writes nothing.
    reader = stem_cache(Toy(), max_bytes=TOY_BYTES, directory=folder, max_disk_bytes=1 << 20)
    assert admission(reader, toys) == 1
    writer.close()
    # A table that is full, of what is asked for again and of something else.
    full = stem_cache(Toy(), max_bytes=TOY_BYTES, directory=folder, max_disk_bytes=3 * TOY_BYTES)
    assert admission(full, toys) == 3
    full.close()
    other = stem_cache(Toy(), max_bytes=TOY_BYTES, directory=folder, max_disk_bytes=3 * TOY_BYTES)
    assert admission(other, toys[3:]) == 1
    other.close()
    # What is not of these recordings does not take the place that they were promised.
    last = stem_cache(Toy(), max_bytes=0, directory=folder, max_disk_bytes=5 * TOY_BYTES)
    assert last.admit([recording.size for recording in toys]).num_kept == 5
    visit(last, toys[0].clip(0, 2000))
    for recording in toys * 2:
        visit(last, recording.clip(40, 2000), "random")
    assert last.stats.misses == 1 + 2
    last.close()


def test_a_resumed_run_admits_the_same_recordings(toys: list[Recording], tmp_path: Path) -> None:
    room = {"max_bytes": 0, "directory": tmp_path / "kept", "max_disk_bytes": 3 * TOY_BYTES + 500}
    windows = []
    for num_visited in (0, 1, 2, 5):  # how far a run came before it was killed
        cache = stem_cache(Toy(), **room)
        assert cache.admit([recording.size for recording in toys]).num_kept == 3
        visit(cache, toys[4].clip(0, 800))  # for validation
        for recording in toys[:num_visited]:
            visit(cache, recording.clip(40, 2000), "random")
        windows.append([visit(cache, recording.clip(40, 2000), "random") for recording in toys[:num_visited]])
        cache.close()
    for earlier, later in itertools.pairwise(windows):
        assert all(torch.equal(a, b) for a, b in zip(earlier, later, strict=False))


# The table -----------------------------------------------------------------------------------------------


def value(number: int) -> Tensor:
    return torch.full((4, 5), float(number)) + torch.arange(20.0).view(4, 5)


def table(folder: Path, max_bytes: int = 1 << 20) -> OutputTable:
    return OutputTable(folder, KEY, max_bytes)


def written(folder: Path, numbers: range) -> Path:
    """Make a table, and give its folder."""
    made = table(folder)
    for number in numbers:
        made.add(f"u{number}", value(number))
    made.close()
    return made.path


def units_on_disk(path: Path) -> list[str]:
    return lance.dataset(str(path)).to_table(columns=["unit"])["unit"].to_pylist()


WRITER = """
import sys, torch
from pathlib import Path
from audiation import output_table
output_table.COMMIT_SECONDS = 0.0
table = output_table.OutputTable(Path({folder!r}), {key!r}, 1 << 30)
number = 0
while True:
    table.add(f"u{{number}}", torch.full((4, 5), float(number)) + torch.arange(20.0).view(4, 5))
    number += 1
    print(number, flush=True)
"""


def test_a_killed_process_and_one_beside_it(tmp_path: Path) -> None:
    code = WRITER.format(folder=str(tmp_path), key=KEY)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            while int(writer.stdout.readline()) < 5:
                pass
            beside = table(tmp_path)  # reads what is there, writes nothing, and hinders nobody
            beside.add("mine", value(-1))
            beside.commit()
            held = [number for number in range(1000) if beside.read(f"u{number}") is not None]
            while int(writer.stdout.readline()) < 40:
                pass
            for number in held:
                got = beside.read(f"u{number}")
                assert got is not None and torch.equal(got, value(number))
            beside.close()
        finally:
            writer.kill()
        rest = writer.stdout.read().split()
    assert held == list(range(len(held))) and len(held) >= 4
    last = int(rest[-1]) if rest else 40
    again = table(tmp_path)
    count = len(units_on_disk(again.path))
    assert last <= count <= last + 1  # the last one may not have been reported
    for number in range(count + 10):
        again.add(f"u{number}", value(number))  # those that are there are not doubled
    again.close()
    assert sorted(units_on_disk(again.path)) == sorted(f"u{number}" for number in range(count + 10))
    final = table(tmp_path)
    for number in range(count + 10):
        got = final.read(f"u{number}")
        assert got is not None and torch.equal(got, value(number))
    assert final.read("mine") is None
    final.close()


def test_a_process_killed_before_its_first_commit_leaves_a_usable_folder(tmp_path: Path) -> None:
    (tmp_path / f"{KEY[:24]}.lance" / "data").mkdir(parents=True)
    (tmp_path / f"{KEY[:24]}.lance" / "data" / "half.lance").write_bytes(b"half a file")
    path = written(tmp_path, range(3))
    assert units_on_disk(path) == ["u0", "u1", "u2"]


def test_a_reader_may_open_while_the_first_commit_is_made(tmp_path: Path) -> None:
    writer = table(tmp_path)
    (writer.path / "data").mkdir(parents=True)
    reader = table(tmp_path)
    assert reader.read("u0") is None
    reader.close()
    writer.close()


def test_a_commit_that_was_interrupted_after_it_happened_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = lance.write_dataset

    def interrupted(*args: Any, **options: Any) -> None:
        write(*args, **options)
        raise KeyboardInterrupt

    first = table(tmp_path)
    first.add("u0", value(0))
    first.commit()
    first.add("u1", value(1))
    with monkeypatch.context() as patch:
        patch.setattr(lance, "write_dataset", interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.commit()
    first.add("u2", value(2))
    first.commit()
    assert torch.equal(first.read("u2"), value(2))  # type: ignore[arg-type]
    first.close()
    assert units_on_disk(first.path) == ["u0", "u1", "u2"]
    again = table(tmp_path)
    for number in range(3):
        assert torch.equal(again.read(f"u{number}"), value(number))  # type: ignore[arg-type]
    again.add("u3", value(3))
    again.commit()
    assert torch.equal(again.read("u3"), value(3))  # type: ignore[arg-type]
    again.close()


def flip_a_value(path: Path) -> None:
    """One bit of one value, which Lance has no checksum for."""
    (data,) = (path / "data").iterdir()
    content = bytearray(data.read_bytes())
    at = content.find(value(1).numpy().tobytes())
    assert at > 0
    content[at + 9] ^= 0x40
    data.write_bytes(bytes(content))


def cut_data(path: Path) -> None:
    (data,) = (path / "data").iterdir()
    data.write_bytes(data.read_bytes()[:-200])


def remove_data(path: Path) -> None:
    (data,) = (path / "data").iterdir()
    data.unlink()


def cut_manifest(path: Path) -> None:
    (manifest,) = (path / "_versions").glob("*.manifest")
    manifest.write_bytes(manifest.read_bytes()[:100])


def lengthen_manifest(path: Path) -> None:
    """A length that reaches beyond the file, over which Lance panics with what is no Exception."""
    (manifest,) = (path / "_versions").glob("*.manifest")
    content = bytearray(manifest.read_bytes())
    (position,) = struct.unpack("<Q", content[-16:-8])
    content[position : position + 4] = struct.pack("<I", 1 << 20)
    manifest.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [flip_a_value, cut_data, remove_data, cut_manifest, lengthen_manifest])
def test_a_damaged_table_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = written(tmp_path, range(3))
    damage(path)
    with pytest.raises(OutputTableError, match=rf"{path.name} is damaged \(.*\)\. Delete it"):
        damaged = table(tmp_path)
        try:
            for number in range(3):
                damaged.read(f"u{number}")
        finally:
            damaged.close()
    # Its writer's lock is free again, so that deleting it is all there is to do.
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.rmdir()
    assert units_on_disk(written(tmp_path, range(2))) == ["u0", "u1"]


def test_damage_reaches_the_user_of_the_cache(toys: list[Recording], tmp_path: Path) -> None:
    def cache() -> OutputCache:
        return stem_cache(Toy(), directory=tmp_path / "kept", max_disk_bytes=1 << 20)

    first = cache()
    visit(first, toys[0].clip(0, 800))
    first.close()
    (path,) = (tmp_path / "kept").glob("*.lance")
    cut_data(path)
    with pytest.raises(OutputTableError, match="is damaged"):
        cache()


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"other": [1]}), str(tmp_path / f"{KEY[:24]}.lance"))
    with pytest.raises(OutputTableError, match=r"is a table of another kind\. Use another folder"):
        table(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(OutputTableError, match="cannot be written"):
            table(folder)


def test_a_full_disk_is_named_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = table(tmp_path)
    made.add("u0", value(0))
    made.commit()
    made.add("u1", value(1))
    with monkeypatch.context() as patch:
        patch.setattr(lance, "write_dataset", full)
        with pytest.raises(OutputTableError, match=r"cannot be written \(No space left on device\)"):
            made.commit()
    assert torch.equal(made.read("u0"), value(0))  # type: ignore[arg-type]
    made.close()
    again = table(tmp_path)
    assert torch.equal(again.read("u0"), value(0))  # type: ignore[arg-type]
    again.close()


def test_commits_come_by_bytes_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(tmp_path)
    made.add("u0", value(0))
    assert not made.path.exists()
    monkeypatch.setattr(output_table, "COMMIT_SECONDS", 0.0)
    made.add("u1", value(1))
    assert units_on_disk(made.path) == ["u0", "u1"]
    monkeypatch.setattr(output_table, "COMMIT_SECONDS", 1e9)
    monkeypatch.setattr(output_table, "COMMIT_BYTES", 2 * 80)
    for number in range(2, 7):
        made.add(f"u{number}", value(number))
    assert units_on_disk(made.path) == [f"u{number}" for number in range(5)]
    made.close()
    assert units_on_disk(made.path) == [f"u{number}" for number in range(7)]


def test_what_is_being_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, write = table(tmp_path), lance.write_dataset
    made.add("u0", value(0))
    read: list[Tensor | None] = []

    def watched(*args: Any, **options: Any) -> lance.LanceDataset:
        read.append(made.read("u0"))
        made.add("u0", value(0))  # known already
        dataset = write(*args, **options)
        read.append(made.read("u0"))
        return dataset

    monkeypatch.setattr(lance, "write_dataset", watched)
    made.commit()
    assert len(read) == 2 and all(x is not None and torch.equal(x, value(0)) for x in read)
    made.close()
    assert units_on_disk(made.path) == ["u0"]


def test_many_commits_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version names every file, so the versions of thousands of commits would be larger than what they hold."""
    monkeypatch.setattr(output_table, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(output_table, "CLEAN_EVERY_COMMITS", 5, raising=False)
    first = table(tmp_path)
    first.add("u0", value(0))
    beside = table(tmp_path)
    for number in range(1, 23):
        first.add(f"u{number}", value(number))
    assert len(list((first.path / "_versions").glob("*.manifest"))) <= 6
    assert torch.equal(beside.read("u0"), value(0))  # type: ignore[arg-type]
    beside.close()
    first.close()
    assert units_on_disk(first.path) == [f"u{number}" for number in range(23)]


def test_closing_lets_the_next_process_write(tmp_path: Path) -> None:
    first, second = table(tmp_path), table(tmp_path)
    second.add("u1", value(1))
    second.close()
    first.add("u0", value(0))
    first.close()
    first.close()
    third = table(tmp_path)
    third.add("u1", value(1))
    third.close()
    assert units_on_disk(third.path) == ["u0", "u1"]


# Threads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [0, 3 * TOY_BYTES, 1 << 20])
def test_windows_are_prepared_in_a_thread_beside_the_model(
    max_bytes: int, toys: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking up, in memory and on disk, goes on while outputs are kept and committed one by one."""
    monkeypatch.setattr(output_table, "COMMIT_BYTES", 0)
    cache = stem_cache(Toy(), max_bytes=max_bytes, directory=tmp_path / "kept", max_disk_bytes=1 << 20)
    cache.admit([recording.size for recording in toys])
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 50, (40, 2), generator=generator).tolist()
    batches: list[tuple[list[Clip], output_cache.Crops]] = [
        ([toys[a % 5].clip(40 * b, 1000), toys[b % 5].clip(40 * a, 1000)], "random" if a % 2 else "fixed")
        for a, b in places
    ]
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(cache.prepare, clips, crops) for clips, crops in batches]
        for (clips, _), prepared in zip(batches, ahead, strict=True):
            expected = torch.cat([projected(cache.backbone, clip) for clip in clips])
            assert deviation(cache.outputs(prepared.result()), expected) < 1e-5
    assert cache.stats.hits + cache.stats.misses == 80
    assert cache.stats.num_bytes <= max_bytes
    cache.close()
    (path,) = (tmp_path / "kept").glob("*.lance")
    units = units_on_disk(path)
    assert len(units) == len(set(units)) > 5


# What can be kept under which choices of the training ----------------------------------------------------


def adapted(method: str, backbone: Backbone | None = None) -> Backbone:
    backbone = backbone or load_backbone("musicfm-mini", "random", num_layers=1)
    inject(backbone, method)
    return backbone


def planned(backbone: Backbone, **changes: Any) -> output_cache.CachePlan:
    choices: dict[str, Any] = {
        "layer": 1, "crops": "fixed", "frozen_mode": "eval", "dropout": None, "precision": "fp32", "max_bytes": 1 << 20,
    }  # fmt: skip
    return cache_plan(backbone, **choices | changes)


def test_what_is_kept_follows_from_the_training(music: Recording) -> None:
    lora, probe = adapted("lora"), adapted("probe")
    plan = planned(lora)
    assert plan.cache is not None and (plan.cache.stage, plan.training_crops) == ("stem", "fixed")
    plan = planned(probe)
    assert plan.cache is not None and (plan.cache.stage, plan.training_crops) == ("pooled", "fixed")
    for backbone in (lora, probe):
        plan = planned(backbone, crops="random", recordings=[music.size, ("second", 10**7)])
        assert plan.cache is not None and (plan.cache.stage, plan.training_crops) == ("stem", "random")
        assert "1 of 2 fit" in plan.sentence and f"multiples of {HOP} samples" in plan.sentence


def test_random_windows_of_a_stem_that_sees_everything_are_kept_for_validation_only() -> None:
    config = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    for method, stage in (("lora", "stem"), ("probe", "pooled")):
        backbone = build_mert(config, "mert-tiny", RATE).eval()
        plan = planned(adapted(method, backbone), crops="random", recordings=[("content", 10**6)])
        assert plan.cache is not None and plan.cache.stage == stage and plan.training_crops is None
        assert "crops=fixed would" in plan.sentence


def test_nothing_is_kept_where_it_would_change_or_has_no_room(tmp_path: Path) -> None:
    lora = adapted("lora")
    nothing = [
        planned(adapted("finetune")),
        planned(lora, frozen_mode="published"),
        planned(lora, dropout=True),
        planned(lora, max_bytes=0),
        planned(lora, max_bytes=0, directory=tmp_path / "kept", max_disk_bytes=0),
    ]
    for plan in nothing:
        assert plan.cache is None and plan.training_crops is None
        assert plan.sentence.startswith(("nothing is kept", "nothing of the frozen part is kept"))
    assert planned(lora, dropout=False).cache is not None
    on_disk = planned(lora, max_bytes=0, directory=tmp_path / "kept", max_disk_bytes=1 << 20).cache
    assert on_disk is not None
    on_disk.close()
