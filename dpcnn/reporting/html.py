"""An HTML page in one file, which loads nothing from elsewhere."""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 76rem; margin: 0 auto; padding: 1rem; }
main { columns: 34rem 2; column-gap: 3rem; }
section { break-inside: avoid; padding-top: 1.2rem; } section.wide { column-span: all; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; }
p.note { font-size: 0.85rem; color: #555; max-width: 34rem; }
img { width: 100%; max-width: 34rem; display: block; }
div.table { overflow: auto; max-height: 40rem; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
div.table th { position: sticky; top: 0; background: #fff; white-space: normal; vertical-align: bottom; }
.names1 :nth-child(1):is(th, td), .names2 :nth-child(-n+2):is(th, td) {
  text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
table.facts th, table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.facts th { font-weight: normal; color: #555; white-space: nowrap; }
@media (max-width: 40rem) {
  th, td { padding: 0.2rem 0.3rem; }
  table.facts th { white-space: normal; overflow-wrap: break-word; }
}
@media print { div.table { max-height: none; } }
"""


class Section(NamedTuple):
    """A section of a page.

    Attributes:
        title: plain text.
        content: HTML; empty: the page leaves the section out.
        wide: whether it takes the whole width of the page; other sections stand in two columns.
    """

    title: str
    content: str
    wide: bool = False

    def __str__(self) -> str:
        return f"<section{' class=wide' * self.wide}><h2>{self.title}</h2>\n{self.content}</section>"


def document(title: str, summary: Mapping[str, Any], sections: Iterable[Section]) -> str:
    """The page: a title, a table of facts, and sections."""
    body = "\n".join(str(section) for section in sections if section.content)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n{facts(summary)}\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def picture(folder: Path, name: str, text: str) -> str:
    """The picture NAME.svg of a folder, embedded; empty if there is no such file."""
    path = folder / f"{name}.svg"
    if not path.exists():
        return ""
    return f'<img alt="{text}" src="data:image/svg+xml;base64,{b64encode(path.read_bytes()).decode()}">\n'


def note(text: str) -> str:
    """A paragraph in small type, about what stands above it."""
    return f'<p class="note">{escape(text)}</p>\n'


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]], names: int = 0) -> str:
    """An HTML table, which scrolls if it is larger than the page; its first ``names`` columns, at most 2, are text."""
    lines = [f"<tr>{''.join(f'<th>{escape(str(cell))}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f'<div class="table"><table class="names{names}">\n' + "\n".join(lines) + "\n</table></div>\n"


def facts(values: Mapping[str, Any]) -> str:
    """An HTML table of names and values, one row each."""
    lines = [f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in values.items()]
    return '<table class="facts">\n' + "\n".join(lines) + "\n</table>\n"
