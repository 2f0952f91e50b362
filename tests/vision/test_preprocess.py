"""What the model sees of a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crepe.errors import CrepeError, UsageError
from crepe.vision.preprocess import Steps, example_input, read_preprocessor
from image_data import STEPS, picture


def test_resize_then_cut_from_the_middle() -> None:
    steps = replace(STEPS, size=(8, 8), resize=16, interpolation="nearest")
    assert steps([picture(0, size=(64, 32))]).shape == (1, 3, 8, 8)
    whole = replace(steps, size=(16, 16))([picture(0, size=(16, 16))])
    assert torch.equal(steps([picture(0, size=(16, 16))]), whole[:, :, 4:12, 4:12])


def test_saved_and_read_again(tmp_path: Path) -> None:
    STEPS.save(tmp_path)
    assert read_preprocessor(tmp_path) == STEPS
    assert example_input(STEPS, count=4).shape == (4, 3, 32, 32)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected size, mean, std"):
        Steps.parse({"size": [32, 32]})
    with pytest.raises(UsageError, match="interpolation one of"):
        Steps.parse({"size": [32, 32], "mean": [0.5], "std": [0.5], "interpolation": "magic"})
    with pytest.raises(CrepeError, match="no image processor that can be read"):
        read_preprocessor(tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_pictures_of_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTImageProcessor

    odd = Image.new("I;16", (32, 32), 40000) if mode == "I;16" else picture(0, mode)
    plain = Image.new("RGB", (32, 32), (156, 156, 156)) if mode == "I;16" else odd.convert("RGB")
    assert torch.equal(STEPS([odd]), STEPS([plain]))
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    process = read_preprocessor(tmp_path)
    assert torch.equal(process([odd]), process([plain]))
