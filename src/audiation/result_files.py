"""Result files, and folders that are searched for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiation.results import Result, ResultError

RESULT_MARK = b'"schema_version"'
CARD_MARK = b'"pretraining_hours"'  # system cards have a schema version as well
MARK_WITHIN_BYTES = 4096  # results begin with it


@dataclass(frozen=True)
class FoundResults:
    """results: in the order of their paths. problems: (path, reason) of what is no result."""

    results: tuple[Result, ...]
    problems: tuple[tuple[Path, str], ...]


def read_results(paths: Sequence[Path]) -> FoundResults:
    """Results of files and, with all their folders, of folders.

    A JSON file in a folder that does not begin as results do (a system card, say) is no problem; a file that is named,
    or begins so and cannot be read, is one. A file that is named twice counts once.
    """
    results: list[Result] = []
    problems: list[tuple[Path, str]] = []
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*.json")) if file.is_file()]
            named = False
            if not files:
                problems.append((path, "no .json file in this folder"))
        else:
            files, named = [path], True
        for file in files:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                if named or _may_be_result(file):
                    results.append(Result.load(file))
            except FileNotFoundError:
                problems.append((file, "there is no such file or folder"))
            except ResultError as error:
                problems.append((file, str(error).removeprefix(f"{file} is not a usable result: ")))
            except (TypeError, AttributeError, RecursionError) as error:  # nested in ways no result is
                problems.append((file, str(error)))
            except OSError as error:
                problems.append((file, error.strerror or str(error)))
    return FoundResults(tuple(results), tuple(problems))


def _may_be_result(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(MARK_WITHIN_BYTES)
    return RESULT_MARK in head and CARD_MARK not in head
