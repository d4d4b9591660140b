"""Official weights as facts and files: where they live, how to read them safely, how to tell them apart.

This module knows no backbone. `loading.py` puts the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class WeightsError(ValueError):
    """Weights that cannot be used. The message names the file, the reason, and what to do next."""


@dataclass(frozen=True)
class OfficialFile:
    """One file on the Hugging Face Hub.

    size_bytes, sha256: None where nobody whom we can name has recorded them.
    hash_source: who vouches for size and hash. "spec": the content was rebuilt and matched, so a mismatch is final.
        "third-party": read in public records only, so a user may override a mismatch, loudly.
    mismatch_hint: what a mismatch most likely means, added to the message.
    """

    repo_id: str
    filename: str
    size_bytes: int | None = None
    sha256: str | None = None
    hash_source: Literal["spec", "third-party"] = "third-party"
    mismatch_hint: str = ""


@dataclass(frozen=True)
class OfficialWeights:
    """What a published model consists of.

    checkpoint: the tensors.
    config: the published JSON beside it (`config.json`, or MusicFM's statistics); None: there is none.
    default_config: the fields of that JSON that decide the architecture, as this package knows them. Used when only
        a checkpoint is given; a JSON beside a checkpoint that says otherwise belongs to another model and is refused.
    licence, licence_note: of the weights; shown once per machine.
    revision: git revision on the Hub; None: its main branch.
    """

    checkpoint: OfficialFile
    config: OfficialFile | None
    licence: str
    licence_note: str = ""
    default_config: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None

    @property
    def files(self) -> tuple[OfficialFile, ...]:
        return (self.checkpoint,) if self.config is None else (self.checkpoint, self.config)
