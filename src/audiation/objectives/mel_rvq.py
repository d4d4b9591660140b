"""Mel-RVQ: codes of a residual quantiser that is fitted to the corpus, as targets (Zhu et al. 2025, MuQ, arXiv
2501.01108).

Shape letters: `N` frames, `F` features, `H` width of a codebook, `Q` codebooks, `C` codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audiation.objectives.quantisers import CODEBOOK_DIM, LOOKUP_ROWS, SEED, check_sizes

FIT_ROWS = 10_000  # frames that k-means moves its centres by at once
FIT_ROUNDS = 100  # over all frames at most; it stops where nothing improves
PATIENCE = 30  # batches without improvement


class MelRvq(nn.Module):
    """`(..., F)` features -> `(Q, ...)` int64 codes: each codebook takes what those before it have left over.

    The form is that of the released MuQ: eight codebooks of 1,024 codes, each behind a linear map of its own from the
    stacked mel frames (four of 128 bands) to 16 numbers, and one back. The fit is ours: MuQ trains maps and codes by
    gradient, on reconstruction and commitment; here the map is to the H principal components of the residual, which is
    the best linear one before rounding, the map back is its transpose, and the codes are the centres of k-means there.
    So it takes minutes on a CPU, and the codes are not those of MuQ. Always in float32.

    Until `fit`, or a checkpoint, fills it, it refuses to quantise. It takes the place of a `RandomProjectionQuantiser`.

    Buffers: `mean` `(F,)`, `projections` `(Q, F, H)` with orthonormal columns, `codebooks` `(Q, C, H)`, `num_fitted`,
    the frames of the fit.

    seed: of the fit; codebook i is fitted with seed + i.
    """

    mean: Tensor
    projections: Tensor
    codebooks: Tensor
    num_fitted: Tensor

    def __init__(
        self,
        num_features: int,
        num_codes: int = 1024,
        num_codebooks: int = 8,
        dim: int = CODEBOOK_DIM,
        seed: int = SEED,
    ) -> None:
        super().__init__()
        check_sizes(num_features, num_codes, num_codebooks, dim)
        if dim > num_features:
            raise ValueError(
                f"a Mel-RVQ has at most as many numbers per code as features, {num_features}, got {dim}. Take "
                "a smaller codebook_dim."
            )
        self.seed = seed
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("projections", torch.zeros(num_codebooks, num_features, dim))
        self.register_buffer("codebooks", torch.zeros(num_codebooks, num_codes, dim))
        self.register_buffer("num_fitted", torch.zeros((), dtype=torch.int64))

    @property
    def num_codebooks(self) -> int:
        return self.codebooks.shape[0]

    @property
    def num_codes(self) -> int:
        return self.codebooks.shape[1]

    @torch.no_grad()
    def fit(self, features: Tensor) -> tuple[float, ...]:
        """Fill it from `(N, F)` features of crops of the corpus; 100 frames a code are plenty.

        On one machine equal features give equal codes.

        Returns:
            For every codebook the share of the variance that is left over after it.

        Raises:
            ValueError: another number of features, values that are not finite, or fewer different frames than codes.
        """
        self._check(features)
        residual = features.detach().to("cpu", torch.float32)
        mean = residual.mean(0)
        residual = residual - mean
        total = residual.square().mean()
        left = []
        for i in range(self.num_codebooks):
            projection = _principal_components(residual, self.projections.shape[2])
            codebook = _centres(residual @ projection, self.num_codes, self.seed + i)
            residual = residual - codebook[_nearest(residual @ projection, codebook)] @ projection.T
            self.projections[i].copy_(projection)
            self.codebooks[i].copy_(codebook)
            left.append(float(residual.square().mean() / total))
        self.mean.copy_(mean)
        self.num_fitted.fill_(len(features))
        return tuple(left)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Raises ValueError before it is fitted."""
        if not self.num_fitted.item():
            raise ValueError(
                "this Mel-RVQ has no codes yet. Call fit() with mel frames of the corpus, or load a checkpoint."
            )
        with torch.autocast(features.device.type, enabled=False):
            residual = features.float().flatten(0, -2) - self.mean
            codes = []
            for codebook, projection in zip(self.codebooks, self.projections, strict=True):
                codes.append(_nearest(residual @ projection, codebook))
                residual = residual - codebook[codes[-1]] @ projection.T
        return torch.stack(codes).unflatten(1, features.shape[:-1])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """`(Q', ...)` codes of the first Q' codebooks -> `(..., F)`, what they say about the features."""
        features = self.mean
        for code, codebook, projection in zip(codes, self.codebooks, self.projections, strict=False):
            features = features + codebook[code] @ projection.T
        return features

    def _check(self, features: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"a Mel-RVQ of {len(self.mean)} features is fitted to (frames, {len(self.mean)}), got "
                f"{tuple(features.shape)}"
            )
        if not bool(features.isfinite().all()):
            raise ValueError("a Mel-RVQ cannot be fitted to features that are not finite")
        num_different = len(features.unique(dim=0))
        if num_different < max(self.num_codes, 2):
            raise ValueError(
                f"a codebook of {self.num_codes} codes needs as many different frames, got {num_different} among "
                f"{len(features)}. Give more crops, or take a smaller codebook_size."
            )


def _principal_components(residual_NF: Tensor, num_components: int) -> Tensor:
    """`(F, H)`, those of the largest variance first."""
    covariance = residual_NF.T.double() @ residual_NF.double()
    return torch.linalg.eigh(covariance).eigenvectors[:, -num_components:].flip(1).float()


def _centres(points_NH: Tensor, num_codes: int, seed: int) -> Tensor:
    """`(C, H)`, by k-means."""
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(
        num_codes,
        max_iter=FIT_ROUNDS,
        batch_size=FIT_ROWS,
        max_no_improvement=PATIENCE,
        n_init=1,
        random_state=seed,
    ).fit(points_NH.numpy())
    return torch.from_numpy(fitted.cluster_centers_).float()


def _nearest(points_NH: Tensor, codebook_CH: Tensor) -> Tensor:
    """`(N,)`: which code is nearest."""
    # A point's own length brings no code nearer than another.
    offsets = -0.5 * codebook_CH.square().sum(1)
    scores = (torch.addmm(offsets, part, codebook_CH.T) for part in points_NH.split(LOOKUP_ROWS))
    return torch.cat([part.argmax(1) for part in scores])
