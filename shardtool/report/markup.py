"""Pieces of an HTML page that loads nothing, and on which no name from outside does anything."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence

import numpy as np

from shardtool.text import plain

NAME_CHARACTERS = 160


def text(value: object) -> str:
    """Words, for any place of the page."""
    return html.escape(plain(value))


def name(value: object) -> str:
    """A name or a path from outside, for any place of the page: a long one loses its middle."""
    shown = plain(value)
    if len(shown) > NAME_CHARACTERS:
        shown = f"{shown[: NAME_CHARACTERS * 2 // 3]} … {shown[-NAME_CHARACTERS // 3 :]}"
    return html.escape(shown)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0, kind: str = "") -> str:
    """Numbers stand right, under their title; the last `numbers` columns always do."""
    rows = [list(row) for row in rows]
    right = {
        place
        for place in range(len(head))
        if place >= len(head) - numbers or all(isinstance(row[place], int | np.integer) for row in rows)
    }
    titles = _cells("th", head, right)
    body = "".join(f"<tr>{_cells('td', row, right)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'


def _cells(tag: str, values: Sequence[object], right: set[int]) -> str:
    return "".join(
        f'<{tag} class="n">{_value(value)}</{tag}>' if place in right else f"<{tag}>{_value(value)}</{tag}>"
        for place, value in enumerate(values)
    )


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else name(value)


def page(title: str, body: str, style: str) -> str:
    """The whole page: `body` and `style` (CSS) stand on it as they are."""
    # the hash lets this style sheet in and no other, not even a style attribute
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )
