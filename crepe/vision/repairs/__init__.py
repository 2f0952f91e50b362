"""What is repaired before or after a cut without training: one file each, registered in REPAIRS."""

from crepe.vision.repairs.base import REPAIRS, Repair

__all__ = ["REPAIRS", "Repair"]
