"""Every job is answered, a dead worker is reported and replaced, and its threads are as many as asked for."""

import os
import signal

import pytest
import torch

from audiation.workers import WorkerDied, serve


def repeat(job):
    if job == "fault":
        raise KeyError("no such thing")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    for i in range(3):
        yield job, i, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def test_spawned_workers():
    before, answers = os.environ.get("OMP_NUM_THREADS"), []
    with pytest.raises(RuntimeError, match="no such thing"):
        answers.extend(serve(["x", "die", "y"], repeat, workers=1, threads=1))
        assert os.environ.get("OMP_NUM_THREADS") == before
        for answer in serve(["fault"], repeat, workers=1, threads=1):
            answers.append(answer)
    assert [a.message for a in answers if a.job == "x"] == [("x", i, 1, "1") for i in range(3)]
    assert [a.message for a in answers if a.job == "die"] == [WorkerDied(-signal.SIGKILL)]
    assert [a.message[1] for a in answers if a.job == "y"] == [0, 1, 2]
    assert len(answers) == 7


def test_without_workers_everything_happens_here():
    assert [a.message[:2] for a in serve(["x", "y"], repeat, workers=0, threads=1)] == [
        (job, i) for job in "xy" for i in range(3)
    ]
    with pytest.raises(KeyError):
        list(serve(["fault"], repeat, workers=0, threads=1))


def test_jobs_are_taken_one_at_a_time():
    taken = []

    def jobs():
        for job in "xyz":
            taken.append(job)
            yield job

    answers = serve(jobs(), repeat, workers=0, threads=1)
    next(answers)
    assert taken == ["x"]


def test_no_worker_starts_without_a_job():
    assert list(serve([], "not even callable", workers=8, threads=1)) == []
