"""The frame of the page and its tables. Nothing is loaded, no name from outside does anything, and without
its script the page shows the same, unsorted."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from shardtool.report import markup


class Html(str):
    """Markup that stands on the page as it is; all other strings are escaped."""


def page(title: str, head: str, sections: Mapping[str, str]) -> str:
    """The whole page: `head` and the content of each section are markup."""
    shown = {name: content for name, content in sections.items() if content}
    links = "".join(f'<a href="#{_id(name)}">{name}</a>' for name in shown)
    body = "".join(
        f'<section id="{_id(name)}"><h2>{name}</h2>{content}</section>' for name, content in shown.items()
    )
    style = _file("shardtool.report", "report.css") + _file("train.report", "report.css")
    script = _file("train.report", "report.js")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{markup.text(title)}</title><style>{style}</style></head>"
        f"<body><header>{head}<nav>{links}</nav></header><main>{body}</main><script>{script}</script>"
        "</body></html>\n"
    )


def _policy(style: str, script: str) -> str:
    """Lets in this style sheet and this script, pictures of the page itself, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )


def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = (), kind: str = ""
) -> Html:
    """`numbers` are the columns that stand right; `kind` "sortable" lets the reader sort. A wide table
    scrolls inside its own box."""
    right = set(numbers)
    titles = "".join(_cell("th", name, place in right) for place, name in enumerate(head))
    # without the closing tags that HTML does not ask for: there can be 100,000 rows
    body = "\n".join(
        "<tr>" + "".join(_cell("td", value, place in right) for place, value in enumerate(row))
        for row in rows
    )
    return Html(
        f'<div class="wide"><table class="{kind}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(tag: str, value: object, right: bool) -> str:
    shown = value if isinstance(value, Html) else markup.name("–" if value is None else value)
    return f"<{tag} class=n>{shown}" if right else f"<{tag}>{shown}"


def share(value: float | None) -> str:
    """A share of 1 as a percentage; a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.1%} – {high:.1%}"


def badge(verdict: str) -> Html:
    """pass, fail, inconclusive or n/a, told by a sign and the word as well as by colour."""
    sign = {"pass": "✓", "fail": "✗", "inconclusive": "?"}.get(verdict, "·")
    kind = verdict if verdict in ("pass", "fail", "inconclusive") else "none"
    return Html(f'<span class="badge {kind}">{sign} {markup.text(verdict)}</span>')


def paragraph(words: object, kind: str = "") -> Html:
    return Html(f'<p class="{kind}">{markup.text(words)}</p>' if kind else f"<p>{markup.text(words)}</p>")


def sentence(words: str) -> str:
    """With a capital at its head."""
    return words[:1].upper() + words[1:]


def heading(words: object) -> Html:
    return Html(f"<h3>{markup.text(words)}</h3>")


def attribute(value: str) -> str:
    """For the inside of a double-quoted attribute."""
    return html.escape(value, quote=True)
