"""What a backbone computes, counted from shapes, against counts by hand and of real runs."""

import pytest
import torch
from torch import nn

from audiation.backbones import BACKBONES
from audiation.backbones.base import Backbone, HiddenStates
from audiation.loading import load_backbone
from audiation.model_cost import cost_line, count_gflop, new_counter


class Counted(Backbone):
    """20 ms frames of 8 kHz through one matrix (160 -> 8), then blocks of one (8 -> 8)."""

    def __init__(self, ask=None, hop_samples=160, max_seconds=None):
        super().__init__()
        self.name, self.num_layers, self.dim = "counted", 3, 8
        self.sample_rate_hz, self.hop_samples = 8000, hop_samples
        self.frame_rate_hz = 50.0 if hop_samples else None
        self.min_samples, self.max_seconds = 160, max_seconds
        self.normalisation, self.accepts_padding = "none", True
        self.first = nn.Linear(160, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.ask = ask
        self.eval()

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        lengths = self.check_input(waveform, num_samples)
        wanted, stop = self.resolve_layers(layers, last_layer)
        frames = waveform.unfold(1, 160, 160)
        if self.ask is not None:
            frames = self.ask(frames, lengths)
        x = self.first(frames)
        kept = {0: x}
        for i, block in enumerate(self.blocks[:stop], start=1):
            x = kept[i] = block(x)
        valid = torch.ones(x.shape[:2], dtype=torch.bool)
        return HiddenStates({i: kept[i] for i in wanted}, valid, self.frame_rate_hz, 0.0)

    def num_frames(self, num_samples):
        return num_samples // 160


def test_a_multiplication_with_its_addition_is_two():
    cost = count_gflop(Counted(), 2.0)
    assert cost.gflop * 1e9 == 2 * 100 * (160 * 8 + 3 * 8 * 8)
    assert (cost.seconds, cost.num_chunks) == (2.0, 1)
    assert cost.gflop_per_second == cost.gflop / 2


def test_layers_that_are_not_asked_for_cost_nothing():
    assert count_gflop(Counted(), 2.0, last_layer=1).gflop * 1e9 == 2 * 100 * (160 * 8 + 8 * 8)
    with pytest.raises(ValueError, match=r"layers 0\.\.3, got 4"):
        count_gflop(Counted(), 2.0, last_layer=4)


@pytest.mark.parametrize("name", ["musicfm-mini", "short-chunk-cnn"])
def test_shapes_give_the_count_of_a_real_run(name):
    backbone = load_backbone(name, "random")
    num_samples = backbone.min_samples + 20_000
    with torch.inference_mode(), new_counter() as counter:
        backbone(torch.randn(1, num_samples, generator=torch.Generator().manual_seed(0)))
    cost = count_gflop(backbone, num_samples / backbone.sample_rate_hz)
    assert cost.gflop * 1e9 == counter.get_total_flops() > 1e6


def test_the_outline_costs_what_the_model_costs():
    built = count_gflop(load_backbone("musicfm-mini", "random"), 5.0)
    outline = BACKBONES["musicfm-mini"].outline().eval()
    assert count_gflop(outline, 5.0) == built
    assert all(p.is_meta for p in outline.parameters())


def test_blocks_cost_alike():
    outline = BACKBONES["mert-v1-95m"].outline().eval()
    stem, one, three = (count_gflop(outline, 5.0, last).gflop for last in (0, 1, 3))
    assert three - stem == pytest.approx(3 * (one - stem), rel=1e-12)
    width, ffn, frames = 768, 3072, 374
    by_hand = 2 * frames * (4 * width**2 + 2 * width * ffn + 2 * frames * width)
    assert (one - stem) * 1e9 == pytest.approx(by_hand, rel=1e-12)


def test_long_clips_are_cut_as_extraction_does():
    outline = BACKBONES["mert-v1-95m"].outline().eval()
    long, chunk = count_gflop(outline, 30.0), count_gflop(outline, 5.0)
    assert (long.num_chunks, chunk.num_chunks) == (7, 1)  # the stride is 374 frames, a little less than 5 s
    assert long.gflop == pytest.approx(7 * chunk.gflop, rel=1e-12)


def test_models_of_one_vector_hear_one_clip_after_another():
    model = Counted(hop_samples=None, max_seconds=1.0)
    second = count_gflop(model, 1.0).gflop
    rest = count_gflop(model, 0.5).gflop
    cost = count_gflop(model, 2.5)
    assert cost.gflop == pytest.approx(2 * second + rest, rel=1e-12) and cost.num_chunks == 3
    assert count_gflop(model, 2.01).num_chunks == 2  # 80 samples are too few


def test_backbones_without_parameters_have_none():
    assert count_gflop(BACKBONES["chroma"].build(), 30.0) is None


def test_masks_of_real_lengths_are_known():
    def first_ten(frames, lengths):
        kept = torch.arange(frames.shape[1]) < 10
        assert int(lengths.max()) == 16_000
        return frames[:, kept]

    assert count_gflop(Counted(first_ten), 2.0).gflop * 1e9 == 2 * 10 * (160 * 8 + 3 * 8 * 8)


def test_what_depends_on_values_cannot_be_counted():
    model = Counted(lambda frames, _: frames if float(frames.abs().max()) > 0 else frames + 1)
    with pytest.raises(ValueError, match="counted cannot run on shapes alone"):
        count_gflop(model, 2.0)


def test_the_model_is_left_as_it_was():
    backbone = load_backbone("musicfm-mini", "random")
    waveform = torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = backbone(waveform).layers[4]
        count_gflop(backbone, 1.0)
        assert torch.equal(backbone(waveform).layers[4], before)
    assert not backbone.training


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_lengths_that_are_none(seconds):
    with pytest.raises(ValueError, match="positive and finite"):
        count_gflop(Counted(), seconds)


def test_clips_that_are_too_short_and_models_in_training():
    with pytest.raises(ValueError, match="needs at least 160 samples"):
        count_gflop(Counted(), 0.01)
    with pytest.raises(ValueError, match="in training mode"):
        count_gflop(Counted().train(), 1.0)


def test_the_cost_is_said_in_words_before_it_is_spent():
    jukebox = BACKBONES["jukebox-5b"].outline().eval()
    line = cost_line(jukebox, 36)
    assert line.startswith("jukebox-5b up to layer 36: 40.9 TFLOP for 23.8 s of audio, 6,197 TFLOP")
    assert cost_line(jukebox, 36, at_least_gflop=1e6) == "" and cost_line(BACKBONES["mfcc"].build(), 0) == ""
