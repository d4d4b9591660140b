"""`audiation corpus targets DIR --teacher NAME`: codes of a teacher for a whole corpus, stored beside it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from audiation.corpus import Corpus, StoredTargets
from audiation.loading import check_device
from audiation.step_bars import step_bars
from audiation.teachers import TEACHERS
from audiation.teachers.encodec import NAME as ENCODEC
from audiation.teachers.encodec import WEIGHTS as ENCODEC_WEIGHTS
from audiation.teachers.kmeans import KMeansTeacher
from audiation.teachers.layer_features import MARK_DIGITS
from audiation.teachers.targets import CodebookUsage, compute_targets, open_teacher, usage_of

RARELY_USED = 0.5  # share of codes that occur, below which something is said


def targets(
    location: str,
    teacher: str | None,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    console: Console | None = None,
) -> StoredTargets | None:
    """Fit the teacher to the corpus where it has to be, compute the codes of every recording that has none, and print
    how they are used. The same command goes on after a stop. Without a teacher: print which there are.

    Args:
        location: folder of the corpus.
        teacher: like encodec, logmel-km300, chroma-km200, mfcc39-km500, layer6-km2000.
        backbone, weights: of layers, as in `load_backbone`; weights also those of EnCodec.
        device: that teachers compute on.
        workers: processes; None: none besides this one.

    Raises:
        UnknownNameError, ValueError, WeightsError: see `targets.open_teacher` and `targets.compute_targets`.
        CorpusError: no corpus there.
    """
    console = console or Console()
    if teacher is None:
        list_teachers(console)
        return None
    check_device(device)
    workers = workers or 0
    if workers and device != "cpu":
        raise ValueError(
            f"--workers {workers} are processes on the CPU, got --device {device}. Leave one of them away."
        )
    corpus = Corpus(location)
    console.print(
        f"{corpus.name}: {len(corpus.recordings):,} recordings, {corpus.hours:,.2f} h", highlight=False
    )
    if teacher == ENCODEC and weights is None:
        licence = ENCODEC_WEIGHTS.licence
        console.print(f"EnCodec: {ENCODEC_WEIGHTS.checkpoint.place}; licence {licence}", highlight=False)
    with step_bars(console) as bars:
        made = open_teacher(teacher, corpus, backbone, weights, device, workers, progress=bars.show)
        stored = compute_targets(corpus, teacher, made, workers, bars.show)
    if isinstance(made, KMeansTeacher):
        _line(console, f"{made.fit['num_used']:,} of {made.num_codes[0]:,} clusters in the sample of "
              f"{made.fit['num_frames']:,} frames, inertia {made.fit['inertia']:.4g}")  # fmt: skip
        if "weights" in made.fit["features"]:
            mark, (base, _, clusters) = made.fit["features"]["weights"][:MARK_DIGITS], teacher.rpartition("-")
            if mark not in base:
                _line(
                    console,
                    f"of weights {mark}; '{base}.{mark}-{clusters}' keeps them beside those of others",
                )
        if made.fit["corpus"]["hash"] != corpus.hash:
            _line(
                console,
                f"clusters are those of an earlier state of the corpus, {made.fit['corpus']['hours']:,.2f} h",
            )
    show_usage(console, stored, usage_of(corpus, stored))
    return stored


def list_teachers(console: Console) -> None:
    """Every kind, with the names that were published."""
    for kind in TEACHERS:
        entry = TEACHERS[kind]
        base = f"{kind}6" if kind == "layer" else kind
        names = [f"{base}-km{clusters}" for clusters in entry.clusters] or [kind]
        console.print(f"{', '.join(names)}: {entry.summary}", highlight=False, markup=False, soft_wrap=True)


def show_usage(console: Console, stored: StoredTargets, usage: Sequence[CodebookUsage]) -> None:
    """A line per codebook."""
    console.print(f"{stored.name}: {stored.num_streams} x {stored.rate_hz:g} Hz", highlight=False)
    for q, used in enumerate(usage):
        share = used.num_used / used.num_codes
        warning = "; most codes never occur" if share < RARELY_USED else ""
        _line(
            console,
            f"codebook {q}: {used.num_used:,} of {used.num_codes:,} codes ({share:.0%}), perplexity "
            f"{used.perplexity:,.1f}, the most frequent {used.most_frequent:.1%}{warning}",
        )


def _line(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 4)))
