"""Targets as JSON, for files of adapters: a kind, and the fields of its class; and the question a kind answers."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from audiation.frame_targets import BeatTarget, ChordTarget, KeyFramesTarget, SectionTarget
from audiation.targets import (
    ClassTarget,
    EmotionTarget,
    KeyTarget,
    PitchTarget,
    TagsTarget,
    Target,
    TempoTarget,
    ValuesTarget,
)

_KINDS: dict[str, type[Any]] = {
    "class": ClassTarget,
    "key": KeyTarget,
    "tags": TagsTarget,
    "values": ValuesTarget,
    "pitch": PitchTarget,
    "emotion": EmotionTarget,
    "tempo": TempoTarget,
    "beats": BeatTarget,
    "chords": ChordTarget,
    "key frames": KeyFramesTarget,
    "sections": SectionTarget,
}


def target_to_json(target: Target) -> dict[str, Any]:
    """`{"kind": ..., fields}`. ValueError for a kind of target that no file format knows."""
    for kind, made in _KINDS.items():
        if type(target) is made:
            fields = dataclasses.asdict(target)  # type: ignore[call-overload]
            return {"kind": kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    raise ValueError(f"a {type(target).__name__} cannot be written as JSON")


_QUESTIONS = {"key frames": "key"}


def question_of(target: Target) -> str:
    """What the answers are: "key", "tempo", "beats", "chords", "sections", "tags", "class", ..."""
    kind = next(kind for kind, made in _KINDS.items() if type(target) is made)
    return _QUESTIONS.get(kind, kind)


def target_from_json(record: Any) -> Target:
    """Inverse of `target_to_json`. ValueError naming the field that is missing, unknown or wrong."""
    if not isinstance(record, dict):
        raise ValueError(f"a target is a JSON object with a kind, got {record!r:.60}")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"'kind' of a target is one of {', '.join(_KINDS)}, got {kind!r:.60}")
    hints = typing.get_type_hints(_KINDS[kind])
    names = [f.name for f in dataclasses.fields(_KINDS[kind])]
    for problem, differing in (
        ("lacks", set(names) - record.keys()),
        ("has unknown", record.keys() - {"kind", *names}),
    ):
        if differing:
            raise ValueError(f"a target of kind '{kind}' {problem} {', '.join(sorted(map(repr, differing)))}")
    return _KINDS[kind](**{name: _checked(name, record[name], hints[name]) for name in names})


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value of a field, as its annotation wants it: a text, a number or None, or a list of one sort."""
    if typing.get_origin(hint) is tuple:
        return _checked_list(name, value, typing.get_args(hint)[0])
    allowed = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in allowed or isinstance(value, bool):
            raise ValueError(f"'{name}' of a target is one of {', '.join(allowed)}, got {value!r:.60}")
        return value
    assert typing.get_origin(hint) is types.UnionType and set(allowed) == {float, types.NoneType}
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"'{name}' of a target is a number or null, got {value!r:.60}")
    return None if value is None else _float(name, value)


def _checked_list(name: str, values: Any, sort: type) -> tuple[Any, ...]:
    kinds = {float: (int, float), int: (int,), str: (str,)}[sort]
    if not isinstance(values, list) or not all(type(value) in kinds for value in values):
        what = {float: "numbers", int: "whole numbers", str: "texts"}[sort]
        raise ValueError(f"'{name}' of a target is a list of {what}, got {values!r:.60}")
    return tuple(_float(name, value) for value in values) if sort is float else tuple(values)


def _float(name: str, value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"'{name}' of a target has a number that is too large") from None
