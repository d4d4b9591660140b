"""A matplotlib figure with a title, a key and notes -> an SVG text that fits into any page.

Sizes are in pixels: a figure has 72 dots per inch, so that a point is a pixel.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
import unicodedata
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

INK = "#010203"  # stands for the colour of the page's text, and becomes `currentColor`
# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; the light ones are darkened to
# stand out from white pages as well as from black ones.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#C266A0", "#C98500", "#3A97CF", INK, "#8C6BB1")
BLUE, ORANGE = PALETTE[:2]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
STROKES = ("-", "--", "-.", ":")

WIDTH = 640
MARGIN = 8
TEXT_SIZE, SMALL_SIZE, TITLE_SIZE = 9.0, 8.0, 11.0
LINE_HEIGHT = 14  # of key and notes
FAINT = 0.18  # opacity of grid lines
QUIET = 0.75  # opacity of notes
LONGEST_TEXT = 2000  # of titles, descriptions and what pointing at a mark says

Tooltips = dict[str, str]


@dataclass(frozen=True)
class KeyEntry:
    """A line of the key. style: of a `Line2D`; none: text alone."""

    text: str
    style: Mapping[str, Any] | None = None


def render(
    kind: str,
    title: str,
    description: str,
    draw: Callable[[Any], Tooltips] | None,
    *,
    body_height: float = 0,
    keys: Sequence[KeyEntry] = (),
    notes: Sequence[str] = (),
) -> str:
    """An SVG text.

    Args:
        kind: begins the ids of the chart; their rest is a hash of what it shows.
        description: what is to be seen, for those who do not see it.
        draw: draws into a `Figure` and returns what pointing at a mark says: gid of the artist -> text. None: there is
            nothing but the notes.
        body_height: of what `draw` draws, in pixels.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.style
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("charts are drawn with matplotlib: pip install 'audiation[figures]'") from None
    with ExitStack() as stack:
        # Whatever a user's matplotlibrc says, the same numbers give the same text.
        stack.enter_context(matplotlib.style.context(["default", _SETTINGS], after_reset=True))
        stack.enter_context(warnings.catch_warnings())
        # The page's fonts draw the text, not the one that measures it here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        key_lines = _flow(keys)
        note_lines = [line for note in notes for line in _wrapped(note)]
        header = MARGIN + 18 + LINE_HEIGHT * len(key_lines) + (4 if key_lines else 0)
        footer = MARGIN + LINE_HEIGHT * len(note_lines)
        height = header + body_height + footer
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(rect=(0, footer / height, 1, body_height / height))  # type: ignore[call-arg]
        _write(figure, MARGIN, 16, title, height, size=TITLE_SIZE, weight="bold")
        for line, entries in enumerate(key_lines):
            _draw_key(figure, entries, 18 + MARGIN + LINE_HEIGHT * (line + 0.7), height)
        for line, text in enumerate(note_lines):
            y = header + body_height + LINE_HEIGHT * (line + 0.8)
            _write(figure, MARGIN, y, text, height, size=SMALL_SIZE + 0.5, alpha=QUIET)
        tooltips = draw(figure) if draw else {}
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _portable(stream.getvalue(), kind, title, description, tooltips)


def note_only(kind: str, title: str, note: str) -> str:
    """A chart without anything to draw: the note says why."""
    return render(kind, title, note, None, notes=[note])


def panels(figure: Any, count: int, columns: int = 2, **options: Any) -> list[Any]:
    """Axes, row by row; those too many are hidden. options: of `Figure.subplots`."""
    rows = -(-count // columns)
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes[:count]


def num_rows(count: int, columns: int = 2) -> int:
    return -(-count // columns)


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and stroke of the line with a number: no two of the first 88 look alike."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": STROKES[(number + number // len(PALETTE)) % len(STROKES)],
        "markersize": 4.5,
        "linewidth": 1.3,
    }


def clean(text: object, limit: int = 40) -> str:
    """Text of one line from whoever wrote it: nothing invisible, nothing too long."""
    visible = "".join(
        "�" if unicodedata.category(c)[0] == "C" and c not in "\t\r\n" else c for c in str(text)
    )
    line = " ".join(visible.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def listed(names: Sequence[object], limit: int = 6) -> str:
    """'a, b and 3 more'."""
    shown = [clean(name) for name in names[:limit]]
    text = ("; " if any("," in name for name in shown) else ", ").join(shown)
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def grid(axis: Any, direction: str = "y") -> None:
    axis.grid(axis=direction, color=INK, alpha=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)


# Text around the drawing ----------------------------------------------------------------------------------

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "audiation",
    "text.parse_math": False,  # a name with two dollars is a name
    "font.size": TEXT_SIZE,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": TEXT_SIZE + 0.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.dpi": "figure",
    "hatch.linewidth": 0.6,
}
_KEY_MARK_WIDTH = 26


def _flow(keys: Sequence[KeyEntry]) -> list[list[tuple[float, KeyEntry]]]:
    """Entries with their places, line by line."""
    lines: list[list[tuple[float, KeyEntry]]] = []
    x = float(WIDTH)
    for entry in keys:
        width = text_width(entry.text, TEXT_SIZE) + (_KEY_MARK_WIDTH if entry.style else 0) + 14
        if x + width > WIDTH:
            lines.append([])
            x = MARGIN
        lines[-1].append((x, entry))
        x += width
    return lines


def text_width(text: str, size: float) -> float:
    """About how wide a text is, in pixels."""
    return size * sum(1.05 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in text)


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note, int((WIDTH - 2 * MARGIN) / (0.56 * (SMALL_SIZE + 0.5))))


def _draw_key(figure: Any, entries: Sequence[tuple[float, KeyEntry]], y: float, height: float) -> None:
    from matplotlib.lines import Line2D

    for x, entry in entries:
        if entry.style:
            middle = 1 - (y - 3) / height
            mark = Line2D(
                [x / WIDTH, (x + 10) / WIDTH, (x + 20) / WIDTH], [middle] * 3,
                transform=figure.transFigure, markevery=[1], **entry.style,
            )  # fmt: skip
            figure.add_artist(mark)
        _write(figure, x + (_KEY_MARK_WIDTH if entry.style else 0), y, entry.text, height)


def _write(figure: Any, x: float, y: float, text: str, height: float, **options: Any) -> None:
    figure.text(x / WIDTH, 1 - y / height, text, va="baseline", **{"size": TEXT_SIZE, **options})


# matplotlib's SVG -> a part of a page ---------------------------------------------------------------------

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


def _portable(text: str, kind: str, title: str, description: str, tooltips: Tooltips) -> str:
    """Without prolog, styles and metadata; its own ids; ink that follows the page."""
    root = ElementTree.fromstring(text)
    for unwanted in [root.find(f"{_SVG}metadata"), *root.findall(f"{_SVG}defs[{_SVG}style]")]:
        if unwanted is not None:
            root.remove(unwanted)
    digest = hashlib.sha256(f"{text}\0{title}\0{description}".encode()).hexdigest()[:10]
    prefix = f"{kind}-{digest}-"
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        attributes = {name.removeprefix(_XLINK): value for name, value in element.attrib.items()}
        attributes |= _presentation(attributes.pop("style", ""))
        element.attrib.clear()
        gid = attributes.get("id", "")
        element.attrib.update({name: _own(name, value, prefix) for name, value in attributes.items()})
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        element.tail = None
        if gid in tooltips and element.tag == "g":
            tooltip = ElementTree.Element("title")
            tooltip.text = clean(tooltips[gid], LONGEST_TEXT)
            element.insert(0, tooltip)
    root.attrib.clear()
    width, height = _view_box(text)
    root.attrib.update(
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": f"{width:g}",
            "height": f"{height:g}",
            "viewBox": f"0 0 {width:g} {height:g}",
            "role": "img",
            "aria-labelledby": f"{prefix}title {prefix}desc",
            "font-family": "sans-serif",
            "stroke-linejoin": "round",
            "stroke-linecap": "butt",
        }
    )
    for place, (tag, content) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{prefix}{tag}"})
        element.text = clean(content, LONGEST_TEXT)
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _view_box(text: str) -> tuple[float, float]:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert found is not None
    return float(found[1]), float(found[2])


def _presentation(style: str) -> dict[str, str]:
    """'fill: none; stroke: #000000' -> attributes, which a page may allow where it forbids styles."""
    pairs = (part.partition(":") for part in style.split(";") if part.strip())
    attributes = {name.strip(): value.strip() for name, _, value in pairs}
    attributes.pop("font-family", None)  # of the root
    if "font-size" in attributes:
        attributes["font-size"] = attributes["font-size"].removesuffix("px")
        attributes.setdefault("fill", "currentColor")
    return attributes


def _own(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if value == INK:
        return "currentColor"
    return re.sub(r"^(url\()?#(?![0-9a-fA-F]{6}$)", lambda m: f"{m[1] or ''}#{prefix}", value)
