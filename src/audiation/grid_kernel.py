"""Gradients of a hidden layer whose units are mostly off, compiled by numba.

A unit that dropout or the ReLU has put to zero for an example adds nothing to the gradient of its weights, and a dense
product multiplies these zeros. Dropped at 0.75, an eighth of the units is left.
"""

from __future__ import annotations

import numba
import numpy as np

COLUMNS = 512  # whose sums stay in the nearest cache


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def sparse_product(d_RB: np.ndarray, x_BD: np.ndarray, out_RD: np.ndarray) -> None:
    """`d @ x` into `out`, all float32 and contiguous, passing over the zeros of `d`.

    Eight examples are added at a time, so that a sum is read and written once for all of them.
    """
    num_examples, dim = x_BD.shape
    found = np.empty(num_examples + 8, np.int64)
    factors = np.zeros(num_examples + 8, np.float32)
    for r in range(len(d_RB)):
        count = 0
        for b in range(num_examples):
            if d_RB[r, b] != 0:
                found[count] = b
                factors[count] = d_RB[r, b]
                count += 1
        while count % 8 != 0 or count == 0:
            found[count] = 0
            factors[count] = 0
            count += 1
        for start in range(0, dim, COLUMNS):
            end = min(dim, start + COLUMNS)
            out = out_RD[r, start:end]
            for first in range(0, count, 8):
                f0, f1, f2, f3 = factors[first], factors[first + 1], factors[first + 2], factors[first + 3]
                f4, f5, f6, f7 = (
                    factors[first + 4],
                    factors[first + 5],
                    factors[first + 6],
                    factors[first + 7],
                )
                x0 = x_BD[found[first], start:end]
                x1 = x_BD[found[first + 1], start:end]
                x2 = x_BD[found[first + 2], start:end]
                x3 = x_BD[found[first + 3], start:end]
                x4 = x_BD[found[first + 4], start:end]
                x5 = x_BD[found[first + 5], start:end]
                x6 = x_BD[found[first + 6], start:end]
                x7 = x_BD[found[first + 7], start:end]
                if first == 0:
                    for j in range(end - start):
                        out[j] = (
                            (f0 * x0[j] + f1 * x1[j])
                            + (f2 * x2[j] + f3 * x3[j])
                            + (f4 * x4[j] + f5 * x5[j])
                            + (f6 * x6[j] + f7 * x7[j])
                        )
                else:
                    for j in range(end - start):
                        out[j] += (
                            (f0 * x0[j] + f1 * x1[j])
                            + (f2 * x2[j] + f3 * x3[j])
                            + (f4 * x4[j] + f5 * x5[j])
                            + (f6 * x6[j] + f7 * x7[j])
                        )
