"""The words of a search: proxy, sampler, space, and how long to look."""

from __future__ import annotations

from dataclasses import dataclass, field

from crepe.errors import UsageError
from crepe.search.space import Space


@dataclass(frozen=True)
class Search:
    """How to search.

    patience: stop when so many trials in a row bring nothing better; check: how many trials to measure perplexity of.
    held: calibration rows kept from the statistics, for proxies that run the model on them.
    finalists: trials among which the proxy called judge decides at the end (see finalists.py); 0 for none.
    """

    proxy: str = "fisher"
    sampler: str = "tpe"
    trials: int = 200
    patience: int | None = None
    check: int = 0
    held: int = 8
    finalists: int = 10
    judge: str = "kl"
    storage: str | None = None
    space: Space = field(default_factory=Space)

    def __post_init__(self) -> None:
        for name, least in {"trials": 1, "patience": 1, "held": 1, "finalists": 0, "check": 0}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)}: it must be at least {least}")

    @property
    def judged_at_end(self) -> bool:
        """A proxy that is its own judge needs no second opinion."""
        return self.finalists > 0 and self.judge != self.proxy

    @property
    def rows_held(self) -> int:
        """Rows to keep from the statistics: none where nothing runs the model on them."""
        from crepe.search.proxies import get_proxy

        return self.held if get_proxy(self.proxy).runs_model or self.check or self.judged_at_end else 0
