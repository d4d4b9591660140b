"""What a backbone makes of clips that are padded, short, wrong, silent or loud."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from audiation.contracts.subject import (
    ContractError,
    NotAskedError,
    Subject,
    contract,
    differ,
    place,
    refuses,
    require,
    run,
)


@contract("padding is harmless, or refused")
def _padding(subject: Subject) -> str | None:
    backbone, clips = subject.backbone, subject.clips
    shorter = max(clips.shape[1] - 3 * (backbone.hop_samples or 1000), backbone.min_samples)
    if shorter == clips.shape[1]:
        raise NotAskedError("its shortest clip is its only one")
    lengths = torch.tensor([clips.shape[1], shorter])
    if not backbone.accepts_padding:
        refuses(
            "a batch of unequal lengths (accepts_padding is False)", lambda: run(backbone, clips, lengths)
        )
        return "refused"
    padded, alone = run(backbone, clips, lengths), run(backbone, clips[1:, :shorter])
    frames = backbone.num_frames(shorter)
    require(
        int(padded.valid[1].sum()) == frames
        and bool(padded.valid[1, :frames].all())
        and bool(padded.valid[0].all()),
        f"`valid` is True for {int(padded.valid[1].sum())} frames of a padded clip of {shorter} samples; it has "
        f"{frames}.",
    )
    for i, x in padded.layers.items():
        for kind, ours, theirs in (
            ("the longer clip", x[0], subject.states.layers[i][0]),
            ("the padded clip", x[1, :frames], alone.layers[i][0]),
        ):
            problem = differ(ours, theirs, 1e-4)
            require(
                not problem,
                f"padding changes layer {i} of {kind}: {problem}. Keep padding out of what is normalised and attended, "
                "or set `accepts_padding = False`.",
            )
    return "harmless"


@contract("wrong input is refused in words")
def _wrong_input(subject: Subject) -> None:
    backbone, clips = subject.backbone, subject.clips
    refuses("a waveform (S,) without a batch", lambda: run(backbone, clips[0]))
    refuses("a waveform of whole numbers", lambda: run(backbone, clips.short()))
    refuses("an empty batch", lambda: run(backbone, clips[:0]))
    too_many = backbone.num_layers + 1
    refuses(f"layer {too_many}, which there is not,", lambda: run(backbone, clips, layers=[too_many]))


@contract("clips of `min_samples` run, shorter ones are refused")
def _shortest(subject: Subject) -> str | None:
    backbone, least = subject.backbone, subject.backbone.min_samples
    clip = F.pad(subject.clips[:, :least], (0, max(0, least - subject.clips.shape[1])))
    try:
        states = run(backbone, clip)
    except Exception as error:
        raise ContractError(
            f"a clip of min_samples={least} samples fails: {type(error).__name__}: {error}{place(error)}. Raise "
            "`min_samples` to what the model needs."
        ) from error
    require(states.valid.shape[1] >= 1, f"a clip of min_samples={least} samples has no frames.")
    if least > 1:
        refuses(
            f"a clip of {least - 1} samples (min_samples={least})",
            lambda: run(backbone, clip[:, : least - 1]),
        )
    return f"{least} samples, {least / backbone.sample_rate_hz:.3f} s"


@contract("silence and full-scale noise give finite numbers")
def _extremes(subject: Subject) -> None:
    noise = torch.rand(1, subject.clips.shape[1], generator=torch.Generator().manual_seed(0)) * 2 - 1
    for kind, clip in (
        ("silence", torch.zeros_like(noise)),
        ("noise", noise),
        ("noise at 30,000", 30_000 * noise),
    ):
        for i, x in run(subject.backbone, clip).layers.items():
            bad = int((~torch.isfinite(x)).sum())
            require(
                bad == 0,
                f"{kind} gives {bad} NaN or infinite values in layer {i}. Is something divided by its own size, or a "
                "logarithm taken of 0? Add a small number first.",
            )


@contract("the input is left as it was")
def _input_stays(subject: Subject) -> None:
    clips = subject.clips.clone()
    with torch.inference_mode():
        subject.backbone(clips)
    require(
        torch.equal(clips, subject.clips),
        "`forward` writes into the waveform it was given. Use operations that make a new tensor (x / y, not x /= y).",
    )
