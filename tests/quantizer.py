"""Loading of `quant_method: crepe` where the package has no quantizer of its own for it."""

from __future__ import annotations

import importlib.util
from typing import Any


def register() -> None:
    """Let `from_pretrained` load sliced checkpoints with a shape for each layer."""
    if importlib.util.find_spec("crepe.checkpoint.quantizer"):
        importlib.import_module("crepe.checkpoint.quantizer")
        return
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if "crepe" in AUTO_QUANTIZER_MAPPING:
        return

    @register_quantization_config("crepe")
    class Config(QuantizationConfigMixin):  # type: ignore[misc]
        def __init__(self, **data: Any) -> None:
            self.quant_method = "crepe"
            self.__dict__.update(data)

    @register_quantizer("crepe")
    class Quantizer(HfQuantizer):  # type: ignore[misc]
        requires_calibration = False

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
            from crepe.checkpoint.sliced import resize_for

            resize_for(model, self.quantization_config.to_dict())

        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return False


def unregister() -> dict[str, Any]:
    """Forget the quantizer, as a program that never imported crepe; returns what `restore` takes."""
    from transformers.quantizers import auto

    mappings = (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
    return {str(i): mapping.pop("crepe", None) for i, mapping in enumerate(mappings)}


def restore(forgotten: dict[str, Any]) -> None:
    from transformers.quantizers import auto

    for i, mapping in enumerate((auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING)):
        if forgotten[str(i)] is not None:
            mapping["crepe"] = forgotten[str(i)]
