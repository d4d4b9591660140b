"""A build that is called again reads what is missing, and a killed one ends as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audiation.corpus import Corpus, CorpusError
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_sources import Sources, find_sources
from corpus_files import tune, write

pytestmark = pytest.mark.slow  # starts and kills processes

RATE_HZ = 24_000


def build(music, out, workers=0, **settings):
    return build_corpus(
        find_sources([music]), out, "test", BuildSettings(RATE_HZ, **settings), workers=workers
    )


def test_processes_and_order_do_not_matter(tmp_path):
    for seed in range(6):
        write(tmp_path / "music" / f"{seed}.wav", tune(seed, 1.5, RATE_HZ), RATE_HZ)
    alone, crew = build(tmp_path / "music", tmp_path / "a"), build(tmp_path / "music", tmp_path / "b", 2)
    assert alone.hash == crew.hash and alone.verify() == crew.verify() == []
    assert [r for r in alone.recordings] == [r for r in crew.recordings]
    sources = find_sources([tmp_path / "music"])
    backwards = Sources(tuple(reversed(sources.files)))
    other = build_corpus(backwards, tmp_path / "c", "test", BuildSettings(RATE_HZ), workers=0)
    assert other.hash == alone.hash
    assert not np.array_equal(other.recordings.table["start"], alone.recordings.table["start"])


def test_a_second_build_reads_only_what_is_new_or_changed(tmp_path):
    music, reports = tmp_path / "music", []
    for seed in range(3):
        write(music / f"{seed}.wav", tune(seed, 1.5, RATE_HZ), RATE_HZ)

    def again():
        reports.clear()
        sources = find_sources([music])
        return build_corpus(
            sources, tmp_path / "out", "test", BuildSettings(RATE_HZ), workers=0, progress=reports.append
        )

    first = again()
    assert [r.done for r in reports] == [1, 2, 3]
    assert again().hash == first.hash and reports == []
    write(music / "1.wav", tune(11, 1.75, RATE_HZ), RATE_HZ)
    write(music / "3.wav", tune(3, 1.5, RATE_HZ), RATE_HZ)
    (music / "0.wav").unlink()
    grown = again()
    assert [r.done for r in reports] == [2, 3]  # of three: "2.wav" was known
    assert [r.name for r in grown.recordings] == ["1.wav", "2.wav", "3.wav"]
    assert grown.num_samples.tolist() == [42_000, 36_000, 36_000] and grown.verify() == []
    assert grown.hash == build(music, tmp_path / "fresh").hash


def test_settings_of_a_folder_stay(tmp_path):
    write(tmp_path / "music/a.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    build(tmp_path / "music", tmp_path / "out")
    with pytest.raises(CorpusError, match=r"min_seconds was 1\.0"):
        build(tmp_path / "music", tmp_path / "out", min_seconds=2.0)
    (tmp_path / "out/build.json").write_text("[")
    with pytest.raises(CorpusError, match="damaged"):
        build(tmp_path / "music", tmp_path / "out")


def test_what_the_journal_does_not_say_is_cut_off(tmp_path):
    music, out = tmp_path / "music", tmp_path / "out"
    write(music / "a.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    build(music, out)
    whole = (out / "audio-00000.s16").read_bytes()
    (out / "audio-00000.s16").write_bytes(whole + b"\1" * 1001)  # samples of a file that was not committed
    with (out / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"commit": 1, "files": [{"entr')
    (out / "audio-00001.s16").write_bytes(b"\1" * 10)
    write(music / "b.wav", tune(2, 2.0, RATE_HZ), RATE_HZ)
    corpus = build(music, out)
    assert corpus.verify() == [] and [r.name for r in corpus.recordings] == ["a.wav", "b.wav"]
    assert (out / "audio-00000.s16").stat().st_size == 2 * len(whole)
    assert (out / "audio-00000.s16").read_bytes().startswith(whole)
    assert not (out / "audio-00001.s16").exists()
    assert len((out / "journal.jsonl").read_text().splitlines()) == 2


KILLED_BUILD = """
import sys
from audiation import corpus_commits
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_sources import find_sources
if __name__ == "__main__":
    corpus_commits.COMMIT_BYTES = 1
    build_corpus(find_sources([sys.argv[1]]), sys.argv[2], "test", BuildSettings(24000), workers=0)
"""


def test_a_killed_build_loses_and_doubles_nothing(tmp_path):
    music, out = tmp_path / "music", tmp_path / "out"
    for seed in range(40):
        write(music / f"{seed:02d}.wav", tune(seed, 2.0, 44_100), 44_100)
    script = tmp_path / "build.py"
    script.write_text(KILLED_BUILD)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(music), str(out)], env=environment, start_new_session=True
    )
    try:
        journal = out / "journal.jsonl"
        for _ in range(6000):
            if journal.exists() and journal.read_bytes().count(b"\n") >= 3:
                break
            assert process.poll() is None, "the build ended before it could be killed"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = [e["entry"]["name"] for line in whole_lines(journal) for e in line["files"]]
    assert 3 <= len(kept) < 40 and not (out / "corpus.json").exists()
    with pytest.raises(CorpusError, match="no finished corpus"):
        Corpus(out)
    reports = []
    corpus = build_corpus(
        find_sources([music]), out, "test", BuildSettings(RATE_HZ), workers=0, progress=reports.append
    )
    assert len(reports) == 40 - len(kept) and reports[0].done == len(kept) + 1
    assert corpus.verify() == [] and len(corpus.recordings) == 40
    assert (out / "audio-00000.s16").stat().st_size == 40 * 48_000 * 2
    assert corpus.hash == build(music, tmp_path / "once").hash


def whole_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


KILLED_TARGETS = """
import sys
from audiation import corpus_commits
from audiation.teacher_commands import targets
if __name__ == "__main__":
    corpus_commits.COMMIT_SECONDS = 0.0
    targets(sys.argv[1], "mfcc39-km20")
"""


def test_killed_targets_end_with_the_same_bits(tmp_path):
    """While the sample is gathered, while clusters are fitted, and while codes are computed."""
    for seed in range(30):
        write(tmp_path / "music" / f"{seed:02d}.wav", tune(seed, 4.0, RATE_HZ), RATE_HZ)
    killed = build(tmp_path / "music", tmp_path / "killed").directory
    shutil.copytree(killed, tmp_path / "whole")
    script = tmp_path / "targets.py"
    script.write_text(KILLED_TARGETS)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    fit = killed / "teachers/mfcc39-km20"
    for begun in (
        fit / "sample.jsonl",
        fit / "state.safetensors",
        killed / "targets/mfcc39-km20/journal.jsonl",
    ):
        process = subprocess.Popen(
            [sys.executable, str(script), str(killed)], env=environment, start_new_session=True
        )
        try:
            for _ in range(30_000):
                if begun.exists():
                    break
                assert process.poll() is None, "the command ended before it could be killed"
                time.sleep(0.002)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with pytest.raises(CorpusError, match="of 30 recordings"):
        Corpus(killed).open_targets("mfcc39-km20")
    for folder in (killed, tmp_path / "whole"):
        subprocess.run([sys.executable, str(script), str(folder)], env=environment, check=True)
    for name in (
        "teachers/mfcc39-km20/kmeans.json",
        "teachers/mfcc39-km20/centroids.safetensors",
        "targets/mfcc39-km20/codes-00000.s16",
        "targets/mfcc39-km20/teacher.json",
    ):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
