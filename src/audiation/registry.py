"""One registry class: a folder is a registry, a file in it is an entry.

`BACKBONES = Registry("backbone", "audiation.backbones")` looks into that package the first time it is asked
and imports every module there; the modules register what they define. Nothing else has to be edited when a
file is added, and a name that is not there is answered with the nearest one that is.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(KeyError, ValueError):
    """A name that no registry entry has. The message lists what there is and suggests the nearest."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class Registry(Generic[T]):
    """Names -> values of one kind, filled by the modules of one package.

    Args:
        kind: what an entry is called in messages, for example "backbone".
        package: dotted name of the package whose modules register entries, or of the one module that does.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self._package = kind, package
        self._entries: dict[str, T] = {}
        self._unlisted: dict[str, T] = {}
        self._collected: dict[str, T] | None = None
        self._discovered = False

    def add(self, name: str, value: T) -> T:
        """Register `value`; a name taken already is a bug in the registering module and raises ValueError."""
        entries = self._entries if self._collected is None else self._collected
        if name in entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        entries[name] = value
        return value

    def add_unlisted(self, name: str, value: T) -> T:
        """Register what is found by its name, but is not one of `names()`: what a user's own file defines. It takes the
        place of what had that name."""
        self._unlisted[name] = value
        return value

    @contextmanager
    def collecting(self) -> Iterator[dict[str, T]]:
        """What is added meanwhile goes into the dict that this gives, and not into the registry."""
        self._discover()  # else modules of the package that are imported meanwhile would be taken for somebody else's
        before, self._collected = self._collected, {}
        try:
            yield self._collected
        finally:
            self._collected = before

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""
        return lambda value: self.add(name, value)

    def names(self) -> list[str]:
        self._discover()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries or name in self._unlisted

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name in self._unlisted:
            return self._unlisted[name]
        if name not in self._entries:
            if ".py:" in name:
                raise UnknownNameError(
                    f"{self.kind} '{name}' is in a Python file that has not been loaded. Files are executed only where "
                    f"you name them yourself (--{self.kind} FILE.py:NAME, or `audiation.load_{self.kind}` in Python), "
                    "never because a result or an adapter names them."
                )
            near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            known = ", ".join(self.names()) or "none yet"
            raise UnknownNameError(f"unknown {self.kind} '{name}'.{hint} Known: {known}.")
        return self._entries[name]

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{self._package}.{module.name}")
        self._discovered = True
