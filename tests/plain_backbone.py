"""The file of a small backbone that keeps every contract, for tests to load and to break."""

# A model without blocks, with a `forward` of its own: its two layers are fixed functions of 20 ms frames.
PLAIN = """
import torch
from audiation.backbones.base import Backbone, BackboneSpec, HiddenStates


class Slices(Backbone):
    def __init__(self):
        super().__init__()
        self.name, self.num_layers, self.dim = "slices", 1, 8
        self.sample_rate_hz, self.hop_samples = 8000, 160
        self.frame_rate_hz = self.sample_rate_hz / self.hop_samples
        self.min_samples, self.max_seconds = 160, None
        self.first_frame_seconds = 80 / 8000
        self.normalisation, self.accepts_padding = "none", True

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        lengths = self.check_input(waveform, num_samples)
        wanted, stop = self.resolve_layers(layers, last_layer)
        x = waveform.unfold(1, 160, 160).unflatten(2, (8, 20)).square().mean(-1)
        frames = torch.tensor([self.num_frames(n) for n in lengths.tolist()])
        valid = torch.arange(x.shape[1]) < frames[:, None]
        found = {0: x, 1: torch.tanh(x)}
        kept = {i: found[i].float() for i in wanted}
        states = HiddenStates(kept, valid, self.frame_rate_hz, self.first_frame_seconds)
        return states.mean() if reduce == "mean" else states

    def num_frames(self, num_samples):
        return num_samples // 160


def build(num_layers=None, generator=None):
    return Slices()


slices = BackboneSpec("slices", "squares of slices", build, has_encoder=False)
"""
