"""One process at a time: the second is refused by name, and a killed holder leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from audiation.folder_lock import FolderLockedError, locked

HOLD = """
import sys, time
from pathlib import Path
from audiation.folder_lock import locked
with locked(Path(sys.argv[1]), "holding"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_and_told_who_and_what(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "run"
    with locked(folder, "pre-training"):
        message = rf"run is in use by process {os.getpid()} on .* \(pre-training\)"
        with pytest.raises(FolderLockedError, match=message), locked(folder, "building a corpus"):
            pass
    with locked(folder, "building a corpus"):
        assert (folder / ".lock").read_text().endswith("(building a corpus)")


def test_an_error_in_the_block_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path, "pre-training"):
        raise KeyError("in the block")
    with locked(tmp_path, "again"):
        pass


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(ValueError, match=rf"process {holder.pid} on .* \(holding\)"),
        locked(tmp_path, "waiting"),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path, "pre-training"):
        pass
