"""Dynamic loss scaling for float16, whose gradients would vanish unscaled and overflow when scaled too much."""

from __future__ import annotations

from typing import Any

INITIAL, MINIMUM = 128.0, 1e-4  # MERT spec, section 3.6


class LossScale:
    """The factor of the loss. Doubled after `window` good steps in a row, halved after a step that overflowed.

    Its values are powers of two, so that scaling and unscaling round nothing but what is too small for float16.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.value = INITIAL
        self.good_steps = 0

    @property
    def is_too_small(self) -> bool:
        """So many overflows cannot be the scale's fault."""
        return self.value < MINIMUM

    def note_good_step(self) -> None:
        self.good_steps += 1
        if self.good_steps == self.window:
            self.value, self.good_steps = 2.0 * self.value, 0

    def note_overflow(self) -> None:
        self.value, self.good_steps = 0.5 * self.value, 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON values."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
