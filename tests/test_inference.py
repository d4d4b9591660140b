"""Chunks are equal, nothing is padded, and the stitched frames lie on one grid with the right times."""

import pytest
import torch
from torch import nn

from audiation.backbones.base import Backbone, HiddenStates
from audiation.inference import Chunk, ChunkPolicy, plan_chunks, run_clip


class Frames(Backbone):
    """Layer 1 says when each frame is: with a ramp as input, frame t is its own centre time in samples."""

    name, sample_rate_hz, hop_samples, min_samples = "frames", 1000, 10, 20
    frame_rate_hz, num_layers, dim, max_seconds = 100.0, 1, 3, 0.5
    normalisation, accepts_padding = "none", False

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.seen_shapes = []

    def num_frames(self, num_samples):
        return (num_samples - 20) // 10 + 1

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        self.check_input(waveform, num_samples)
        wanted, _ = self.resolve_layers(layers, last_layer)
        self.seen_shapes.append(tuple(waveform.shape))
        frames = waveform.unfold(1, 20, 10).mean(-1, keepdim=True) * self.gain
        states = {i: torch.cat([frames + i, -frames, frames * 0 + waveform.shape[1]], -1) for i in wanted}
        valid = torch.ones(frames.shape[:2], dtype=torch.bool)
        result = HiddenStates(states, valid, 100.0, 0.01)
        return result.mean() if reduce else result


def mert_frames(num_samples):
    return (num_samples - 400) // 320 + 1


def ramp(num_samples):
    return torch.arange(num_samples, dtype=torch.float32)


def test_mert_chunks_follow_the_frame_grid():
    chunks = plan_chunks(720_000, 120_000, 320, mert_frames)
    assert chunks[:2] == [Chunk(0, 120_000, 0, 374), Chunk(119_680, 120_000, 0, 374)]
    # 30 s: the sixth chunk starts at 598,400, and the seventh is moved back to 600,000 and overlaps it
    assert [c.start_sample for c in chunks[5:]] == [598_400, 600_000]
    assert chunks[-1] == Chunk(600_000, 120_000, 369, 5)


@pytest.mark.parametrize("num_samples", [120_000, 120_001, 120_320, 239_679, 240_000, 500_017, 7_200_000])
def test_kept_frames_are_the_grid_without_gap_or_overlap(num_samples):
    chunks = plan_chunks(num_samples, 120_000, 320, mert_frames)
    kept = [
        c.start_sample // 320 + t
        for c in chunks
        for t in range(c.first_kept_frame, c.first_kept_frame + c.num_kept_frames)
    ]
    assert kept == list(range(len(kept)))
    assert {c.num_samples for c in chunks} == {120_000}
    assert all(c.start_sample % 320 == 0 for c in chunks)
    unseen = num_samples - (chunks[-1].start_sample + 120_000)
    assert 0 <= unseen < 320
    assert mert_frames(num_samples) - 1 <= len(kept) <= mert_frames(num_samples)


def test_a_short_clip_is_one_chunk_of_its_own_length():
    assert plan_chunks(50_000, 120_000, 320, mert_frames) == [Chunk(0, 50_000, 0, 156)]


def test_centred_frames_never_leave_samples_between_chunks():
    chunks = plan_chunks(1000, 100, 10, lambda n: 1 + n // 10)  # 11 frames per chunk of 10 hops
    assert [c.start_sample for c in chunks] == list(range(0, 1000, 100))
    assert [c.first_kept_frame for c in chunks] == [0] + [1] * 9


def test_frame_times_of_a_stitched_clip_are_right():
    states = run_clip(Frames(), ramp(2345), ChunkPolicy(0.5), layers=[0])
    centres = states.layers[0][0, :, 0].double() + 0.5  # the mean of samples 10 t .. 10 t + 19
    torch.testing.assert_close(states.times_seconds * 1000, centres)
    assert states.valid.shape == (1, len(centres)) and bool(states.valid.all())


def test_nothing_is_padded_and_all_chunks_are_equal():
    backbone = Frames()
    run_clip(backbone, ramp(2345), ChunkPolicy(0.5), batch_size=3)
    assert {s for _, s in backbone.seen_shapes} == {500}
    assert max(b for b, _ in backbone.seen_shapes) == 3


def test_overlapping_frames_come_from_the_earlier_chunk():
    class Position(Frames):
        def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
            result = super().forward(waveform, num_samples, layers, last_layer)
            index = torch.arange(result.valid.shape[1])[None, :, None].expand(len(waveform), -1, 3)
            return HiddenStates({1: index.float()}, result.valid, 100.0, 0.01)

    index = run_clip(Position(), ramp(600), ChunkPolicy(0.5), layers=[1]).layers[1][0, :, 0]
    assert index.tolist() == [*range(49), *range(39, 49)]  # the last chunk starts at frame 10


def test_a_clip_shorter_than_a_chunk_runs_at_its_own_length():
    backbone = Frames()
    states = run_clip(backbone, ramp(123))
    assert backbone.seen_shapes == [(1, 123)]
    torch.testing.assert_close(states.layers[1], backbone(ramp(123)[None]).layers[1], rtol=0, atol=0)


@pytest.mark.parametrize("num_samples", [123, 500, 1234])
def test_mean_is_the_mean_over_the_kept_frames(num_samples):
    clips = torch.stack([ramp(num_samples), -2 * ramp(num_samples)])
    frames = run_clip(Frames(), clips)
    pooled = run_clip(Frames(), clips, reduce="mean", batch_size=2)
    assert pooled.frame_rate_hz is None and pooled.valid.shape == (2, 1)
    for i in (0, 1):
        torch.testing.assert_close(pooled.layers[i], frames.layers[i].mean(1, keepdim=True))


def test_batch_size_and_neighbours_change_nothing():
    clips = torch.randn(3, 1777, generator=torch.Generator().manual_seed(0))
    together = run_clip(Frames(), clips, batch_size=5).layers[1]
    for i, clip in enumerate(clips):
        torch.testing.assert_close(run_clip(Frames(), clip, batch_size=1).layers[1][0], together[i])


def test_gradients_pass_through():
    backbone = Frames()
    mean = run_clip(backbone, ramp(1234), reduce="mean", layers=[0]).layers[0][0, 0, 0]
    mean.backward()
    assert float(backbone.gain.grad) == pytest.approx(float(mean.detach()), rel=1e-6)  # linear in the gain


def test_policies():
    assert ChunkPolicy.of(Frames()) == ChunkPolicy(0.5)
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="chunk_seconds"):
            ChunkPolicy(seconds)


def test_what_cannot_be_run_is_refused():
    with pytest.raises(ValueError, match="at least 20 samples"):
        run_clip(Frames(), ramp(19))
    with pytest.raises(ValueError, match="at least 20 samples"):
        run_clip(Frames(), ramp(1000), ChunkPolicy(0.01))
    clip_level = Frames()
    clip_level.hop_samples = None
    with pytest.raises(ValueError, match="one vector per clip"):
        run_clip(clip_level, ramp(1000), ChunkPolicy(0.5))


def test_chunks_with_prompts_are_refused():
    class Prompted(Frames):
        def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
            r = super().forward(waveform, num_samples, layers, last_layer)
            longer = {i: torch.cat([x[:, :2], x], 1) for i, x in r.layers.items()}
            valid = torch.ones(next(iter(longer.values())).shape[:2], dtype=torch.bool)
            return HiddenStates(longer, valid, 100.0, 0.01, num_prompts=2)

    assert run_clip(Prompted(), ramp(500)).num_prompts == 2
    with pytest.raises(ValueError, match="learned prompts"):
        run_clip(Prompted(), ramp(1000))
