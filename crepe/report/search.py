"""The report of a search: history, importance of each coefficient, proxy against perplexity."""

from __future__ import annotations

import html
from itertools import accumulate
from pathlib import Path
from typing import Any

from crepe.checkpoint.files import replacing
from crepe.report.html import document, table
from crepe.report.plots import bars, scatter


def write_search_report(found: Any) -> Path:
    """Write the report beside the coefficient file of a `crepe.search.find.Found`; returns its path."""
    path = Path(found.output).with_suffix(".html")
    with replacing(path) as fresh:
        fresh.write_text(_page(found))
    return path


def _page(found: Any) -> str:
    content = found.coefficients.to_dict()
    title = f"search: {content['pattern']}, {content['sparsity']:.0%} of {content['model']}"
    rows = [(key, value) for key, value in content.items() if key != "versions"]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        table(("", "found"), rows),
        f"<p>Proxy of plain RIA: {found.reference:.6g}. Lower is better. What it costs: {html.escape(found.cost)}.</p>",
        _judged(found.judged),
        _history(found.study, content["proxy"]),
        _importance(found.study),
        _against_perplexity(found.checked, content["proxy"]),
    ]
    return document(title, parts)


def _judged(judged: list[dict[str, Any]]) -> str:
    if not judged:
        return ""
    rows = [(j["name"], f"{j['judge']:.4f}") for j in judged]
    return "<h2>Finalists</h2>" + table(("point", "divergence from the dense model"), rows)


def _history(study: Any, proxy: str) -> str:
    from crepe.search.samplers.base import complete_trials

    done = complete_trials(study)
    numbers = [t.number for t in done]
    values = [t.value for t in done if t.value is not None]
    bests = list(accumulate(values, min))
    return "<h2>History</h2>" + scatter([(numbers, values, "trial"), (numbers, bests, "best so far")], "trial", proxy)


def _importance(study: Any) -> str:
    """Which parameters decide whether a point is among the best (PED-ANOVA, Watanabe et al. 2023)."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    from crepe.search.samplers.base import complete_trials

    if len(complete_trials(study)) < 10:
        return ""
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return "<h2>Importance</h2>" + bars(list(found), list(found.values()), "importance (PED-ANOVA)")


def _against_perplexity(checked: list[dict[str, float]], proxy: str) -> str:
    if not checked:
        return "<p>No perplexity was measured: <code>--check 20</code> does it for 20 trials.</p>"
    trials = [c for c in checked if c["trial"] >= 0]
    ria = [c for c in checked if c["trial"] < 0]
    points = [
        ([c["proxy"] for c in part], [c["perplexity"] for c in part], label)
        for part, label in ((trials, "trials"), (ria, "plain RIA"))
    ]
    return "<h2>Proxy against perplexity on held-out rows</h2>" + scatter(points, proxy, "perplexity")
