"""Perplexity of a few trials, to set the proxy against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crepe.criteria.coefficients import Coefficients
from crepe.search.how import Search


def check_with_perplexity(
    subject: Any, how: Search, study: Any, score: Callable[[Coefficients], float]
) -> list[dict[str, float]]:
    """Perplexity on the held-out rows for RIA (trial -1), and for trials spread evenly from the best to the worst."""
    from crepe.search.proxies import get_proxy
    from crepe.search.samplers.base import complete_trials

    perplexity = get_proxy("ppl").prepare(subject)
    done = sorted(complete_trials(study), key=lambda t: t.value)
    places = {round(i * (len(done) - 1) / max(1, how.check - 1)) for i in range(how.check)}
    checked = [{"trial": -1, "proxy": score(Coefficients()), "perplexity": perplexity(Coefficients())}]
    for place in sorted(places):
        trial = done[place]
        value = perplexity(how.space.coefficients(trial.params))
        checked.append({"trial": trial.number, "proxy": trial.value, "perplexity": value})
    return checked
