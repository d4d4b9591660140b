"""A user's own backbone: one Python file, named as "path/to/file.py:name" wherever a backbone is named.

The file is executed, as `python file.py` would. That happens in `load_own_backbone`, which `load_backbone` calls, and
nowhere else: a lookup in `BACKBONES` finds what was loaded and executes nothing, so that a result, an adapter or a
leaderboard that names a file cannot run it.

The SHA-256 of the file is part of the hash of the weights (`loading`), so an edited file never meets old features.
Files that it imports are not part of it: what decides a number belongs into the one file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from audiation.backbones.base import BACKBONES, BackboneSpec

MARK = ".py:"  # what tells a file from a name
RECORDED_AS = "backbone_file_sha256"  # in the run of a result


class OwnBackboneError(ValueError):
    """A file that gives no backbone, or must not be executed. Says what is wrong with it, and where."""


@dataclass(frozen=True)
class OwnFile:
    """A file that was executed. path: absolute. sha256: of the bytes that were executed."""

    path: Path
    sha256: str


def is_own_backbone(name: str) -> bool:
    """Whether a backbone's name is a file and a name in it."""
    return MARK in name


def name_in_file(name: str) -> str:
    """ "path/to/file.py:name" -> "name"; other names as they are."""
    return name.rpartition(MARK)[2]


def own_file_sha256(name: str) -> str | None:
    """Hash of the file behind a backbone that was loaded from one; None for any other name."""
    loaded = _LOADED.get(name)
    return None if loaded is None else loaded.sha256


def recorded_file(name: str) -> dict[str, str]:
    """What the run of a result says about the file of its backbone; nothing where there is none."""
    sha256 = own_file_sha256(name)
    return {} if sha256 is None else {RECORDED_AS: sha256}


def load_own_backbone(name: str, sha256: str | None = None) -> BackboneSpec:
    """Execute a file, and register the backbone that it defines under `name`, from where `BACKBONES[name]` has it.

    A file that was executed before and has not changed is not executed again.

    Args:
        name: "path/to/file.py:name". `name` is a module-level `BackboneSpec`, the `name` field of one, or what the
            file registered with `BACKBONES.add` or `BACKBONES.register`.
        sha256: refuse a file that has another one.

    Raises:
        OwnBackboneError: the file is not there, has another hash, fails when it is executed, or defines no such
            backbone; or the name is one of ours.
    """
    file, source = _read(name)
    if sha256 is not None and file.sha256 != sha256:
        raise OwnBackboneError(
            f"{file.path} has changed: its SHA-256 is {file.sha256[:12]}..., expected {sha256[:12]}.... It was not "
            "executed. Bring back the file as it was, or name it with --backbone to run what it is now."
        )
    if _LOADED.get(name) == file:
        return BACKBONES[name]
    module = _executed(file, source)
    spec = replace(_find(module, name_in_file(name), file.path), name=name)
    _LOADED[name] = file
    return BACKBONES.add_unlisted(name, spec)


def load_recorded_backbone(run: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Before a run is repeated that was read from a result: execute the file that its backbone comes from, if it is the
    one that the result was made with. Does nothing for other backbones.

    Args:
        run: `Result.run`.
        say: called with a sentence for the user before anything is executed.

    Raises:
        OwnBackboneError: the result does not say which file it was, or the file is not there or another one.
    """
    name = run["backbone"]
    if not is_own_backbone(name):
        return
    recorded = run.get(RECORDED_AS)
    if not isinstance(recorded, str):
        raise OwnBackboneError(
            f"this result was made with {name} and does not say which version of the file that was ({RECORDED_AS} is "
            f"missing), so the file was not executed. If you trust it, name it yourself: --backbone {name}."
        )
    file, _ = _read(name)
    if file.sha256 == recorded:
        say(
            f"{file.path} is executed: the result was made with it (SHA-256 {recorded[:12]}..., the same as now)."
        )
    load_own_backbone(name, sha256=recorded)


def refuse_unloaded(name: str) -> None:
    """For names that come out of a file: OwnBackboneError for an own backbone that the user has not loaded."""
    if is_own_backbone(name) and name not in BACKBONES:
        raise OwnBackboneError(
            f"'{name}' is a Python file, and it is not executed because a result names it. If you trust it, load it "
            f"first: --backbone {name}, or audiation.load_backbone({name!r}) in Python."
        )


# Files ----------------------------------------------------------------------------------------------------

_LOADED: dict[str, OwnFile] = {}


def _read(name: str) -> tuple[OwnFile, bytes]:
    head, _, inside = name.rpartition(MARK)
    path = Path(f"{head}.py").expanduser()
    if not inside:
        raise OwnBackboneError(f"'{name}' names no backbone. Write FILE.py:NAME, for example {path}:tiny.")
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise OwnBackboneError(
            f"there is no file {path} (looked for at {path.absolute()}). A backbone is named as FILE.py:NAME, with a "
            "path from the folder you are in."
        ) from None
    except OSError as error:
        raise OwnBackboneError(f"{path} cannot be read: {error.strerror}") from error
    return OwnFile(path.resolve(), hashlib.sha256(source).hexdigest()), source


def _executed(file: OwnFile, source: bytes) -> ModuleType:
    try:
        compile(source, file.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: a byte that no source has
        raise OwnBackboneError(_syntax(file.path, error)) from error
    try:
        return importlib.import_module(f"{__name__}.{_module_name(file)}")
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise OwnBackboneError(
            f"{file.path} fails when it is executed{_line_of(error, file.path)}: {type(error).__name__}: {error}"
        ) from error


def _syntax(path: Path, error: SyntaxError | ValueError) -> str:
    if not isinstance(error, SyntaxError):
        return f"{path} is not Python: {error}"
    shown = f": {error.text.strip()}" if error.text else ""
    return f"{path} is not valid Python, line {error.lineno}: {error.msg}{shown}"


def _line_of(error: BaseException, path: Path) -> str:
    """Where in the file it happened, as ", line 3"."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _find(module: ModuleType, name: str, path: Path) -> BackboneSpec:
    """The spec of that name: as registered, as the variable, or as the spec calls itself."""
    registered: dict[str, Any] = getattr(module, _REGISTERED)
    variables = {k: v for k, v in vars(module).items() if not k.startswith("__")}
    specs: dict[str, Any] = {k: v for k, v in variables.items() if isinstance(v, BackboneSpec)}
    named = {spec.name: spec for spec in specs.values()}
    known = named | specs | registered
    if name not in known and name in variables:
        raise OwnBackboneError(
            f"'{name}' in {path} is {_kind(variables[name])}, not a BackboneSpec. Write "
            f"{name} = BackboneSpec('{name}', 'one line about it', build=...)."
        )
    if name not in known:
        there = f"It has: {', '.join(sorted(known))}." if known else "It defines none."
        raise OwnBackboneError(f"{path} defines no backbone '{name}'. {there}")
    spec = known[name]
    if not isinstance(spec, BackboneSpec):
        raise OwnBackboneError(
            f"{path} registers '{name}' as {_kind(spec)}; a backbone is registered as a BackboneSpec"
        )
    for taken in (name, spec.name):
        if taken in BACKBONES.names():
            raise OwnBackboneError(
                f"'{taken}' in {path} is the name of a backbone that comes with audiation. Call yours otherwise, so "
                "that nobody takes one for the other."
            )
    return spec


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


# Modules --------------------------------------------------------------------------------------------------
# The module of a file is a submodule of this one, named by path and hash. A spawned worker that is sent an own
# backbone imports it by that name, and so finds the file without having been told.

__path__: list[str] = []
_REGISTERED = "__registered_backbones__"


def _module_name(file: OwnFile) -> str:
    return f"file_{file.sha256}_{os.fsencode(file.path).hex()}"


class _OwnFileLoader(Loader):
    def __init__(self, file: OwnFile) -> None:
        self.file = file

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        source = self.file.path.read_bytes()
        if hashlib.sha256(source).hexdigest() != self.file.sha256:
            raise ImportError(f"{self.file.path} was changed while it was in use. Start again.")
        module.__file__ = str(self.file.path)
        with BACKBONES.collecting() as registered:
            exec(compile(source, self.file.path, "exec", dont_inherit=True), module.__dict__)
        setattr(module, _REGISTERED, registered)


class _OwnFileFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, own = fullname.rpartition(".")
        parts = own.split("_")
        if parent != __name__ or len(parts) != 3 or parts[0] != "file":
            return None
        file = OwnFile(Path(os.fsdecode(bytes.fromhex(parts[2]))), parts[1])
        return importlib.util.spec_from_loader(fullname, _OwnFileLoader(file), origin=str(file.path))


sys.meta_path.append(_OwnFileFinder())
