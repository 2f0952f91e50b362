"""What transformers calls to load a checkpoint whose config says `quant_method: crepe`.

Importing this module registers it; crepe.checkpoint.hook does that as soon as transformers can be asked.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from crepe.checkpoint.fallback import warn_of_fallbacks
from crepe.checkpoint.layouts import Layout, parse_layout
from crepe.checkpoint.modules import insert, settle, unpack_layers
from crepe.checkpoint.names import own_names
from crepe.checkpoint.packed import check_parts
from crepe.checkpoint.resave import packed_again, save_guarded
from crepe.checkpoint.section import METHOD, VERSION
from crepe.errors import CrepeError


@register_quantization_config(METHOD)
class CrepeConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The section `quantization_config` of config.json. tensors: of a packed checkpoint; content: of another format."""

    def __init__(
        self, format: str = "", version: int | None = None, tensors: dict[str, Any] | None = None, **content: Any
    ) -> None:
        self.__dict__.update(content)
        if format == "packed":
            self.tensors = tensors or {}
        self.quant_method = METHOD
        self.format = format
        self.version = version


@register_quantizer(METHOD)
class CrepeQuantizer(HfQuantizer):  # type: ignore[misc]
    """Makes room for packed parameters before the weights are read, and checks them after."""

    requires_calibration = True

    def __init__(self, quantization_config: CrepeConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._layouts: dict[str, Layout] = {}
        version = quantization_config.version
        if type(version) is not int or not 1 <= version <= VERSION:
            raise CrepeError(
                f"the checkpoint has version {version!r} of crepe's format, this crepe reads up to {VERSION}: "
                "pip install -U crepe-prune"
            )

    def update_attn_implementation(self, config: Any) -> Any:
        """Called with the config before any file is looked for: from here on the weights may be found."""
        config.transformers_weights = None
        return config

    # The same moment in older versions of transformers, such as 5.14.
    update_tp_plan = update_attn_implementation

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        if config.format == "packed":
            if not isinstance(config.tensors, dict):
                raise CrepeError(f"config.json lists packed tensors as {config.tensors!r}: expected an object by name")
            layouts = {name: parse_layout(about) for name, about in config.tensors.items()}
            present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            self._layouts = own_names(model, layouts, present)
            check_parts(checkpoint_files or [], layouts)
            insert(model, self._layouts)
        elif config.format == "sliced":
            from crepe.checkpoint.sliced import resize_for

            resize_for(model, config.to_dict())
        else:
            raise CrepeError(
                f"unknown format {config.format!r} of a checkpoint of crepe: this crepe reads 'packed' and 'sliced'; "
                "for a newer one, pip install -U crepe-prune"
            )

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        settle(model, self._layouts)
        warn_of_fallbacks(model)
        if self.quantization_config.format == "packed":
            model.requires_grad_(False)  # else torch.compile asks packed layers for gradients that they do not have
        model.save_pretrained = partial(save_guarded, model)  # a method could not be found again by pickle

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """For save_pretrained: what was unpacked for loading is packed again."""
        if not self._layouts:
            return None, {}
        state, self._layouts = packed_again(model, self._layouts)
        self.quantization_config.tensors = {name: layout.to_dict() for name, layout in self._layouts.items()}
        return state, {}

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        if self.quantization_config.format == "sliced":
            raise CrepeError("a sliced model is dense already: what was cut out of its matrices is gone")
        unpack_layers(model)
        model.requires_grad_(True)
        del model.save_pretrained
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True
