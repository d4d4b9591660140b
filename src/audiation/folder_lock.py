"""One process at a time may write a folder: an advisory lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"  # stays in the folder: removing it would let two processes lock two different files


class FolderLockedError(ValueError):
    """Another process (or another block of this one) writes the folder."""


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold `folder`, made where it is missing, for the length of the block.

    `doing` says what the holder is at, for the one that is refused: "pre-training", "building a corpus". The lock
    is `flock`'s, so the kernel lets go of it however the process ends. Raises FolderLockedError (a ValueError) at
    once where it is held; OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
            raise FolderLockedError(
                f"{folder} is in use by {holder}; one process at a time may write it. Wait until that one is done, "
                "stop it, or use another folder."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} ({doing})".encode(), 0)
        yield
    finally:
        os.close(descriptor)
