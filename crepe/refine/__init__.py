"""Refinements change a mask or the surviving weights after selection: one file each."""

from crepe.refine.base import REFINEMENTS, Refinement

__all__ = ["REFINEMENTS", "Refinement"]
