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


class LockHeldError(Exception):
    """holder: who holds the file, in words."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def take_lock(path: Path, doing: str = "") -> int:
    """Descriptor of a locked file, made where it is missing; closing it lets go. Raises LockHeldError at once."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        what = f" ({doing})" if doing else ""
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}{what}".encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
        os.close(descriptor)
        raise LockHeldError(holder) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold `folder`, made where it is missing, for the length of the block.

    `doing` says what the holder is at, for the one that is refused: "pre-training", "building a corpus". The lock
    is `flock`'s, so the kernel lets go of it however the process ends. Raises FolderLockedError (a ValueError) at
    once where it is held; OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = take_lock(folder / LOCK_FILE, doing)
    except LockHeldError as error:
        raise FolderLockedError(
            f"{folder} is in use by {error.holder}; one process at a time may write it. Wait until that one is done, "
            "stop it, or use another folder."
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)
