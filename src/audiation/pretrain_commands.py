"""`audiation pretrain run`: train a backbone on a corpus. `show` and `compare` are in `pretrain_view_commands.py`."""

from __future__ import annotations

from pathlib import Path


def run(
    backbone: str | None = None,
    corpus: str | None = None,
    out: Path | None = None,
    objective: str = "best_rq",
    crop_seconds: float = 30.0,
    train: str = "",
    weights: str = "random",
    method: str = "finetune",
    again: Path | None = None,
    device: str = "cpu",
    probe: str = "",
    probe_every_steps: int = 1000,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
) -> None:
    """Pre-train a backbone, or go on with one that is trained already, on a corpus.

    The command can be stopped at any moment and started again: it goes on from the last checkpoint and ends with the
    same bits. Several processes: torchrun --nproc-per-node N -m audiation pretrain run ... The trained backbone lies in
    OUT/backbone afterwards: `audiation evaluate --backbone NAME --weights OUT/backbone`.

    Args:
        backbone: name as in `audiation list backbones`, or an architecture like conformer:size=mini.
        corpus: folder (or URI) that `audiation corpus build` made, at the rate of the backbone.
        out: folder of this run alone.
        objective: as in `audiation list objectives`, with fields, like best_rq:codebook_size=8192.
        crop_seconds: length of what is heard at once.
        train: steps, sizes and rates, like steps=10000,batch_size=32,micro_batch_size=8,learning_rate=1e-3.
        weights: random; official, to go on from the official ones; or a file or folder of weights.
        method: finetune trains the whole backbone; lora:rank=8 and its like train what they add.
        again: repeat the run of this pretraining.json on the same corpus (then give no other choices of the run).
        device: torch device.
        probe: task of the benchmark that is probed while training, like scores-key; default: none.
        probe_every_steps: how often.
        data_root: of the probe's data, as for `audiation evaluate`.
        metadata_root: of the probe's data.
    """
    from audiation.pretrain_console import check_same_corpus, given_run, pretrain_with_progress

    if corpus is None or out is None:
        raise ValueError(
            "name a --corpus that `audiation corpus build` made, and a folder of the run with --out"
        )
    choices = {
        "--backbone": (backbone, None), "--objective": (objective, "best_rq"), "--crop-seconds": (crop_seconds, 30.0),
        "--train": (train, ""), "--weights": (weights, "random"), "--method": (method, "finetune"),
    }  # fmt: skip
    if again is not None:
        if given := [flag for flag, (value, default) in choices.items() if value != default]:
            raise ValueError(f"--again repeats a run, so {', '.join(given)} cannot be given as well")
    elif backbone is None:
        raise ValueError("name a --backbone, or repeat a run with --again OUT/pretraining.json")
    chosen = given_run(again, backbone or "", objective, crop_seconds, train, weights, method)
    if again is not None:
        check_same_corpus(again, corpus)
    pretrain_with_progress(
        chosen, corpus, out, device=device, probe=probe, probe_every_steps=probe_every_steps, data_root=data_root,
        metadata_root=metadata_root,
    )  # fmt: skip
