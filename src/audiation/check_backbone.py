"""`check_backbone`: every contract asked of one backbone, with answers for people who write their first."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from audiation.backbones import BACKBONES, BackboneSpec
from audiation.contracts import building, input, output, training  # noqa: F401  (their contracts register themselves)
from audiation.contracts.building import everything_as_it_was
from audiation.contracts.subject import (
    CONTRACTS,
    OPENINGS,
    ContractError,
    NotAskedError,
    Subject,
    place,
    require,
    run,
    tones,
)
from audiation.contracts.training import method_title, trains
from audiation.loading import load_backbone
from audiation.methods import METHODS
from audiation.own_backbones import is_own_backbone, load_own_backbone

WEIGHTS_TITLE = "its weights load"
Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """What became of one contract. text: what is wrong, why it was skipped, or a note; "" where there is nothing."""

    contract: str
    status: Status
    text: str = ""


def check_backbone(
    name: str, weights: str | Path | None = None, report: Callable[[Finding], None] | None = None
) -> list[Finding]:
    """Ask a backbone every contract. The backbone has fresh weights, and only its first blocks where it can be cut.

    Args:
        name: as in `audiation list backbones`, or "path/to/file.py:name", which executes that file.
        weights: a file, directory or Hub id that `load_backbone` is asked to load as well.
        report: called with every finding as soon as it is there.

    Raises:
        UnknownNameError: no such backbone.
        OwnBackboneError: a file that is not there, cannot be executed, or defines no such backbone.
    """
    spec = load_own_backbone(name) if is_own_backbone(name) else BACKBONES[name]
    findings: list[Finding] = []

    def note(finding: Finding) -> None:
        findings.append(finding)
        if report is not None:
            report(finding)

    for number, (title, opening) in enumerate(OPENINGS.items(), start=1):
        finding, made = _ask(title, partial(opening, name, spec))
        note(finding)
        if finding.status == "fail":
            for later in contract_titles()[number:]:
                note(Finding(later, "skip", f"it needs '{title}'"))
            return findings
    assert isinstance(made, Subject)
    for title, contract in CONTRACTS.items():
        note(_ask(title, partial(contract, made))[0])
    for method in METHODS:
        note(_ask(method_title(method), partial(trains, made, method))[0])
    note(_ask(WEIGHTS_TITLE, partial(_weights_load, name, spec, weights))[0])
    return findings


def contract_titles() -> list[str]:
    """Every contract, in the order in which they are asked."""
    return [*OPENINGS, *CONTRACTS, *(method_title(method) for method in METHODS), WEIGHTS_TITLE]


def counts(findings: Sequence[Finding]) -> dict[Status, int]:
    """How many findings there are of each kind."""
    return {status: sum(f.status == status for f in findings) for status in get_args(Status)}


def _ask(title: str, question: Callable[[], Any]) -> tuple[Finding, Any]:
    """The finding, and what the question returned. No question sees what another one has changed for everybody."""
    try:
        with everything_as_it_was(stream=zlib.crc32(title.encode())):
            answer = question()
    except NotAskedError as why:
        return Finding(title, "skip", str(why)), None
    except ContractError as problem:
        return Finding(title, "fail", str(problem)), None
    except Exception as error:  # whatever somebody else's model raises is a finding, not the end
        return Finding(title, "fail", f"it raised {type(error).__name__}: {error}{place(error)}"), None
    return Finding(title, "pass", answer if isinstance(answer, str) else ""), answer


def _weights_load(name: str, spec: BackboneSpec, weights: str | Path | None) -> str | None:
    if spec.from_published is None:
        raise NotAskedError("it has no `from_published`: nothing is loaded")
    if weights is None:
        raise NotAskedError("no weights were given (--weights FILE)")
    backbone = load_backbone(name, weights)
    for i, x in run(backbone, tones(backbone)).layers.items():
        require(bool(torch.isfinite(x).all()), f"with these weights layer {i} has NaN or infinite values.")
    return f"{backbone.num_layers} layers from {backbone.weights_source}"
