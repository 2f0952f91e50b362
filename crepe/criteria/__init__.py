"""Importance scores: pure functions from a weight matrix (out, in) and statistics to a score of the same shape."""

from crepe.criteria.base import CRITERIA, Criterion, Factors, factors, score
from crepe.criteria.coefficients import Coefficients

__all__ = ["CRITERIA", "Coefficients", "Criterion", "Factors", "factors", "score"]
