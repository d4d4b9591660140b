"""`audiation check-backbone`: one line per contract."""

from __future__ import annotations

import sys

import tyro


def check_backbone(name: tyro.conf.Positional[str], /, weights: str | None = None) -> None:
    """Ask a backbone everything that the rest of the package relies on, and say what is wrong and how to put it right.

    One line per contract: pass, fail, or skip with the reason. The exit code is 1 if anything failed. The backbone gets
    fresh weights, and only its first two blocks where it can be cut, so this takes seconds.

    Args:
        name: path/to/file.py:name of your own backbone (the file is executed), or a name as in
            `audiation list backbones`.
        weights: checkpoint file, directory or Hub id that has to load as well.
    """
    from rich.console import Console
    from rich.text import Text

    from audiation.check_backbone import Finding, counts
    from audiation.check_backbone import check_backbone as check

    if name.endswith(".py"):
        raise ValueError(f"name the backbone in the file as well: {name}:NAME")
    console = Console(highlight=False)
    styles = {"pass": "green", "fail": "bold red", "skip": "dim"}

    def show(finding: Finding) -> None:
        line = Text.assemble((f"{finding.status:<6}", styles[finding.status]), finding.contract)
        if finding.text and finding.status != "fail":
            line.append(f" ({finding.text})", "dim")
        console.print(line, soft_wrap=True)
        if finding.status == "fail":
            console.print(Text(f"      {finding.text}"), soft_wrap=True)

    findings = check(name, weights, report=show)
    number = counts(findings)
    console.print(
        f"{name}: {number['pass']} contracts hold, {number['fail']} do not, {number['skip']} were not asked.",
        soft_wrap=True,
    )
    if number["fail"]:
        sys.exit(1)
