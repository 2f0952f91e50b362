"""How many channels each layer keeps: one file per rule."""

from crepe.vision.widths.base import RULES, Rule

__all__ = ["RULES", "Rule"]
