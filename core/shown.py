"""How values show themselves in a notebook: small tables of plain HTML, in the notebook's own style."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table under its title; the first column is text, the others are numbers."""
    lines = [f"<p><b>{escape(title)}</b></p>" if title else "", "<table>"]
    if head:
        lines.append(f"<thead>{_row(head, 'th')}</thead>")
    lines += ["<tbody>", *(_row(row, "td") for row in rows), "</tbody></table>"]
    return "\n".join(line for line in lines if line)


def html_list(title: str, items: Sequence[str]) -> str:
    """Sentences under a title; nothing where there are none."""
    if not items:
        return ""
    return f"<p><b>{escape(title)}</b></p><ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _row(cells: Sequence[str], tag: str) -> str:
    first, *others = cells
    shown = [f'<{tag} style="text-align: left">{escape(first)}</{tag}>']
    return f"<tr>{''.join([*shown, *(f'<{tag}>{escape(cell)}</{tag}>' for cell in others)])}</tr>"
