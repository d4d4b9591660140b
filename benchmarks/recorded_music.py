"""Extraction on recorded music: `audiation extract` over a folder, audio-hours per hour, and what a second call costs.

  ./dev bench recorded_music --fetch            the music of The Battle for Wesnoth (Debian package, GPL/CC BY-SA)
  ./dev bench recorded_music --music DIR        any folder of music

--fetch downloads the package with apt-get and unpacks it below the cache directory; nothing is installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from audiation.audio import audio_info
from audiation.cache import cache_dir

PACKAGE = "wesnoth-1.16-music"
MERT = ["--backbone", "mert-v1-95m", "--weights", "random"]


def fetch(package: str) -> Path:
    """Download and unpack a Debian package; returns the folder of its files."""
    folder = cache_dir("recorded-music", package)
    if not (folder / "files").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / "unpacking"], check=True)
        (folder / "unpacking").rename(folder / "files")
    return folder / "files"


def extract(music: Path, store: str, options: list[str]) -> tuple[float, int, str]:
    """Wall seconds, exit code and last lines of one `audiation extract`."""
    command = [sys.executable, "-m", "audiation", "extract", str(music), "--store", store, *options]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    return time.perf_counter() - started, done.returncode, (done.stdout + done.stderr).strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--music", type=Path)
    source.add_argument("--fetch", action="store_true")
    parser.add_argument("--workers", default="2")
    arguments = parser.parse_args()
    music = fetch(PACKAGE) if arguments.fetch else arguments.music
    files = [p for p in sorted(music.rglob("*")) if re.fullmatch(r"\.(ogg|mp3|flac|wav)", p.suffix.lower())]
    hours = sum(audio_info(p).duration_seconds for p in files) / 3600
    print(f"{len(files)} files, {hours:.2f} hours")
    runs = (
        ("mfcc", ["--backbone", "mfcc", "--workers", arguments.workers]),
        ("chroma", ["--backbone", "chroma", "--workers", arguments.workers]),
        ("mert-v1-95m, random weights, 1 of 12 blocks", [*MERT, "--num-layers", "1"]),
    )
    for label, options in runs:
        with tempfile.TemporaryDirectory() as store:
            first, code, text = extract(music, store, options)
            again, code_again, _ = extract(music, store, options)
        print(
            f"\n{label}: {hours / (first / 3600):.0f} audio-hours per hour ({first:.0f} s, exit code {code})"
        )
        print(f"  second call, all there: {again:.1f} s, exit code {code_again}")
        print("  " + "\n  ".join(text.splitlines()[-6:]))


if __name__ == "__main__":
    main()
