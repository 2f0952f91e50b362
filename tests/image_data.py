"""Small labelled pictures on disk, and tiny nets in folders."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file

from crepe.vision.nets.cifar_resnet import CifarResNet
from crepe.vision.preprocess import Steps
from image_families import lively

STEPS = Steps((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def picture(index: int, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Any:
    """Noise around a colour that depends on index modulo 5."""
    generator = numpy.random.default_rng(index)
    colour = numpy.array([(index % 5) * 50, 255 - (index % 5) * 50, 100])
    noise = generator.integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray(numpy.clip(colour + noise, 0, 255).astype("uint8")).convert(mode)


def encoded(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, count: int = 40, classes: int = 5, labels: bool = True) -> str:
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {"image": [{"bytes": encoded(picture(i)), "path": None} for i in range(count)]}
    if labels:
        columns["label"] = [i % classes for i in range(count)]
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def net_folder(folder: Path, depth: int = 8, width: int = 8) -> str:
    """A CIFAR ResNet of 5 classes with random weights, as crepe writes one."""
    torch.manual_seed(0)
    arguments = {"depth": depth, "classes": 5, "width": width}
    model = lively(CifarResNet(**arguments))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"net": "cifar-resnet", "arguments": arguments}))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    STEPS.save(folder)
    return str(folder)


def hugging_face_folder(folder: Path, name: str) -> str:
    from transformers import ViTImageProcessor

    from image_families import hugging_face

    hugging_face(name).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)
