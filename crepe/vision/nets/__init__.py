"""Plain definitions of nets that no library on board builds, with the parameter names of their published weights."""

from crepe.vision.nets.base import NETS

__all__ = ["NETS"]
