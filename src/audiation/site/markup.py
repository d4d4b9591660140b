"""HTML as values: what is text is escaped, what is markup says so by its type. Pages allow their own scripts only."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from typing import Any

GENERATOR = "audiation"  # in every page, so that a later site knows which files are its own
_VOID = frozenset({"br", "col", "hr", "input", "link", "meta"})
# What HTML or UTF-8 cannot hold: control characters, and halves of surrogate pairs, which JSON can spell.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_SVG_STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL | re.IGNORECASE)


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, attributes: Mapping[str, str | int | float | bool | None], *children: object) -> Markup:
    """One element. Children that are not `Markup` are text, and None is nothing.

    attributes: name -> value; True is an attribute without value, False and None leave it out.
    """
    written = "".join(
        f" {key}" if value is True else f' {key}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        assert not children, f"<{name}> takes no children"
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Children one after another, escaped where they are text."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None))


def escape(value: object) -> Markup:
    """Text for an element or a quoted attribute; characters that no page can hold become U+FFFD."""
    return Markup(html.escape(printable(str(value)), quote=True))


def printable(text: str) -> str:
    """The text without control characters and halves of surrogate pairs."""
    return _UNPRINTABLE.sub("\ufffd", text)


def file_name(readable: str, identity: str) -> str:
    """An address for any text, unlike that of any other identity: a readable part, and a hash."""
    words = re.sub(r"[^a-z0-9]+", "-", readable.lower()).strip("-")[:60].strip("-")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "-".join(filter(None, (words, digest))) + ".html"


def json_island(name: str, data: Any) -> Markup:
    """Data for a script of the page. No text in it can close the element or open a comment.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def page(
    title: str, body: Markup, *, style: str, scripts: tuple[str, ...] = (), plays_audio: bool = False
) -> str:
    """A whole page that needs nothing beside it and may load nothing from elsewhere.

    The policy names the page's own scripts and style sheets by their hashes, so that whatever else gets into the page
    does not run.

    plays_audio: files of this machine or beside the page may be played.
    """
    allowed_scripts = " ".join(map(_source, scripts)) or "'none'"
    sheets = [style, *(html.unescape(sheet) for sheet in _SVG_STYLE.findall(body))]
    policy = [
        "default-src 'none'",
        f"script-src {allowed_scripts}",
        f"style-src-elem {' '.join(dict.fromkeys(map(_source, sheets)))}",
        # Charts carry their colours in attributes.
        "style-src-attr 'unsafe-inline'",
        "img-src data:",
        *(["media-src 'self' file:"] if plays_audio else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    head = join(
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": "; ".join(policy)}),
        tag("meta", {"name": "generator", "content": GENERATOR}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "referrer", "content": "no-referrer"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", {}, title),
        tag("link", {"rel": "icon", "href": "data:,"}),
        Markup(f"<style>{style}</style>"),
    )
    code = Markup("".join(f"<script>{script}</script>" for script in scripts))
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}\n{code}</body>\n</html>\n'


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
