"""Selection methods for image models: one file each, registered in METHODS. Pure functions on weight tensors."""

from crepe.vision.methods.base import METHODS, FilterPart, HeadChoice, HeadPart, Heads, Layer, MaskPart, Method

__all__ = ["METHODS", "FilterPart", "HeadChoice", "HeadPart", "Heads", "Layer", "MaskPart", "Method"]
