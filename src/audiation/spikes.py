"""Steps whose loss or gradient stands out from those before."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any


class SpikeWatch:
    """Knows loss and norm of the gradient of the last `window` steps.

    Spikes are remembered like all other steps, so that a level that stays becomes the usual one after half a window.
    """

    def __init__(self, factor: float, window: int) -> None:
        self.factor = factor
        self._last = {"loss": deque[float](maxlen=window), "grad_norm": deque[float](maxlen=window)}

    def look(self, loss: float, grad_norm: float) -> str:
        """What stands out in this step, in words; "" where nothing does, and before the first `window` steps.

        loss, grad_norm: finite. A median that is not positive has no multiple to be over.
        """
        found = []
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            last = self._last[name]
            if len(last) == last.maxlen:
                usual = statistics.median(last)
                if 0.0 < usual * self.factor < value:
                    found.append(f"{name} {value:.4g} is {value / usual:.1f} times its median {usual:.4g}")
            last.append(value)
        return ", ".join(found)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON values."""
        return {name: list(values) for name, values in self._last.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, values in self._last.items():
            values.clear()
            values.extend(state[name])
