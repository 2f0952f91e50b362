"""From pictures to pixel values: the model's own image processor, or a few numbers that say the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from crepe.errors import CrepeError, UsageError

FILE = "preprocessor_config.json"
_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")


class Preprocessor(Protocol):
    """Pictures of any size and mode -> (count, 3, height, width) float32."""

    def __call__(self, pictures: Sequence[Any]) -> Tensor: ...

    def save(self, folder: Path) -> None: ...


def rgb(picture: Any) -> Any:
    """A picture of Pillow as RGB: grey repeated, transparency dropped, grey of 16 bits as grey of 8 (Pillow itself
    would cut everything above 255 off). Anything else is handed on as it is."""
    from PIL import Image

    if not isinstance(picture, Image.Image):
        return picture
    if picture.mode.startswith("I"):
        picture = Image.fromarray((numpy.asarray(picture).clip(0, 65535) // 256).astype("uint8"))
    if picture.mode == "RGB":
        picture.load()  # which is when a broken file shows; `convert` would make a copy besides
        return picture
    return picture.convert("RGB")


@dataclass(frozen=True)
class Steps:
    """Resize the shorter side to `resize`, cut `size` (height, width) from the middle, scale to 0..1, normalise.

    Without `resize`, a picture of another size is resized to `size`.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Steps:
        """Raises UsageError where a value is missing or of the wrong kind."""
        try:
            lists = {key: tuple(given[key]) for key in ("size", "mean", "std")}
            found = cls(**{**given, **lists})
        except (KeyError, TypeError) as error:
            raise UsageError(f"image = {given}: expected size, mean, std, and maybe resize, interpolation") from error
        if found.interpolation not in _FILTERS or len(found.size) != 2:
            raise UsageError(f"image = {given}: size is [height, width], interpolation one of {', '.join(_FILTERS)}")
        return found

    def __call__(self, pictures: Sequence[Any]) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        arrays = [numpy.asarray(self._fitted(rgb(picture))) for picture in pictures]
        pixels = torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2).float().div_(255)
        return pixels.sub_(mean).div_(std).contiguous()

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps({"crepe_image": asdict(self)}, indent=2) + "\n")

    def _fitted(self, picture: Any) -> Any:
        from PIL import Image

        height, width = self.size
        resample = getattr(Image.Resampling, self.interpolation.upper())
        if self.resize is not None:
            shorter = min(picture.size)
            scaled = tuple(max(round(side * self.resize / shorter), self.resize) for side in picture.size)
            picture = picture.resize(scaled, resample) if shorter != self.resize else picture
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            return picture.crop((left, top, left + width, top + height))
        return picture if picture.size == (width, height) else picture.resize((width, height), resample)


@dataclass(frozen=True)
class Processor:
    """The image processor that comes with a Hugging Face model."""

    processor: Any

    def __call__(self, pictures: Sequence[Any]) -> Tensor:
        found: Tensor = self.processor(images=[rgb(one) for one in pictures], return_tensors="pt")["pixel_values"]
        return found

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


def read_preprocessor(folder: Path) -> Preprocessor:
    """What lies in a model folder. Raises CrepeError where there is nothing, or nothing that can be read."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise CrepeError(f"{path} is broken: {error}") from error
    if "crepe_image" in content:
        return Steps.parse(content["crepe_image"])
    from transformers import AutoImageProcessor

    from crepe.models.load import quiet

    try:
        with quiet():
            return Processor(AutoImageProcessor.from_pretrained(folder))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CrepeError(f"{folder} has no image processor that can be read: {reason[0]}") from error


def example_input(preprocess: Preprocessor, count: int = 2, seed: int = 0) -> Tensor:
    """Random pixel values (count, 3, height, width) of the size that the model sees."""
    from PIL import Image

    shape = preprocess([Image.new("RGB", (64, 64))]).shape[1:]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
