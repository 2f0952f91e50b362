"""The mask API: patterns, exact selection, counting, checking, packing. Knows tensors only."""

from crepe.masks.mask_set import Mask, MaskSet
from crepe.masks.pattern import NofM, Pattern, Unstructured, parse_pattern
from crepe.masks.select import apply_mask, kept_count, select_largest, select_n_of_m

__all__ = [
    "Mask",
    "MaskSet",
    "NofM",
    "Pattern",
    "Unstructured",
    "apply_mask",
    "kept_count",
    "parse_pattern",
    "select_largest",
    "select_n_of_m",
]
