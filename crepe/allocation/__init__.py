"""How the global sparsity is divided over tensors: one file per rule."""

from crepe.allocation.base import ALLOCATIONS, Allocation, Budget

__all__ = ["ALLOCATIONS", "Allocation", "Budget"]
