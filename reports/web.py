"""What every HTML page of ours is made of: no script, no network, light and dark, for screen, paper and screen readers.

Whatever a file or another machine said goes through ``html.escape``; the policy in the head forbids what might slip through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from clustergauge.units import counted
from clustergauge.valid import printable

LONGEST = 2000
"""Characters of one text."""
SHORTER = (LONGEST, 500, 200, 80, 40)
"""Characters of a cell, where its table would otherwise hold more than `MOST_TEXT`."""
MOST_TEXT = 300_000
"""Characters of one table."""
MOST_BYTES = 1_900_000
"""Of a page without its head."""
SENTENCE = 40
"""Characters from which on a cell may be broken into lines."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--dim:#59626d;--rule:#d5dae0;--bad:#b3261e;--doubt:#7a5200;--good:#146c2e;
--s0:#0b62b8;--s1:#b04a00;--s2:#146c2e;--s3:#8a2a8a;--s4:#00707a;--s5:#7a5200}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--ink:#e8ebef;--dim:#a3adb8;--rule:#39414b;--bad:#ff8a80;--doubt:#f2c14e;
--good:#7fd99a;--s0:#6db3ff;--s1:#ffa15c;--s2:#7fd99a;--s3:#e39be3;--s4:#5fd3dd;--s5:#f2c14e}}
body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--bg);color:var(--ink);font:1rem/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}
.banner{border-left:.5rem solid;padding:.6rem 1rem;font-size:1.1rem}.bad{color:var(--bad)}.doubt{color:var(--doubt)}
.good{color:var(--good)}.dim,.axis{color:var(--dim)}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;width:100%}caption{text-align:left;color:var(--dim);padding:.3rem 0}
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--rule);font-weight:400;
white-space:nowrap}thead th{font-weight:600}td{font-variant-numeric:tabular-nums}
tbody th{white-space:normal;overflow-wrap:anywhere;min-width:11rem}
td.text{white-space:normal;overflow-wrap:anywhere;min-width:12rem}
figure{margin:1.2rem 0}figcaption{font-weight:600;overflow-wrap:anywhere}svg{display:block;width:100%;max-width:44rem;height:auto}
svg.square{max-width:34rem}svg text{font-size:12px;fill:var(--ink)}svg text.on{fill:var(--bg)}
svg text.name{paint-order:stroke;stroke:var(--bg);stroke-width:4px}.line{fill:none;stroke-width:2}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.cell{fill:var(--bad)}.unknown{fill:none;stroke:var(--dim);stroke-dasharray:2 2}
.bound{fill:none;stroke:var(--dim);stroke-width:1.5;stroke-dasharray:2 3}.zero{stroke:var(--dim);stroke-width:1.5}
.span{stroke-width:2;stroke:currentColor}.dot{fill:currentColor}g.plain{color:var(--s0)}.many{fill:var(--s0);fill-opacity:.45}
tr.bad,tr.doubt,tr.good{color:var(--ink)}tr.bad th,tr.bad .word{color:var(--bad)}tr.doubt th,tr.doubt .word{color:var(--doubt)}
tr.good .word{color:var(--good)}
.keys{list-style:none;padding:0;font-size:.875rem}.keys li{overflow-wrap:anywhere}
svg.key{display:inline-block;width:26px;height:8px}
@media print{body{max-width:none;padding:0}figure,tr{break-inside:avoid}.wide{overflow:visible}table{font-size:.75rem}
th,td{white-space:normal;padding-right:.4rem}tbody th,td.text{min-width:6rem}}
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page: its title, which is also its first heading, and its parts."""
    head = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(text(title))}</title><style>{STYLE}</style></head><body><main><h1>{escape(text(title))}</h1>",
    ]
    return "\n".join([*head, *_fitting(list(body)), "</main></body></html>\n"])


def _fitting(parts: list[str]) -> Iterator[str]:
    """The parts but for those without which the page is small enough: first pictures, then tables, then text, the last ones
    first; and how many these are."""
    sizes = [len(part.encode(errors="replace")) + 1 for part in parts]
    excess, left = sum(sizes) - MOST_BYTES, set[int]()
    for kind in ("<figure", '<div class="wide"', "<p"):
        for number in range(len(parts) - 1, 0, -1):
            if excess > 0 and parts[number].startswith(kind):
                left.add(number)
                excess -= sizes[number]
    yield from (part for number, part in enumerate(parts) if number not in left)
    if left:
        what = counted(len(left), "picture, table or paragraph is", "pictures, tables or paragraphs are")
        yield paragraph(f"{what} left out of this page: it would be too large.", "doubt")


def section(title: str, body: Iterable[str]) -> Iterator[str]:
    """Parts below a heading; nothing where there are none."""
    inside = list(body)
    if inside:
        yield f"<section><h2>{escape(title)}</h2>"
        yield from inside
        yield "</section>"


def banner(style: str, lead: str, words: str) -> str:
    """What it all comes to.  ``style``: ``good``, ``doubt`` or ``bad``."""
    return f'<p class="banner {style}" role="status"><strong>{escape(lead)}</strong><br>{escape(words)}</p>'


def paragraph(words: str, style: str = "") -> str:
    """A line of text."""
    kind = f' class="{style}"' if style else ""
    return f"<p{kind}>{escape(text(words))}</p>"


def text(words: str, longest: int = LONGEST) -> str:
    """Printable, and no longer than that; not yet escaped."""
    plain = printable(words[: longest + 1])
    return plain if len(plain) <= longest else plain[:longest] + "…"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = (), word: str = "") -> str:
    """A table of texts without the columns in which nothing stands; the first cell of each row is its header.

    ``styles``: class of each row, where it has one (``bad``, ``doubt``): the colour of its header and of the cell in the column
    ``word``, which says in words what the colour means.
    """
    kept = [n for n in range(len(head)) if n == 0 or any(row[n] for row in rows)]
    head, rows = [head[n] for n in kept], [[row[n] for n in kept] for row in rows]
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    most = next((n for n in SHORTER if sum(min(len(words), n) for row in rows for words in row) <= MOST_TEXT), SHORTER[-1])
    lines: list[str] = []
    for number, row in enumerate(rows):
        kind = f' class="{styles[number]}"' if number < len(styles) and styles[number] else ""
        cells = "".join(_cell(text(words, most), of == word) for of, words in zip(head[1:], row[1:], strict=True))
        lines.append(f'<tr{kind}><th scope="row">{escape(text(row[0], most))}</th>{cells}</tr>')
    lead = f"<caption>{escape(text(caption))}</caption><thead><tr>{top}</tr></thead>"
    return f'<div class="wide"><table>{lead}<tbody>{"".join(lines)}</tbody></table></div>'


def _cell(words: str, coloured: bool) -> str:
    """Numbers and words stay on one line; a sentence is broken."""
    kinds = [kind for kind, so in (("text", len(words) > SENTENCE), ("word", coloured)) if so]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{kind}>{escape(words)}</td>"


def figure(title: str, svg: str, numbers: str) -> str:
    """A chart, its title, and its table folded away."""
    caption = f"<figcaption>{escape(text(title))}</figcaption>"
    return f"<figure>{caption}{svg}<details><summary>Table</summary>{numbers}</details></figure>"
