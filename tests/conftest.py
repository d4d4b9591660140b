"""Fixtures that several test files use, and a count of the tests that need official files."""

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from audiation.probe import ProbeSchedule
from audiation.protocols import PROTOCOLS

METADATA_ROOT = "AUDIATION_METADATA_ROOT"
_GIVEN = os.environ.get(METADATA_ROOT)  # read before any test hides the variable from the code under test
_OFFICIAL = pytest.StashKey[set[str]]()


LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None, socket.gethostname()}


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Names are looked up on this machine only, and pip asks no index: tests need no network, and show it."""
    look_up = socket.getaddrinfo

    def local_only(host, *arguments, **options):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in LOCAL:
            raise OSError(f"a test asked the network for {name}")
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local_only)
        patch.setenv("PIP_NO_INDEX", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is written into the cache directory of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIATION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def real_metadata() -> Path:
    """Folder with official split and annotation files, laid out as `datasets.metadata` says."""
    if not _GIVEN:
        pytest.skip(
            f"needs official split and annotation files: set {METADATA_ROOT} to a folder that has them"
        )
    if not Path(_GIVEN).is_dir():
        pytest.fail(f"{METADATA_ROOT} is {_GIVEN}, which is not a folder")
    return Path(_GIVEN)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    config.stash[_OFFICIAL] = {i.nodeid for i in items if "real_metadata" in getattr(i, "fixturenames", ())}


def pytest_terminal_summary(terminalreporter, config):
    """Say how many of these tests ran, so that none is skipped without a word."""
    wanted = config.stash.get(_OFFICIAL, set())
    if not wanted:
        return
    ran = {
        r.nodeid
        for kind in ("passed", "failed")
        for r in terminalreporter.stats.get(kind, [])
        if r.when == "call"
    }
    count = len(ran & wanted)
    reason = "" if _GIVEN else f" ({METADATA_ROOT} is not set)"
    terminalreporter.write_line(f"official metadata: {count} of {len(wanted)} tests that need it ran{reason}")


@pytest.fixture
def impatient(monkeypatch):
    """Probes of jukemir-single end soon: for tests that are about the accounts, not the score."""
    short = dataclasses.replace(PROTOCOLS["jukemir-single"], schedule=ProbeSchedule(patience=4))
    known = {name: PROTOCOLS[name] for name in PROTOCOLS} | {"jukemir-single": short}
    monkeypatch.setattr("audiation.evaluation.PROTOCOLS", known)
