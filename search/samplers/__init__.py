"""Samplers: one file each, registered by name."""

from crepe.search.samplers.base import SAMPLERS, SamplerFactory

__all__ = ["SAMPLERS", "SamplerFactory"]
