"""Evaluation protocols as values: everything that is fixed before a number may be compared with another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from audiation.probe import EVALUATE_EVERY_STEPS, PATIENCE_EVALUATIONS, ProbeConfig
from audiation.registry import Registry


@dataclass(frozen=True)
class Protocol:
    """How one backbone is judged on one task.

    version: raised whenever numbers made before and after a change cannot be compared.
    source: who published the rules.
    caveat: what these numbers must not be mistaken for; "" where there is nothing to say.
    pooling: over the frames of a window.
    probes: the configurations that are trained; the best on the validation split is tested once.
    search_layers: whether the layer is searched as well, or is one that the run names.
    selection: what decides when training ends and which state is kept.
    """

    name: str
    version: int
    source: str
    probes: tuple[ProbeConfig, ...]
    caveat: str = ""
    pooling: Literal["mean"] = "mean"
    search_layers: bool = False
    selection: Literal["validation-metric"] = "validation-metric"

    def describe(self) -> str:
        """A paragraph for people."""
        layer = "layers are searched" if self.search_layers else "one layer, named by the run"
        if len(self.probes) == 1:
            probes = f"one probe ({_describe_probe(self.probes[0])})"
        else:
            probes = f"best of {len(self.probes)} probes on validation"
        text = (
            f"Frozen backbone, {layer}, {self.pooling} over the frames of a window; {probes}; Adam; "
            f"the task's first metric on validation every {EVALUATE_EVERY_STEPS} steps, "
            f"best state after {PATIENCE_EVALUATIONS} looks without improvement, tested once. "
            "Windows of a track are examples of their own in training and are averaged for its answer, "
            f"as the task says. Rules of {self.source}."
        )
        return f"{text} {self.caveat}".strip()


PROTOCOLS: Registry[Protocol] = Registry("protocol", "audiation.protocols")


def _describe_probe(probe: ProbeConfig) -> str:
    head = "linear" if probe.hidden_size is None else f"MLP with {probe.hidden_size} hidden units"
    inputs = "standardised vectors" if probe.standardise else "vectors as they are"
    decay = f"weight decay {probe.weight_decay:g}" if probe.weight_decay else "no weight decay"
    return (
        f"{inputs}, {head}, dropout {probe.dropout:g} on input and hidden layer, batch {probe.batch_size}, "
        f"learning rate {probe.learning_rate:g}, {decay}"
    )


def _add(protocol: Protocol) -> None:
    PROTOCOLS.add(protocol.name, protocol)


_add(
    Protocol(
        name="jukemir-single",
        version=1,
        source="jukemir (Castellon, Donahue & Liang 2021)",
        probes=(ProbeConfig(),),
        caveat=(
            "This is one of the 216 configurations of that paper's grid, so its numbers are not the paper's, "
            "which are the best of all 216 on validation."
        ),
    )
)
