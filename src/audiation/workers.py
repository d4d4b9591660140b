"""Spawned processes that answer jobs with a stream of messages.

Each worker has a pipe of its own. One that is ahead waits until its message is taken, so memory is bounded;
one that dies closes its pipe, so nobody waits for it. Spawned, because Lance and CUDA do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

import torch

J = TypeVar("J")
M = TypeVar("M")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Answer(Generic[J, M]):
    """One message about a job. A job gives any number of them."""

    job: J
    message: M | WorkerDied


@dataclass(frozen=True)
class WorkerDied:
    """The process that worked on this job ended: killed, out of memory, or crashed in native code."""

    exit_code: int | None


def alive(message: M | WorkerDied, again: str) -> M:
    """What a worker answered. RuntimeError where it died, which ends with what to do then."""
    if isinstance(message, WorkerDied):
        raise RuntimeError(
            f"a worker process ended (exit code {message.exit_code}); it may have been killed or out of memory. {again}"
        )
    return message


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve(
    jobs: Iterable[J], answer: Callable[[J], Iterable[M]], workers: int, threads: int
) -> Generator[Answer[J, M]]:
    """Messages of `answer(job)` for every job, in order within a job. Close the iterator to stop the workers.

    Args:
        jobs: taken one at a time, when a worker is free; no worker starts before there is a job for it.
        answer: called in the workers, so it must be picklable, as must jobs and messages.
        workers: processes; 0: everything happens in this process.
        threads: of torch and BLAS in each worker.

    Raises:
        ValueError: fewer than no workers.
        RuntimeError: `answer` raised in a worker (bad input should be a message), or none can start.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    if workers == 0:
        for job in jobs:
            for message in answer(job):
                yield Answer(job, message)
        return
    waiting, crew = iter(jobs), dict[Connection, _Worker]()
    try:
        while True:
            while len(crew) < workers and (hired := _hire(waiting, answer, threads)):
                crew[hired.connection] = hired
            if not crew:
                return
            for connection in wait(list(crew)):
                worker = crew[connection]  # type: ignore[index]
                try:
                    kind, message = worker.connection.recv()
                except (EOFError, OSError):
                    del crew[worker.connection]
                    yield Answer(worker.job, worker.bury())
                    continue
                if kind == "started":
                    worker.started = True
                elif kind == "message":
                    yield Answer(worker.job, message)
                elif kind == "raised":
                    raise RuntimeError(f"a worker failed at {worker.job}:\n{message}")
                elif not worker.take_next(waiting):
                    del crew[worker.connection]
    finally:
        for worker in crew.values():
            worker.process.terminate()
            worker.connection.close()
        for worker in crew.values():
            worker.process.join()


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    job: Any
    started: bool = False

    def take_next(self, waiting: Iterator[Any]) -> bool:
        """Give it the next job; False when there is none, and it goes home."""
        for self.job in waiting:
            self.give(self.job)
            return True
        self.connection.close()
        self.process.join()
        return False

    def give(self, job: Any) -> None:
        try:
            self.connection.send(job)
        except OSError:
            pass  # it is dead, which the next recv shows

    def bury(self) -> WorkerDied:
        self.connection.close()
        self.process.join()
        if not self.started:
            raise RuntimeError(
                f"worker processes cannot start (exit code {self.process.exitcode}). In a script, call from "
                "under `if __name__ == '__main__':`, or use workers=0."
            )
        return WorkerDied(self.process.exitcode)


def _hire(waiting: Iterator[Any], answer: Callable[[Any], Iterable[Any]], threads: int) -> _Worker | None:
    for job in waiting:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_work, args=(theirs, answer, threads), daemon=True)
        with _environment(dict.fromkeys(_THREAD_VARIABLES, str(threads))):
            process.start()
        theirs.close()
        worker = _Worker(process, ours, job)
        worker.give(job)
        return worker
    return None


def _work(connection: Connection, answer: Callable[[Any], Iterable[Any]], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the main process decides
    torch.set_num_threads(threads)
    try:
        connection.send(("started", None))
        while True:
            job = connection.recv()
            try:
                for message in answer(job):
                    connection.send(("message", message))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception:
                connection.send(("raised", traceback.format_exc()))
            connection.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # no more jobs, or nobody listens


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that a child reads when it starts (BLAS does so before any code of ours runs)."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
