"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import tyro

Kind = Literal["backbones", "tasks", "datasets", "methods", "protocols", "objectives"]


def list_(kind: tyro.conf.Positional[Kind], /) -> None:
    """List what there is of one kind, one per row.

    Args:
        kind: backbones, tasks, datasets, methods, protocols or objectives.
    """
    from audiation.listing import render

    render(kind)


def extract(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    /,
    backbone: str,
    store: Path,
    weights: str | None = None,
    layers: tuple[int, ...] | None = None,
    last_layer: int | None = None,
    num_layers: int | None = None,
    pooling: Literal["mean", "frames"] = "mean",
    precision: Literal["fp32", "bf16"] = "fp32",
    clip_seconds: float = 30.0,
    chunk_seconds: float | None = None,
    whole_files: bool = False,
    device: str = "cpu",
    batch_size: int = 8,
    workers: int = 1,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Run a backbone over files and folders of music and store its hidden states.

    Folders are searched recursively. The command can be stopped at any moment and started again: rows that are
    in the store are not computed twice. Files that fail are listed at the end and in the store; the exit code
    is then 1.

    Args:
        paths: audio files and folders.
        backbone: name as in `audiation list backbones`.
        store: folder of the feature store; made if it is not there.
        weights: checkpoint file, directory or Hub id; "random" for untrained weights; default: the official ones.
        layers: layers to store, for example --layers 4 7; default: the model's recommended layer, else the last.
        last_layer: store every layer up to this one (instead of --layers).
        num_layers: cut the model to its first blocks.
        pooling: mean over time, or every frame (float16).
        precision: bf16 computes encoder and stem in bfloat16.
        clip_seconds: length of the windows that become rows.
        chunk_seconds: length the model sees at once; default: what it was trained on.
        whole_files: one row per file instead of windows of --clip-seconds.
        device: torch device, for example cuda:0.
        batch_size: clips or chunks per forward pass.
        workers: processes that decode audio (or run models without parameters).
        threads: CPU threads of the model; default: what the workers leave.
        seed: of random weights.
    """
    from audiation.console import extract_with_progress

    if not paths:
        raise ValueError("nothing to extract: name at least one audio file or folder")
    if whole_files and clip_seconds != 30.0:
        raise ValueError("give --clip-seconds or --whole-files, not both")
    if layers == ():
        raise ValueError("--layers needs at least one number, for example --layers 4 7")
    if layers is not None and last_layer is not None:
        raise ValueError("give --layers or --last-layer, not both")
    failed = extract_with_progress(
        paths, backbone, store, weights=weights, layers=layers, last_layer=last_layer, num_layers=num_layers,
        pooling=pooling, precision=precision, clip_seconds=None if whole_files else clip_seconds,
        chunk_seconds=chunk_seconds, device=device, batch_size=batch_size, workers=workers, threads=threads,
        seed=seed,
    )  # fmt: skip
    if failed:
        sys.exit(1)


def evaluate(
    backbone: str | None = None,
    task: str | None = None,
    run: Path | None = None,
    method: str = "probe",
    protocol: str = "jukemir-single",
    weights: str | None = None,
    num_layers: int | None = None,
    layer: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    store: Path | None = None,
    out: Path | None = None,
    device: str = "cpu",
    workers: int = 1,
) -> None:
    """Score one backbone on one task: extract, train the probe, test, with a 95 % interval.

    The result is written as JSON; `--run RESULT.json` repeats it.

    Args:
        backbone: name as in `audiation list backbones`.
        task: name as in `audiation list tasks`.
        run: repeat the run of this result file (then give no other choices of the run).
        method: how the backbone is adapted, as in `audiation list methods`.
        protocol: rules of training and selection, as in `audiation list protocols`.
        weights: checkpoint file, directory or Hub id; "random" for untrained weights; default: the official ones.
        num_layers: cut the model to its first blocks.
        layer: layer to probe; default: the model's recommended layer, else the last.
        precision: bf16 computes encoder and stem in bfloat16.
        seed: of the probe, of the bootstrap and of random weights.
        data_root: folder with one folder per data set (default: $AUDIATION_DATA_ROOT); `scores` makes itself.
        metadata_root: folder with local copies of official split and annotation files.
        store: feature store (default: in the cache directory).
        out: where to write the result (default: in the cache directory, and said).
        device: torch device.
        workers: processes that decode audio (or run models without parameters).
    """
    from audiation.console import evaluate_with_progress
    from audiation.evaluation import Run
    from audiation.leaderboard import Result

    if run is not None:
        choices = {
            "--backbone": (backbone, None), "--task": (task, None), "--weights": (weights, None),
            "--method": (method, "probe"), "--protocol": (protocol, "jukemir-single"), "--seed": (seed, 0),
            "--num-layers": (num_layers, None), "--layer": (layer, None), "--precision": (precision, "fp32"),
        }  # fmt: skip
        given = [flag for flag, (value, default) in choices.items() if value != default]
        if given:
            raise ValueError(f"--run repeats a stored run, so {', '.join(given)} cannot be given as well")
        chosen = Run.of(Result.load(run))
    elif backbone is None or task is None:
        raise ValueError("name a --backbone and a --task, or repeat a stored result with --run RESULT.json")
    else:
        chosen = Run(
            backbone=backbone, task=task, method=method, protocol=protocol, weights=weights,
            num_layers=num_layers, layer=layer, precision=precision, seed=seed,
        )  # fmt: skip
    evaluate_with_progress(
        chosen, data_root=data_root, metadata_root=metadata_root, store_dir=store, out=out, device=device,
        workers=workers,
    )  # fmt: skip


def demo(workers: int = 2) -> None:
    """The main job end to end on real music: make `scores`, extract, probe, score, compare.

    Renders Bach chorales with exact truth into the cache directory, extracts `chroma` and `mfcc`, trains a probe
    for key and one for timbre on each, and prints one table. A second call reuses what is there.

    Args:
        workers: processes that render and extract.
    """
    from audiation.demo import run_demo

    run_demo(workers=workers)


def main() -> None:
    """Entry point of `audiation`. User errors print one message and exit with 2."""
    if sys.argv[1:] == ["--version"]:
        from audiation import __version__

        print(f"audiation {__version__}")
        return
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"demo": demo, "list": list_, "extract": extract, "evaluate": evaluate},
            prog="audiation",
            description="Load, extract from, adapt, judge and pre-train music foundation models.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except KeyboardInterrupt:
        print("\nStopped. Start the same command again to go on from here.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, KeyError, OSError) as error:
        print(f"audiation: {error}", file=sys.stderr)
        sys.exit(2)
