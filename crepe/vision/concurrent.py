"""Training and pruning at the same time (REPrune, AAAI 2024, algorithm 2): a callback for a plain training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crepe.errors import UsageError
from crepe.vision.regrowth import regrown, regrowth_share
from crepe.vision.widths.bn_quantile import layer_sparsities

# (weight (out, in, kh, kw), filters to keep) -> their indices
Select = Callable[[Tensor, int], Tensor]
# (convolution -> batch-norm scales (out,)) -> quantile of all scales, in place of the one of the schedule
Quantile = Callable[[Mapping[str, Tensor]], float]
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class PrunedLayer:
    """A convolution that may lose filters, and the batch norm behind it, by their names in the model."""

    convolution: str
    norm: str


@dataclass(frozen=True)
class Schedule:
    """sparsity: quantile of all scales; until: last epoch of pruning (T_prune); every: epochs between two selections
    (dT); regrowth: share of the channels that is grown back at first."""

    sparsity: float
    until: int
    every: int = 2
    regrowth: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity {self.sparsity} is no share of filters: use a number from 0 up to 1")
        if self.until < 1 or self.every < 1:
            raise UsageError(f"until={self.until}, every={self.every}: both are numbers of epochs, at least 1")


class ConcurrentPruning:
    """Call `on_epoch_end(model, epoch)` after every epoch, counted from 1, and `finish(model)` after the last.

    Pruned filters give zero, and nothing flows back to them, because the output of their batch norm is gated. Their
    values are remembered as they were when they were last alive (most recently used), selection sees those, and a
    filter that comes back starts from them. `alive` maps convolutions to bool (out,), all True before the first
    selection. After epoch `until` the selection stays; the last one grows nothing back. quantile: gives the sparsity of
    each selection where it is not that of the schedule (`crepe.vision.concurrent_budget.MacsTarget`).
    """

    def __init__(
        self,
        layers: Sequence[PrunedLayer],
        schedule: Schedule,
        select: Select,
        seed: int = 0,
        quantile: Quantile | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.schedule = schedule
        self.select = select
        self.quantile = quantile
        self.alive: dict[str, Tensor] = {}
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._gates: list[RemovableHandle] = []
        self._generator = torch.Generator().manual_seed(seed)

    def on_epoch_end(self, model: nn.Module, epoch: int) -> bool:
        """Selects anew in epochs `every`, 2 `every`, ... and in `until`; returns whether it did."""
        schedule = self.schedule
        if epoch > schedule.until or (epoch % schedule.every and epoch != schedule.until):
            return False
        self._remember(model)
        share = regrowth_share(epoch, schedule.until, schedule.regrowth)
        scales = {layer.convolution: self._memory[layer.norm]["weight"] for layer in self.layers}
        sparsity = schedule.sparsity if self.quantile is None else self.quantile(scales)
        down = layer_sparsities(scales, sparsity)
        up = layer_sparsities(scales, max(sparsity - share, 0.0))
        for layer in self.layers:
            self._choose(layer.convolution, down[layer.convolution], up[layer.convolution])
        self._gate(model)
        return True

    def finish(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Opens the gates for good and writes zeros into everything that belongs to pruned filters; returns `alive`."""
        self._open_gates()
        for layer in self.layers:
            dead = ~self.alive.get(layer.convolution, torch.ones(0, dtype=torch.bool))
            for name in (layer.convolution, layer.norm) if len(dead) else ():
                for key, value in _channel_tensors(model, name).items():
                    value[dead.to(value.device)] = 1.0 if key == "running_var" else 0.0
        return self.alive

    def _remember(self, model: nn.Module) -> None:
        """Take over the values of living channels, and give the model those of dead ones back."""
        for layer in self.layers:
            for name in (layer.convolution, layer.norm):
                now = _channel_tensors(model, name)
                if layer.convolution in self.alive:
                    for key, value in now.items():
                        dead = ~self.alive[layer.convolution].to(value.device)
                        value[dead] = self._memory[name][key][dead]
                self._memory[name] = {key: value.clone() for key, value in now.items()}

    def _choose(self, name: str, down: float, up: float) -> None:
        if down >= 1:
            return
        weight = self._memory[name]["weight"]
        width = len(weight)
        chosen = self.select(weight, kept_filters(width, down)).cpu()
        alive = torch.zeros(width, dtype=torch.bool)
        alive[chosen] = True
        alive[regrown(chosen, width, int(width * (1 - up) + 1e-9), self._generator)] = True
        self.alive[name] = alive

    def _gate(self, model: nn.Module) -> None:
        self._open_gates()
        for layer in self.layers:
            if layer.convolution in self.alive:
                gate = _Gate(self.alive[layer.convolution])
                self._gates.append(model.get_submodule(layer.norm).register_forward_hook(gate))

    def _open_gates(self) -> None:
        for handle in self._gates:
            handle.remove()
        self._gates.clear()


@dataclass(frozen=True)
class _Gate:
    """Forward hook: zeros in the channels, axis 1 of the output, that are not alive."""

    alive: Tensor

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        alive = self.alive.to(output.device).reshape(1, -1, *[1] * (output.dim() - 2))
        return torch.where(alive, output, torch.zeros((), dtype=output.dtype, device=output.device))


def kept_filters(width: int, sparsity: float) -> int:
    """ceil((1 - sparsity) * width), at least 1."""
    # Without the small number 0.3 * 10 would be a little above 3 and give 4.
    return max(math.ceil((1 - sparsity) * width - 1e-9), 1)


def _channel_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Parameters and running statistics with one entry for each output channel, as views without gradient."""
    module = model.get_submodule(name)
    found = {key: getattr(module, key, None) for key in _PER_CHANNEL}
    return {key: value.detach() for key, value in found.items() if value is not None}
