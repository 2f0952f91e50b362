"""report.html: one self-contained file."""

from __future__ import annotations

import html
import re
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left}
td+td,th+th{text-align:right}code,pre{background:#f5f2ee;padding:.1rem .3rem;border-radius:3px}
pre{padding:.8rem;overflow-x:auto}svg{width:100%;height:auto}details{margin:1rem 0}
"""


def page(manifest: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """The report as one HTML text: before/after, plots per block, a line per tensor, what stays dense."""
    from crepe.checkpoint.card import command

    title = f"{manifest['base_model']['name']}: {manifest['sparsity']:.2%} pruned"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<pre>{html.escape(command(manifest['recipe']))}</pre>",
        _before_after(evaluation),
        *_block_plots(manifest["tensors"]),
        _fits(manifest.get("fits", {})),
        _tensor_table(manifest["tensors"]),
        _skipped_table(manifest["skipped"]),
        _versions(manifest["versions"]),
    ]
    return document(title, parts)


def document(title: str, parts: list[str]) -> str:
    """A self-contained page of HTML parts."""
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _before_after(evaluation: dict[str, Any] | None) -> str:
    from crepe.checkpoint.card import comparison, task_results

    if not evaluation:
        return "<p>No evaluation yet: <code>crepe eval FOLDER --reference BASE_MODEL --save</code> adds it.</p>"
    tables = table(("", "dense", "pruned"), comparison(evaluation))
    if task_results(evaluation):
        tables += table(("lm-eval", "pruned"), task_results(evaluation))
    return "<h2>Before and after</h2>" + tables


def _block_plots(tensors: dict[str, Any]) -> list[str]:
    from crepe.report.plots import bars

    blocks: dict[str, list[dict[str, Any]]] = {}
    for name, about in tensors.items():
        blocks.setdefault(_block_of(name), []).append(about)
    names = list(blocks)
    sparsity = [sum(t["zeros"] for t in ts) / sum(t["total"] for t in ts) for ts in blocks.values()]
    error = [sum(t["error"] for t in ts) / len(ts) for ts in blocks.values()]
    return [
        "<h2>Sparsity of each block</h2>" + bars(names, sparsity, "share of zeros", 1.0),
        "<h2>Error of each block</h2><p>Share of the matrices' output energy that was lost, from their inputs' Gram "
        "matrices where a refinement collected them, else estimated from the norms; the mean over the block.</p>"
        + bars(names, error, "relative error"),
    ]


def _fits(fits: dict[str, dict[str, list[float]]]) -> str:
    """What fitting whole blocks brought, on calibration batches that the fit did not see."""
    rows = [(block, name, f"{a:.4f}", f"{b:.4f}") for block, found in fits.items() for name, (a, b) in found.items()]
    if not rows:
        return ""
    found = table(("block", "refinement", "error before", "after"), rows)
    return f"<details><summary>{len(rows)} fits of whole blocks</summary>{found}</details>"


def _block_of(name: str) -> str:
    found = re.match(r".*?\.(\d+)(?=\.)", name)
    return found[1] if found else name


def _tensor_table(tensors: dict[str, Any]) -> str:
    rows = [
        (n, " x ".join(map(str, t["shape"])), t["pattern"], f"{t['zeros'] / t['total']:.4%}", f"{t['error']:.4f}")
        for n, t in tensors.items()
    ]
    found = table(("tensor", "shape", "pattern", "zeros", "error"), rows)
    return f"<details><summary>All {len(rows)} pruned tensors</summary>{found}</details>"


def _skipped_table(skipped: list[dict[str, Any]]) -> str:
    rows = [(s["name"], " x ".join(map(str, s["shape"])), s["reason"]) for s in skipped]
    found = table(("tensor", "shape", "reason"), rows)
    return f"<details><summary>{len(rows)} tensors that stay dense</summary>{found}</details>"


def _versions(versions: dict[str, Any]) -> str:
    return f"<p>{html.escape(', '.join(f'{name} {v}' for name, v in versions.items()))}</p>"


def table(header: tuple[str, ...], rows: list[Any]) -> str:
    """An HTML table; every cell is escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
