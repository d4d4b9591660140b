"""What Jukebox is told about a recording besides its codes: artist, genre, length, and where the excerpt begins.

All of it is the same for every clip, so it becomes two constants when the model is built: what stands in the place of
the code before the first one, and an addition to the position table. The label tables are not kept.

Baselines spec, section 8.3. Shape letters: `T` positions, `D` model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

NO_GENRE = -1  # in an unused slot of the label vector


@dataclass(frozen=True)
class PriorConfig:
    """Hyper-parameters of the published model that decide the result, under their published names; those of "5b".

    n_ctx: positions. blocks: into how many attention divides them (and not how many transformer blocks there are:
        prior_depth). l_bins: codes of the vocabulary. y_bins: genres and artists. t_bins: steps of each of the three
        tables of time. min_duration, max_duration: of whole recordings, in seconds; the upper end is excluded.
        raw_to_tokens: samples per code.
    """

    n_ctx: int = 8192
    prior_width: int = 4800
    prior_depth: int = 72
    heads: int = 8
    blocks: int = 128
    m_attn: float = 0.25
    m_mlp: float = 1.0
    l_bins: int = 2048
    y_bins: tuple[int, int] = (120, 4111)
    t_bins: int = 128
    min_duration: float = 60.0
    max_duration: float = 600.0
    max_bow_genre_size: int = 5
    sr: int = 44_100
    raw_to_tokens: int = 128

    def __post_init__(self) -> None:
        if self.n_ctx % self.blocks:
            raise ValueError(f"n_ctx = {self.n_ctx} positions do not divide into {self.blocks} equal blocks")
        if self.attention_dim % self.heads:
            raise ValueError(
                f"an attention of width {self.attention_dim} does not divide into {self.heads} heads"
            )

    @property
    def attention_dim(self) -> int:
        return round(self.m_attn * self.prior_width)

    @property
    def mlp_dim(self) -> int:
        return round(self.m_mlp * self.prior_width)

    @property
    def block_positions(self) -> int:
        """Positions of one block of the attention patterns."""
        return self.n_ctx // self.blocks

    @property
    def max_samples(self) -> int:
        """The longest clip, and what the published labels call the sample length."""
        return self.n_ctx * self.raw_to_tokens


@dataclass(frozen=True)
class JukeboxConditioning:
    """What the model is told about the recording. The defaults are those of jukemir: nothing known, one minute.

    artist_id, genre_ids: rows of the published lists; 0 is "unknown". Up to five genres.
    total_seconds: length of the whole recording. 62: the published model knows lengths from 60 to 600 s, and of 60 s
        cut to whole codes a little is missing. (The paper says one minute.)
    offset_seconds: where in the recording the clip begins.

    Raises ValueError for values that no model of this family takes; `label_vector` knows the bounds of one.
    """

    artist_id: int = 0
    genre_ids: tuple[int, ...] = (0,)
    total_seconds: float = 62.0
    offset_seconds: float = 0.0

    def __post_init__(self) -> None:
        for label in (self.artist_id, *self.genre_ids):
            if type(label) is not int or label < 0:
                raise ValueError(f"artist_id and genre_ids are whole numbers >= 0, got {label!r}")
        if len(set(self.genre_ids)) != len(self.genre_ids):
            raise ValueError(f"a genre is given twice: {self.genre_ids}")
        if not 0 <= self.offset_seconds < self.total_seconds < math.inf:
            raise ValueError(
                f"offset_seconds lies in the recording, from 0 to before total_seconds={self.total_seconds:g}, "
                f"got {self.offset_seconds:g}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> JukeboxConditioning:
        """Of a config's keys those that are fields here. Raises ValueError for values of another kind."""
        given = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        if "genre_ids" in given:
            genres = given["genre_ids"]
            if not isinstance(genres, Sequence) or isinstance(genres, str):
                raise ValueError(f"genre_ids is a list of whole numbers, got {genres!r}")
            given["genre_ids"] = tuple(genres)
        for name in ("total_seconds", "offset_seconds"):
            value = given.get(name, 0.0)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} is a number of seconds, got {value!r}")
        return cls(**given)


class LabelVector(NamedTuple):
    """The published labels of a clip: samples, samples, samples, row of the artist table, five rows of genres."""

    total_samples: int
    offset_samples: int
    clip_samples: int
    artist_id: int
    genre_ids: tuple[int, ...]


class TimeBins(NamedTuple):
    """Rows of the three tables of time: one of the length of the recording, `(T,)` of where a position is in it, in
    seconds and as a part of the whole."""

    total: int
    absolute: Tensor
    relative: Tensor


class Constants(NamedTuple):
    """start: `(D,)`, what position 0 is given in place of a code. timing: `(T, D)`, added to the positions."""

    start: Tensor
    timing: Tensor


def label_vector(conditioning: JukeboxConditioning, config: PriorConfig) -> LabelVector:
    """Labels as the published model takes them. Raises ValueError for what it has no row of its tables for."""
    num_genres, num_artists = config.y_bins
    if conditioning.artist_id >= num_artists:
        raise ValueError(f"artist_id is 0 to {num_artists - 1}, got {conditioning.artist_id}")
    if not 0 < len(conditioning.genre_ids) <= config.max_bow_genre_size:
        raise ValueError(
            f"genre_ids are 1 to {config.max_bow_genre_size} genres (0: unknown), got {conditioning.genre_ids}"
        )
    if max(conditioning.genre_ids) >= num_genres:
        raise ValueError(f"genre_ids are 0 to {num_genres - 1}, got {conditioning.genre_ids}")
    total, offset = (
        int(seconds * config.sr) // config.raw_to_tokens * config.raw_to_tokens
        for seconds in (conditioning.total_seconds, conditioning.offset_seconds)
    )
    if not config.min_duration * config.sr <= total < config.max_duration * config.sr:
        raise ValueError(
            f"total_seconds, cut to whole codes, lies in [{config.min_duration:g}, {config.max_duration:g}) s, "
            f"got {conditioning.total_seconds:g} s, which is {total / config.sr:.4f} s then"
        )
    if offset + config.max_samples > config.max_duration * config.sr:
        latest = config.max_duration - config.max_samples / config.sr
        raise ValueError(f"offset_seconds is at most {latest:.3f}, got {conditioning.offset_seconds:g}")
    unused = (NO_GENRE,) * (config.max_bow_genre_size - len(conditioning.genre_ids))
    genres = (*conditioning.genre_ids, *unused)
    return LabelVector(total, offset, config.max_samples, conditioning.artist_id, genres)


def time_bins(labels: LabelVector, config: PriorConfig) -> TimeBins:
    """Rows of the tables of time for every position, in float32 as published: elsewhere a bin would begin one
    position earlier or later."""
    total, offset, clip = (
        torch.tensor(float(n)) for n in (labels.total_samples, labels.offset_samples, labels.clip_samples)
    )
    lowest, highest = config.min_duration * config.sr, config.max_duration * config.sr
    through = torch.arange(config.n_ctx, dtype=torch.float32) / config.n_ctx
    begin, end = offset / total, ((offset + clip) / total).clamp(max=1.0)
    return TimeBins(
        int(_bins((total - lowest) / (highest - lowest), config)),
        _bins((offset + (offset + clip - offset) * through) / highest, config),
        _bins(begin + (end - begin) * through, config),
    )


def constants(
    conditioning: JukeboxConditioning, config: PriorConfig, table: Callable[[str], Tensor]
) -> Constants:
    """The conditioning as constants.

    table: official name -> tensor `(rows, D)`; each is asked for once.
    """
    labels = label_vector(conditioning, config)
    bins = time_bins(labels, config)
    genres = [genre for genre in labels.genre_ids if genre != NO_GENRE]
    start = table(ARTIST_TABLE)[labels.artist_id].float() + table(GENRE_TABLE)[genres].float().sum(0)
    timing = table(TOTAL_TABLE)[bins.total].float()
    timing = timing + table(ABSOLUTE_TABLE).float()[bins.absolute]
    return Constants(start, timing + table(RELATIVE_TABLE).float()[bins.relative])


GENRE_TABLE = "y_emb.bow_genre_emb.emb.weight"
ARTIST_TABLE = "y_emb.artist_emb.emb.weight"
TOTAL_TABLE = "y_emb.total_length_emb.emb.weight"
ABSOLUTE_TABLE = "y_emb.absolute_pos_emb.emb.weight"
RELATIVE_TABLE = "y_emb.relative_pos_emb.emb.weight"


def label_tables(config: PriorConfig) -> dict[str, tuple[int, int]]:
    """Official name -> shape of the tables that become constants."""
    num_genres, num_artists = config.y_bins
    rows = {GENRE_TABLE: num_genres, ARTIST_TABLE: num_artists}
    rows |= dict.fromkeys((TOTAL_TABLE, ABSOLUTE_TABLE, RELATIVE_TABLE), config.t_bins)
    return {name: (count, config.prior_width) for name, count in rows.items()}


def _bins(fraction: Tensor, config: PriorConfig) -> Tensor:
    return (config.t_bins * fraction).floor().long()
