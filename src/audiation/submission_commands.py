"""`audiation leaderboard new-card|pack|verify`: functions for the command line. Each returns the exit code."""

from __future__ import annotations

from pathlib import Path

import tyro


def card_command(path: tyro.conf.Positional[Path] = Path("card.json"), /) -> int:
    """Write an empty system card, to be filled in before `pack`.

    Args:
        path: where; a file that is there is not replaced.
    """
    from rich.console import Console

    from audiation.submissions import new_card

    Console().print(
        f"Fill in {new_card(path)}, then: audiation leaderboard pack RESULTS... --card {path} --out FILE.zip"
    )
    return 0


def pack_command(results: tyro.conf.Positional[tuple[Path, ...]], /, card: Path, out: Path) -> int:
    """Bundle results of one system with their predictions and the system card, and check the bundle.

    The exit code is 1 where the check finds problems; the bundle is written all the same.

    Args:
        results: result files that `audiation evaluate` wrote, and folders that are searched for them.
        card: the system card (`audiation leaderboard new-card` writes an empty one).
        out: the bundle; a file that is there is not replaced.
    """
    from rich.console import Console

    from audiation.result_files import read_results
    from audiation.submissions import SubmissionError, SystemCard, pack

    about = SystemCard.load(card)
    found = read_results(results)
    if found.problems:
        raise SubmissionError("; ".join(f"{path}: {reason}" for path, reason in found.problems))
    bundle = pack(found.results, about, out)
    Console().print(f"Wrote {bundle} ({bundle.stat().st_size:,} bytes).", highlight=False, soft_wrap=True)
    return verify_command((bundle,))


def verify_command(
    bundles: tyro.conf.Positional[tuple[Path, ...]],
    /,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
) -> int:
    """Compute every score of submissions again; check splits, references and the rules of the protocols.

    The exit code is 1 where a bundle is refused.

    Args:
        bundles: files that `audiation leaderboard pack` wrote.
        data_root: folder with one folder per data set (default: $AUDIATION_DATA_ROOT). Without data the split and the
            references are not checked, and that is said.
        metadata_root: folder with local copies of official split and annotation files.
    """
    from rich.console import Console

    from audiation.submissions import verify

    if not bundles:
        raise ValueError("nothing to verify: name at least one bundle")
    console = Console()
    refused = 0
    for bundle in bundles:
        report = verify(bundle, data_root=data_root, metadata_root=metadata_root)
        for style, label, lines in (
            ("yellow", "warning", report.warnings), ("red", "problem", report.problems),
        ):  # fmt: skip
            for line in lines:
                console.print(
                    _plain(f"{label}: {line}"), style=style, markup=False, highlight=False, soft_wrap=True
                )
        name = "" if report.card is None else f"{report.card.system}: "
        verdict = "accepted" if report.accepted else "refused"
        console.print(
            _plain(
                f"{bundle}: {name}{verdict}; {len(report.results)} results, {len(report.problems)} problems, "
                f"{len(report.warnings)} warnings"
            ),
            style="bold", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        refused += not report.accepted
    return 1 if refused else 0


def _plain(text: str) -> str:
    """One line: what strangers write may hold commands to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
