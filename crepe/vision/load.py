"""Opening an image model: dense, or as crepe wrote it; the dense net is built, given its shapes, then filled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.models.load import quiet, readable_failure
from crepe.vision.shapes import resize, set_attributes
from crepe.vision.source import ATTRIBUTES, SHAPES, ImageSource


def open_image_model(source: ImageSource) -> nn.Module:
    """The model in evaluation mode, float32.

    Raises:
        CrepeError: the files are missing, broken, or do not fit the architecture.
    """
    shapes, attributes = source.config.get(SHAPES), source.config.get(ATTRIBUTES, {})
    if source.net is None and source.weights is None and not shapes:
        return _pretrained(source).float().eval()
    model = build(source)
    if shapes:
        resize(model, shapes)
    set_attributes(model, attributes)
    _fill(model, _state(source), str(source))
    return model.float().eval()


def build(source: ImageSource) -> nn.Module:
    """The dense architecture with untrained weights."""
    from crepe.vision.nets import NETS

    if source.net is not None:
        return NETS.get(source.net.name)(**source.net.arguments)
    from transformers import AutoConfig

    with readable_failure(source.source), quiet():
        config = AutoConfig.from_pretrained(source.source.folder)
        model: nn.Module = auto_class(config).from_config(config)
        return model


def auto_class(config: Any) -> Any:
    """The class of transformers that opens a model of this config: with a classifier, or an encoder alone where its
    weights are those of another class of transformers."""
    import transformers

    names = config.architectures or ()
    other = [name for name in names if hasattr(transformers, name) and "ForImageClassification" not in name]
    return transformers.AutoModel if other else transformers.AutoModelForImageClassification


def _pretrained(source: ImageSource) -> nn.Module:
    from transformers import AutoConfig

    with readable_failure(source.source), quiet():
        config = AutoConfig.from_pretrained(source.source.folder)
        model, report = auto_class(config).from_pretrained(
            source.source.folder, output_loading_info=True, dtype="float32"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise CrepeError(f"checkpoint of {source.source.name} lacks {len(missing)} tensors, such as {missing[0]!r}")
    found: nn.Module = model
    return found


def _state(source: ImageSource) -> dict[str, Tensor]:
    if source.weights is not None:
        return read_state(source.weights)
    files = sorted(source.source.folder.glob("*.safetensors"))
    if not files:
        raise CrepeError(f"{source.source.folder} has a config but no weights: expected model.safetensors")
    return {name: tensor for file in files for name, tensor in read_state(file).items()}


def read_state(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or an old state dict that holds tensors only."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: dict[str, Tensor] = load_file(path)
            return found
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return dict(loaded.get("state_dict", loaded))
    except Exception as error:
        raise CrepeError(f"cannot read weights from {path}: {str(error).splitlines()[0]}") from error


def _fill(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    odd = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or odd:
        raise CrepeError(f"the weights of {name} do not fit: missing {missing[:3]}, unexpected {odd[:3]}")
    if shapes:
        key = shapes[0]
        raise CrepeError(
            f"the weights of {name} do not fit: {key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        )
    model.load_state_dict(dict(state), strict=False)


def load_image_model(model: str, *, weights: str | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """(model, preprocessor) of an output folder, Hub id or alias.

    Raises:
        CrepeError: no such model, or its files are broken.
    """
    from crepe.models.load import parse_device
    from crepe.models.resolve import announce
    from crepe.vision.source import resolve_image

    place = parse_device(device)
    source = resolve_image(str(model), weights)
    announce(source)
    return open_image_model(source).to(place), source.preprocessor()


def label_ids_of(model: Any) -> Mapping[str, int]:
    """Class name -> number, as far as the model knows names."""
    found: Mapping[str, int] = getattr(getattr(model, "config", model), "label2id", None) or {}
    return found


def outputs_of(output: Any) -> Tensor:
    """What can be compared in what a model returns: logits, or the first tensor, such as the states of an encoder."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None:
        found = output[0]
    if not isinstance(found, Tensor):
        raise CrepeError(f"the model returns {type(output).__name__}: expected a tensor, or one in first place")
    return found


def logits_of(output: Any) -> Tensor:
    """The logits (batch, classes) in what a model returns."""
    found = outputs_of(output)
    if found.dim() != 2:
        raise CrepeError(
            f"the model returns {type(output).__name__}: expected logits (batch, classes); an encoder has none: it can "
            "only be pruned by methods that need no labels, not be trained or measured"
        )
    return found
