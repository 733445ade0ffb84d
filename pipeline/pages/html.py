"""Parts of a page that many sections of the report share: tables that wrap on a narrow screen, folds, and the style."""

from collections.abc import Sequence
from html import escape

from pipeline.pages.charts import COLOURS


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], total: bool = False) -> str:
    """`heads`: a name that begins with `#` heads a column of numbers. Cells are HTML; they wrap on a narrow screen.
    `total`: the last row is a sum."""
    number = [head.startswith("#") for head in heads]
    marks = [" class=n" if right else "" for right in number]
    head = "".join(f"<th{mark}>{escape(h.removeprefix('#'))}" for h, mark in zip(heads, marks, strict=True))
    lines = [
        f"<tr{' class=total' if total and i == len(rows) - 1 else ''}>"
        + "".join(f"<td{mark}>{cell}" for cell, mark in zip(row, marks, strict=True))
        for i, row in enumerate(rows)
    ]
    return f'<div class="wide"><table><tr>{head}{"".join(lines)}</table></div>'


def fold(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""


def words(name: str) -> str:
    return name.replace("_", " ")


STYLE = (
    COLOURS
    + """
:root{color-scheme:light dark;--rest:#cfc8ba}
@media(prefers-color-scheme:dark){:root{--rest:#57503f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:820px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:30px;margin:8px 0 16px}h2{font-size:21px;margin:40px 0 8px;border-bottom:2px solid var(--rule)}
h3{font-size:16px;margin:26px 0 4px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:12px}
.tile{border:1px solid var(--rule);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:24px}.tile span,.note{color:var(--dim);font-size:14px}
.note{margin:6px 0;overflow-wrap:anywhere}.small{font-size:14px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;margin:10px 0;font-size:15px}
dt{color:var(--dim)}dd{margin:0}
.wide{overflow-x:auto}.wide+.wide{margin-top:14px}
table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:600;color:var(--dim)}
td,th{padding:4px 10px 4px 0;border-bottom:1px solid var(--rule);vertical-align:baseline}.n{text-align:right}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}tr.total td{font-weight:600}
.bar{display:inline-block;width:130px;height:9px;background:var(--rule);border-radius:4px;overflow:hidden}
.bar span{display:block;height:100%}
figure{margin:12px 0}figcaption{font-weight:600;font-size:14px}svg{width:100%;height:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:4px 24px;align-items:start}
.key{display:inline-block;font-size:13px;color:var(--dim);margin-right:12px}
.key i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.verdict{border:1px solid var(--rule);border-left:4px solid var(--a);border-radius:8px;padding:10px 14px;margin:8px 0}
.verdict ul{margin:6px 0;padding-left:20px;font-size:14px}
details{border-bottom:1px solid var(--rule);padding:4px 0}summary{cursor:pointer;font-size:14px}
summary i{color:var(--dim);font-style:normal;float:right}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--rule);border-radius:8px;padding:10px 12px;
font-size:12.5px;margin:4px 0 10px}pre b{color:var(--a)}code{font-size:13px;overflow-wrap:anywhere}
@media(max-width:560px){main{padding:12px 14px 48px}.bar,td:has(>.bar:only-child){display:none}
td,th{padding-right:8px;font-size:13px}
.tiles{grid-template-columns:1fr 1fr}.tile b{font-size:20px}.tile{padding:9px 11px}dl{grid-template-columns:1fr}
dd{margin-bottom:6px}}
@media print{:root{--paper:#fff;--ink:#000;--dim:#555;--rule:#ddd}body{font-size:12px}main{max-width:none;padding:0}
table,.tile
span,.note,dl{font-size:11px}.tile,pre,figure,tr,.verdict{break-inside:avoid}h2,h3,summary{break-after:avoid}
.wide{overflow:visible}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)
