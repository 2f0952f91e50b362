"""The shipped coefficients: the file for the pattern, with the nearest sparsity where several exist."""

from __future__ import annotations

from crepe.criteria.coefficients import Coefficients


def default_coefficients(pattern: str, sparsity: float) -> Coefficients:
    """Coefficients tuned for `pattern`, else those tuned for unstructured sparsity nearest to `sparsity`."""
    from crepe.configs import names, read_yaml

    shipped = [Coefficients.from_dict(read_yaml(f"coefficients/{n}.yaml"), n) for n in names("coefficients")]
    same = [c for c in shipped if c.origin["pattern"] == pattern]
    candidates = same or [c for c in shipped if c.origin["pattern"] == "unstructured"]
    return min(candidates, key=lambda c: abs(float(c.origin["sparsity"]) - sparsity))
