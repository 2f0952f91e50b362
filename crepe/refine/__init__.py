"""Refinements change a mask or the surviving weights after selection: one file each."""

from crepe.refine.base import REFINEMENTS, BlockFit, BlockRefinement, Fit, Folding, Refinement

__all__ = ["REFINEMENTS", "BlockFit", "BlockRefinement", "Fit", "Folding", "Refinement"]
