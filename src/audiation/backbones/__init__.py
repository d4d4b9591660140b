"""Backbones: waveform `(B, S)` -> hidden states. One file per model family."""

from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, HiddenStates

__all__ = ["BACKBONES", "Backbone", "BackboneSpec", "HiddenStates"]
