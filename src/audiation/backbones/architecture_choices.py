"""What decides the shape of a backbone to pre-train, as one frozen value with a short form: "bert:size=mini".

`architecture.py` builds it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Literal

from audiation.backbones.hubert_config import HubertConfig
from audiation.choices import parse_choices

ENCODERS = ("conformer", "bert")
WAVEFORM_HOP_SAMPLES = 320  # of the seven convolutions on the waveform
# Frames per second -> mel frames per second, and the time strides of the two residual blocks. 75 is no whole part of
# the usual 100 mel frames per second, hence 150.
MEL_RATES = {25: (100, (2, 2)), 50: (100, (2, 1)), 75: (150, (2, 1))}


@dataclass(frozen=True)
class Sizes:
    """dim: D. ffn_dim: of the feed-forward networks. conv_channels: of the stem's convolutions."""

    dim: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    conv_channels: int


# A block of a conformer has nearly twice the parameters of a block of BERT, so it has half as many. The papers name the
# sizes and print no widths: 330m are those of the released MusicFM and MERT, bert:95m is HuBERT base, and a conformer
# of 24 blocks of 1,024, as BEST-RQ has for speech, counts 0.61 billion; that is what "660m" is here.
SIZES: dict[tuple[str, str], Sizes] = {
    ("conformer", "mini"): Sizes(128, 4, 512, 4, 32),
    ("conformer", "95m"): Sizes(768, 12, 3072, 6, 256),
    ("conformer", "330m"): Sizes(1024, 16, 4096, 12, 512),
    ("conformer", "660m"): Sizes(1024, 16, 4096, 24, 512),
    ("bert", "mini"): Sizes(128, 4, 512, 8, 32),
    ("bert", "95m"): Sizes(768, 12, 3072, 12, 256),
    ("bert", "330m"): Sizes(1024, 16, 4096, 24, 512),
    ("bert", "660m"): Sizes(1024, 16, 4096, 48, 512),
}
WAVEFORM_CHANNELS = {"mini": 64}  # of the convolutions on the waveform; elsewhere 512 as published


@dataclass(frozen=True)
class Architecture:
    """What decides the shape of a backbone; the short form is "encoder:field=value,...".

    encoder: "conformer": MusicFM's. "bert": HuBERT's transformer, whose positions are a convolution.
    stem: "mel": normalised log-mel and two residual blocks, MusicFM's. "waveform": seven convolutions, HuBERT's.
    size: see `SIZES`; dim, num_heads, ffn_dim, num_layers, conv_channels replace single numbers of it.
    frame_rate_hz: of the output. On mel spectra the hop is 10 ms, at 75 Hz 6.7 ms; the blocks halve time twice at 25 Hz
        and once at 50 and 75. On waveforms a frame is 320 samples: 75 Hz at 24 kHz, 50 Hz at 16 kHz.
    norm: of "bert"; a conformer has its own, before its modules. Yuan's thesis on MERT-330M in float16 (section 5.3;
        MERT spec, 3.7):
        "post": HuBERT base, MERT-95M. At 330M it was unstable: gradients clipped all the time, spikes of the loss.
        "pre": HuBERT large, MERT-330M. Let the training go on: it crashed near step 50,000 with gradients clipped at
        10, and some 40,000 steps after a restart with 1.
        "deepnorm": post-norm with skip branches times (2 L)^(1/4) and smaller first weights. Collapsed near 20,000.
    attention_relax: constant of `attention.relaxed_attention`; None: without. With "pre" and 32 the thesis' run was
        stable beyond 100,000 steps, although the released code never executes it. In bfloat16 nothing needs it.
    conv_norm: of "waveform": "group", over the clip, after the first convolution (HuBERT base, MERT), or "layer", over
        channels after each (data2vec).
    dropout: one rate, in training only; 0.1 in MusicFM and MERT-95M, 0 in MERT-330M. None of activations in "bert", nor
        of the stem with conv_norm="layer", as in the published recipes.
    max_seconds: what it is trained to hear at once.

    Raises:
        ValueError: choices that do not go together, or numbers that do not fit.
    """

    encoder: Literal["conformer", "bert"] = "conformer"
    stem: Literal["mel", "waveform"] = "mel"
    size: Literal["mini", "95m", "330m", "660m"] = "mini"
    dim: int | None = None
    num_heads: int | None = None
    ffn_dim: int | None = None
    num_layers: int | None = None
    conv_channels: int | None = None
    sample_rate_hz: int = 24_000
    frame_rate_hz: Literal[25, 50, 75] = 25
    norm: Literal["post", "pre", "deepnorm"] = "pre"
    attention_relax: float | None = None
    conv_norm: Literal["group", "layer"] = "group"
    dropout: float = 0.1
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("encoder", ENCODERS),
            ("stem", ("mel", "waveform")),
            ("size", tuple(dict.fromkeys(size for _, size in SIZES))),
            ("frame_rate_hz", tuple(MEL_RATES)),
            ("norm", ("post", "pre", "deepnorm")),
            ("conv_norm", ("group", "layer")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} of an architecture is one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}"
                )
        for name, value in dataclasses.asdict(self.sizes).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} of an architecture is a whole number >= 1, got {value!r}")
        if self.sizes.dim % self.sizes.num_heads:
            raise ValueError(f"dim {self.sizes.dim} is not divisible by {self.sizes.num_heads} heads")
        if self.encoder == "conformer" and self.norm != "pre":
            raise ValueError(f"norm='{self.norm}' is for encoder 'bert'; a conformer has norms of its own")
        if self.encoder == "bert" and self.sizes.dim % HubertConfig.num_conv_pos_embedding_groups:
            groups = HubertConfig.num_conv_pos_embedding_groups
            raise ValueError(f"dim of 'bert' must be a multiple of {groups}, got {self.sizes.dim}")
        if self.stem == "mel" and self.conv_norm != "group":
            raise ValueError("conv_norm is for stem='waveform'; leave it away")
        if self.attention_relax is not None and not 1.0 <= self.attention_relax < math.inf:
            raise ValueError(f"attention_relax is None or a number >= 1, got {self.attention_relax}")
        if not 0.0 <= self.dropout < 1.0 or not 0.0 < self.max_seconds < math.inf:
            raise ValueError(
                "dropout must be from 0 to below 1 and max_seconds positive, got "
                f"{self.dropout} and {self.max_seconds}"
            )
        self._check_rates()

    def _check_rates(self) -> None:
        rate_hz = self.sample_rate_hz
        if self.stem == "waveform" and rate_hz != self.frame_rate_hz * WAVEFORM_HOP_SAMPLES:
            raise ValueError(
                f"stem='waveform' has a frame every {WAVEFORM_HOP_SAMPLES} samples: {self.frame_rate_hz} Hz needs "
                f"sample_rate_hz={self.frame_rate_hz * WAVEFORM_HOP_SAMPLES}, got {rate_hz}"
            )
        mel_rate_hz = MEL_RATES[self.frame_rate_hz][0]
        if self.stem == "mel" and (rate_hz < 1 or rate_hz % mel_rate_hz):
            raise ValueError(
                f"{self.frame_rate_hz} Hz come of {mel_rate_hz} mel frames per second, of which {rate_hz} Hz is no "
                "multiple. Take sample_rate_hz=24000."
            )

    @property
    def sizes(self) -> Sizes:
        """Those of `size`, with the numbers that were given in their place."""
        sizes = SIZES[self.encoder, self.size]
        if self.stem == "waveform":
            sizes = replace(sizes, conv_channels=WAVEFORM_CHANNELS.get(self.size, 512))
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(Sizes)}
        return replace(sizes, **{name: value for name, value in given.items() if value is not None})

    @property
    def time_strides(self) -> tuple[int, int]:
        """Of the two residual blocks on mel spectra."""
        return MEL_RATES[self.frame_rate_hz][1]

    @property
    def stacked_frames(self) -> int:
        """How many mel frames make a frame."""
        return math.prod(self.time_strides)

    @property
    def mel_hop_samples(self) -> int:
        """Samples between mel frames."""
        return self.sample_rate_hz // MEL_RATES[self.frame_rate_hz][0]


def parse_architecture(text: str) -> Architecture:
    """'bert:size=mini,frame_rate_hz=50' -> the architecture; fields that are not named keep their defaults.

    Raises:
        ValueError: another encoder, fields that it does not have, values that it does not take.
    """
    name, _, choices = text.strip().partition(":")
    if not is_architecture(text):
        raise ValueError(f"an architecture begins with {' or '.join(ENCODERS)}, got '{text}'")
    values = parse_choices(Architecture, choices, f"architecture '{name.strip()}'")
    if "encoder" in values:
        raise ValueError(f"the encoder is what stands before the colon: '{values['encoder']}:...'")
    return Architecture(encoder=name.strip(), **values)  # type: ignore[arg-type]


def format_architecture(architecture: Architecture) -> str:
    """The short form: the encoder and the fields that differ from the defaults."""
    given = [
        f"{f.name}={getattr(architecture, f.name)}"
        for f in dataclasses.fields(architecture)
        if f.name != "encoder" and getattr(architecture, f.name) != f.default
    ]
    return architecture.encoder + (":" + ",".join(given) if given else "")


def is_architecture(text: str) -> bool:
    """Whether a name begins as an architecture does; `parse_architecture` says whether it is one."""
    return text.strip().partition(":")[0].strip() in ENCODERS
