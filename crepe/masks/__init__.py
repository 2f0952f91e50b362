"""The mask API: patterns, exact selection, counting, checking, packing. Knows tensors only."""

from crepe.masks.colblock import ColBlock
from crepe.masks.mask_set import Mask, MaskSet
from crepe.masks.matrix import Matrix, output_error
from crepe.masks.mixed import Dense, Mixed
from crepe.masks.pattern import NofM, Pattern, Unstructured, parse_pattern
from crepe.masks.select import apply_mask, kept_count, select_largest, select_n_of_m
from crepe.masks.structured import Structured, kept_units
from crepe.masks.taps import Taps

__all__ = [
    "ColBlock",
    "Dense",
    "Mask",
    "MaskSet",
    "Matrix",
    "Mixed",
    "NofM",
    "Pattern",
    "Structured",
    "Taps",
    "Unstructured",
    "apply_mask",
    "kept_count",
    "kept_units",
    "output_error",
    "parse_pattern",
    "select_largest",
    "select_n_of_m",
]
