"""Multichannel Wiener filtering: magnitudes of sources and a stereo mixture -> spectra of the sources.

A local Gaussian model: source j has a power v_j(f, t) and, per frequency, a spatial covariance R_j(f) (where in the
stereo picture it lies). Both are estimated from the present estimates, and each source then gets its share
`v_j R_j (sum_i v_i R_i)^-1` of the mixture (Duong, Vincent & Gribonval 2010; the simplified updates of Nugraha,
Liutkus & Vincent 2016, which Open-Unmix uses). The two libraries that do this are out of reach: norbert has had no
release since 2019 and is numpy only, Open-Unmix needs torchaudio.

Shape letters: `N` sources, `F` frequency bins, `T` frames; two channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Sources = Literal["alone", "together"]
Stereo = Literal["mean", "each"]

CHANNELS = 2
# Of the mean power of a bin, added to the diagonal of its covariance: two channels that are alike make it singular.
RELATIVE_REGULARISATION = 1e-10
TINY = 1e-30  # power; keeps silent bins from dividing 0 by 0


@dataclass(frozen=True)
class Filtering:
    """How magnitudes become signals.

    iterations: of the filter; 0: magnitudes with the phase of the mixture.
    window_frames: frames whose powers share their spatial covariances; a new window begins anew.
    residual: whether what the stems leave of the mixture is a source of its own.
    sources: "alone": every stem is filtered against its own residual, as in the released code, which has one model
        per stem; "together": all stems at once, as in Open-Unmix, so that they compete for the mixture.
    stereo: the magnitude that a mask is applied to. "mean": that of the channels' mean, for both of them, as
        released; "each": that of each channel, which keeps a hard-panned stem where it is.
    """

    iterations: int = 1
    window_frames: int = 600
    residual: bool = True
    sources: Sources = "alone"
    stereo: Stereo = "mean"

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.window_frames < 1:
            raise ValueError(
                f"iterations are 0 or more and a window has one frame or more, got {self.iterations} and "
                f"{self.window_frames}"
            )
        if self.sources not in ("alone", "together"):
            raise ValueError(f"sources is 'alone' or 'together', got {self.sources!r}")
        if self.stereo not in ("mean", "each"):
            raise ValueError(f"stereo is 'mean' or 'each', got {self.stereo!r}")
        if self.iterations and self.sources == "alone" and not self.residual:
            raise ValueError("a stem alone needs residual=True: without one it would get the whole mixture")


def filtered(magnitudes: Tensor, mixture: Tensor, filtering: Filtering) -> Tensor:
    """Spectra of the stems `(N, 2, F, T)` in one window; residuals are left out.

    Args:
        magnitudes: `(N, 1 or 2, F, T)`.
        mixture: `(2, F, T)` complex.
    """
    num_stems = magnitudes.shape[0]
    if filtering.sources == "together":
        return wiener(magnitudes, mixture, filtering.iterations, filtering.residual)[:num_stems]
    alone = [wiener(m[None], mixture, filtering.iterations, filtering.residual)[:1] for m in magnitudes]
    return torch.cat(alone)


def wiener(magnitudes: Tensor, mixture: Tensor, iterations: int = 1, residual: bool = False) -> Tensor:
    """Spectra `(N, 2, F, T)` of N sources, or `(N + 1, 2, F, T)` with the residual last.

    With a residual, or after one iteration, they add up to the mixture wherever there is a source.

    Args:
        magnitudes: `(N, 1 or 2, F, T)`, not negative; 1 channel stands for both.
        mixture: `(2, F, T)` complex.

    Raises:
        ValueError: other shapes, negative or not finite magnitudes, one source without residual.
    """
    if mixture.ndim != 3 or mixture.shape[0] != CHANNELS or not mixture.is_complex():
        raise ValueError(
            f"the mixture is a complex stereo spectrum (2, F, T), got {tuple(mixture.shape)} {mixture.dtype}"
        )
    if (
        magnitudes.ndim != 4
        or magnitudes.shape[1] not in (1, CHANNELS)
        or magnitudes.shape[2:] != mixture.shape[1:]
    ):
        raise ValueError(
            f"magnitudes are (N, 1 or 2, F, T) for a mixture {tuple(mixture.shape)}, got {tuple(magnitudes.shape)}"
        )
    if not bool((torch.isfinite(magnitudes) & (magnitudes >= 0)).all()):
        raise ValueError("magnitudes must be finite and not negative")
    if iterations and len(magnitudes) + residual < 2:
        raise ValueError("filtering needs two sources or more. Use residual=True, or iterations=0.")
    # Double precision: the inverse of a covariance of two channels that are nearly alike loses half of the digits.
    x = mixture.to(torch.complex128)
    sources = magnitudes.double() * torch.exp(1j * x.angle())
    if residual:
        sources = torch.cat([sources, (x - sources.sum(0))[None]])
    for _ in range(iterations):
        sources = _filter_once(sources, x)
    return sources.to(mixture.dtype)


def _filter_once(sources: Tensor, x: Tensor) -> Tensor:
    """New estimates `(N, 2, F, T)` of these, from the mixture `(2, F, T)`."""
    left, right = sources[:, 0], sources[:, 1]
    power_left, power_right = left.abs().square(), right.abs().square()
    power = 0.5 * (power_left + power_right)  # v, (N, F, T)
    weight = power.sum(-1, keepdim=True) + TINY
    # R: what is known of a Hermitian 2 x 2 matrix per source and frequency, each (N, F, 1).
    r_left = power_left.sum(-1, keepdim=True) / weight
    r_right = power_right.sum(-1, keepdim=True) / weight
    r_cross = (left * right.conj()).sum(-1, keepdim=True) / weight
    # C = sum of v R, each (F, T).
    c_left, c_right, c_cross = ((power * r).sum(0) for r in (r_left, r_right, r_cross))
    extra = RELATIVE_REGULARISATION * 0.5 * (c_left + c_right) + TINY
    c_left, c_right = c_left + extra, c_right + extra
    determinant = (c_left * c_right - c_cross.abs().square()).clamp_min(extra.square())
    # C^-1 x
    white_left = (c_right * x[0] - c_cross * x[1]) / determinant
    white_right = (c_left * x[1] - c_cross.conj() * x[0]) / determinant
    new_left = power * (r_left * white_left + r_cross * white_right)
    new_right = power * (r_cross.conj() * white_left + r_right * white_right)
    return torch.stack([new_left, new_right], dim=1)
